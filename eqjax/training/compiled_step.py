"""The training step as a program: initial state, shardings, and the guarded step on a mesh."""

import dataclasses
from typing import Any

import jax

from eqjax import sharding, xla_flags
from eqjax.precision import computing_in
from eqjax.training.fault_tolerance import skip_nonfinite_updates
from eqjax.training.trainer import Batch, Init, Rules, State, Step
from eqjax.typing import Metrics, PRNGKey


def abstract_state(init: Init, rules: Rules, mesh: jax.sharding.Mesh, root: PRNGKey) -> State:
    """Returns the shapes, dtypes and shardings of `initial_state` as jax.ShapeDtypeStruct, at no cost.

    Args:
      init: key → state; traced.
      rules: how the state is split over the mesh, as `sharding.spec_for` takes them.
      mesh: the mesh.
      root: the run's key.
    """
    state = jax.eval_shape(init, root)
    shardings = sharding.state_shardings(state, mesh, rules)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), state, shardings)


def initial_state(init: Init, rules: Rules, mesh: jax.sharding.Mesh, root: PRNGKey) -> State:
    """Computes the state before the first step, every array on the devices that hold it.

    Args:
      init: key → state; traced.
      rules: how the state is split over the mesh, as `sharding.spec_for` takes them.
      mesh: the mesh.
      root: the run's key.
    """
    # Every random array is a long program to the CPU compiler: optimizing the initializer of a small
    # model took a minute and a half, for a program that runs once.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(init, rules, mesh, root))
    key = jax.random.fold_in(root, 2**31 - 1)
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(key)


def compile_step(
    step: Step,
    rules: Rules,
    mesh: jax.sharding.Mesh,
    state: State,
    root: PRNGKey,
    precision: str = "highest",
    *,
    profiled: bool = False,
) -> "CompiledStep":
    """Returns the training step as the loop runs it: on a mesh, guarded, with a donated state.

    Args:
      step: (state, batch, key) → (state, metrics); traced. The arrays of a `jax.tree_util.Partial` are arguments of
        the compiled program; arrays in a closure would become its constants. The key is the root key folded with
        `state.step`. An update whose metrics are not all finite is skipped, see `skip_nonfinite_updates`.
      rules: how the state is split over the mesh, as `sharding.spec_for` takes them.
      mesh: the mesh.
      state: a state on the mesh, or its jax.ShapeDtypeStruct.
      root: the run's key.
      precision: of products of float32 numbers, see `eqjax.precision.computing_in`.
      profiled: whether a profiler will trace it; see `eqjax.xla_flags`, whose options it gets.
    """
    partial: Any = step if isinstance(step, jax.tree_util.Partial) else jax.tree_util.Partial(step)
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((partial, state))):
        partial = sharding.put(partial, sharding.replicated(mesh))
    shardings = sharding.state_shardings(state, mesh, rules)

    def run(step, state, batch):
        with computing_in(precision):
            return skip_nonfinite_updates(step)(state, batch, jax.random.fold_in(root, state.step))

    options = xla_flags.options(mesh.devices.flat[0].platform, num_devices=mesh.size, profiled=profiled)
    jitted = jax.jit(
        run,
        donate_argnums=1,
        out_shardings=(shardings, sharding.replicated(mesh)),
        compiler_options=options or None,
    )
    return CompiledStep(mesh, partial, jitted)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A training step bound to a mesh: (state, batch) → (state, metrics).

    Attributes:
      mesh: the mesh.
      step: the step; its arrays are the first argument of `jitted`.
      jitted: (step, state, batch) → (state, metrics), under jax.jit.
    """

    mesh: jax.sharding.Mesh
    step: jax.tree_util.Partial
    jitted: Any

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Runs the step; the given state is donated."""
        with jax.set_mesh(self.mesh):
            return self.jitted(self.step, state, batch)

    def lower(self, state: State, batch: Batch) -> Any:
        """Lowers the step for arrays, or shapes, of a state and a batch."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(self.step, state, batch)
