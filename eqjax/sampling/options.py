"""The sampling options of all samplers: guidance, flow solver, temperature, bounded positions."""

from collections.abc import Sequence
import dataclasses
from typing import Any, TypedDict

from jaxtyping import Float
import numpy as np

from eqjax import flow
from eqjax.config_fields import checked
from eqjax.messages import check_names
from eqjax.module_fields import SAMPLING
from eqjax.sampling.interpolated_modulations import check_saves, interpolation
from eqjax.sampling.shortcuts import Shortcuts
from eqjax.tracing import is_traced
from eqjax.typing import AnyArray, Scalar


class SamplingKeywords(TypedDict, total=False):
    """Keyword arguments from which a function builds `SamplingOptions`: the same names, none required."""

    guidance_scale: Scalar | Sequence[Scalar]
    guidance_schedule: str
    num_flow_steps: Scalar
    solver: str
    time_grid: flow.TimeGrid
    temperature: Scalar
    max_position: Scalar | None
    modulation_times: Scalar | None
    parallel_steps: Scalar | None
    parallel_tolerance: Scalar
    gpu_kernels: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of sampling latents from a generator; the defaults are the paper's.

    Options are checked and converted to Python values when they are built (arrays to floats and tuples), so equal
    options compare equal. Values that `jax.jit` traces are kept as they are and not checked.

    Attributes:
      guidance_scale: classifier-free guidance scale g ≥ 0; 1 disables guidance and halves the work. Or one scale per
        column.
      guidance_schedule: "linear" (the scale rises to g over the columns) or "constant".
      num_flow_steps: solver steps per column, ≥ 1.
      solver: "euler" (as published), "heun" (two evaluations per step) or "adams_bashforth".
      time_grid: "uniform" (as published), "shifted", "cosine", or num_flow_steps + 1 times from 1 to 0.
      temperature: scale on the initial noise, ≥ 0.
      max_position: largest position by which queries of cross-attention are rotated, so that far columns stay within
        the positions seen in training (columns + max_rope_shift − 3); None: unbounded, as published.
      modulation_times: number of Chebyshev times, 2 … 64, at which the flow head's modulations are computed, to be
        interpolated to all evaluations; fewer than these. None: computed at every evaluation.
      parallel_steps: solver steps of a column that are computed at once, ≥ 2, in sweeps until they settle (Picard
        iteration); with any solver. For a few images on a GPU or TPU. None: one after another.
      parallel_tolerance: largest root mean square difference of a column's latents from those of steps one after
        another, > 0 and ≤ 1; latents have about unit scale. Used with parallel_steps.
      gpu_kernels: kernels that compute a column: "plain", XLA's; "fused", fewer and larger ones, for NVIDIA GPUs;
        or "auto", fused where these are known to work and predicted to be faster, see `eqjax.generator.gpu_kernels`.

    Raises:
      ValueError: an option is out of its range, modulation_times saves nothing, or fused kernels are demanded together
        with parallel_steps.
      TypeError: an option is unknown, or of another type.

    Example:
      >>> options = SamplingOptions(guidance_scale=2.0, num_flow_steps=25)
      >>> options.solver, options.is_guided
      ('euler', True)
      >>> SamplingOptions(**options.to_dict()) == options
      True
    """

    guidance_scale: Any = 1.0
    guidance_schedule: Any = "linear"
    num_flow_steps: Any = 100
    solver: Any = "euler"
    time_grid: Any = "uniform"
    temperature: Any = 1.0
    max_position: Any = None
    modulation_times: Any = None
    parallel_steps: Any = None
    parallel_tolerance: Any = 1e-4
    gpu_kernels: Any = "auto"

    def __new__(cls, **keywords: Any) -> "SamplingOptions":
        """Refuses unknown options; the message of `__init__` would not name the nearest one."""
        check_names("sampling option", keywords, [field.name for field in dataclasses.fields(cls)])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, value in checked(vars(self), SAMPLING).items():
            object.__setattr__(self, name, value)
        times = len(self.solver_table().times)
        if self.modulation_times is not None:
            check_saves(self.modulation_times, times)
        if self.gpu_kernels == "fused" and self.parallel_steps is not None:
            raise ValueError(
                f"gpu_kernels='fused' evaluates one step after another, and parallel_steps={self.parallel_steps} "
                "several at once: leave one of them out."
            )

    @property
    def is_guided(self) -> bool:
        """Whether the null class is needed; True for a traced scale, which may have any value."""
        return is_traced(self.guidance_scale) or bool(np.any(np.asarray(self.guidance_scale) != 1))

    @property
    def modulations_at_once(self) -> int:
        """Evaluations whose modulations are in memory at once, at least."""
        return 1 if self.parallel_steps is None else len(self.solver_table().times)

    def guidance_scales(self, num_columns: int) -> Float[AnyArray, "num_columns"]:
        """Returns the guidance scale of every column; on the host, unless JAX traces.

        Args:
          num_columns: columns of the image, its prefix included.

        Raises:
          ValueError: the options have scales per column for another number of columns.
        """
        return flow.guidance_scales(self.guidance_scale, self.guidance_schedule, num_columns)

    def solver_table(self) -> flow.SolverTable:
        """Returns the flow solver as a table, one row per evaluation of the velocity."""
        num_steps: Any = self.num_flow_steps
        return flow.solver_table(self.solver, num_steps, self.time_grid)

    def shortcuts(self) -> Shortcuts:
        """Returns how modulations and steps are computed, if not one after another."""
        times = self.solver_table().times
        found = None if self.modulation_times is None else interpolation(np.asarray(times), self.modulation_times)
        if self.parallel_steps is None:
            return Shortcuts(None, found, None, self.gpu_kernels)
        window = min(self.parallel_steps * (len(times) // self.num_flow_steps), len(times))
        tolerance = self.parallel_tolerance
        return Shortcuts(window, found, tolerance if is_traced(tolerance) else np.float32(tolerance))

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as JSON values, {name: value}; `SamplingOptions(**values)` gives them back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
