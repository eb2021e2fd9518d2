"""Names the first module of the generator that is not finite in a training step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from eqjax.sharding import path_name
from eqjax.training.forward_order import forward_order
from eqjax.training.generator.step import Batch, GeneratorStep
from eqjax.training.state import stream
from eqjax.typing import Params, PRNGKey, Tree

# The module whose arrays are stacked over layers.
_STACKED = "blocks"


def first_nonfinite_module(
    step: GeneratorStep, params: Params, encoder_params: Params, batch: Batch, key: PRNGKey
) -> str:
    """Repeats a training step and names the first value that is not finite.

    In this order: parameters, latents, outputs of modules (the first in the forward pass; of the stacked layers the
    lowest), the loss, gradients (the last module in the forward pass, as they flow back).

    Args:
      step: the step.
      params: raw weights before the step.
      encoder_params: parameters of the frozen encoder.
      batch: the step's whole batch.
      key: the step's random key.

    Returns:
      A text, such as "output of blocks/mlp_in, layer 3".
    """
    if bad := nonfinite_names(params, []):
        return f"parameter {bad[0]}"
    count = step.num_microbatches
    for i in range(count):
        # The rows and the key that `optim.accumulate_gradients` gives the microbatch.
        rows = jax.tree.map(lambda x, i=i: x[i::count], batch)
        found = _first_in_microbatch(
            step, params, encoder_params, rows, jax.random.fold_in(key, i) if count > 1 else key
        )
        if found is not None:
            return found
    return "none when the step is repeated: look for a hardware fault"


def _first_in_microbatch(
    step: GeneratorStep, params: Params, encoder_params: Params, batch: Batch, key: PRNGKey
) -> str | None:
    latents, labels = jax.jit(step.encode)(encoder_params, batch, stream(key, "posterior"))
    if not jnp.isfinite(latents).all():
        return "latents, which come from the tokenizer or the data"
    rngs = step.rngs(key)

    def loss(params: Params, **options: Any) -> Any:
        return step.generator.apply({"params": params}, latents, labels, method="loss", rngs=rngs, **options)

    order = forward_order(loss, params)
    value, inside = jax.jit(lambda p: loss(p, capture_intermediates=True, mutable=["intermediates"]))(params)
    if bad := nonfinite_names(inside["intermediates"], order):
        return f"output of {bad[0]}"
    if not jnp.isfinite(value):
        return "the loss itself: all outputs are finite, but their squares overflow"
    if bad := nonfinite_names(jax.jit(jax.grad(loss))(params), order):
        return f"gradient of {bad[-1]}"
    return None


def nonfinite_names(tree: Tree, order: list[str]) -> list[str]:
    """Returns the names of leaves that are not finite, in the order of the forward pass.

    Args:
      tree: parameters, gradients or intermediate outputs of the generator.
      order: the modules in the order of the forward pass, see `forward_order`; leaves without a module come first.
    """
    rank = {path: i for i, path in enumerate(order)}
    for path, i in list(rank.items()):  # A part of the model comes where its last module does.
        top = path.split("/")[0]
        rank[top] = max(rank.get(top, i), i)
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        finite = jnp.isfinite(leaf)
        if finite.all():
            continue
        name = path_name(path).split("/__call__")[0]
        layer = 0
        module = name
        if name.split("/")[0] == _STACKED:
            layer = int(jnp.argmin(finite.reshape(len(leaf), -1).all(axis=1)))
            name = f"{name}, layer {layer}"
        found.append(((_rank(rank, module.split("/")[0]), layer, _rank(rank, module)), name))
    return [name for _, name in sorted(found, key=lambda item: item[0])]


def _rank(rank: Mapping[str, int], name: str) -> int:
    """Returns the place of a module, or of the module that a leaf belongs to; −1 for a parameter of no module."""
    while name not in rank and "/" in name:
        name = name.rpartition("/")[0]
    return rank.get(name, -1)
