"""The options of a panorama: everything that determines it besides the model and the prefix."""

import dataclasses
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from eqjax import flow
from eqjax.rules import Integer, Items
from eqjax.sampling.checks import NUM_COLUMNS, SEED, SEEDS
from eqjax.sampling.class_schedule import TRANSITION, ClassSchedule
from eqjax.sampling.options import SamplingOptions

_STRIP_COLUMNS = Integer(least=1, most=2**16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanoramaOptions(SamplingOptions):
    """Everything that determines a panorama besides the model and the prefix; all values have a JSON form.

    Attributes:
      labels: integer classes along the columns.
      class_columns: columns of each class; None for the last one: to the end.
      seed: seed of a single panorama.
      seeds: seeds of several panoramas, which replace `seed`; None: a single one.
      num_columns: columns in all; None: without end.
      transition: columns over which one class blends into the next.
      strip_columns: columns sampled at a time, ≥ 1.

    Raises:
      ValueError: an option is out of its range.
    """

    labels: tuple[int, ...]
    class_columns: tuple[int | None, ...] = (None,)
    seed: Any = 0
    seeds: Any = None
    num_columns: Any = None
    transition: Any = 0
    strip_columns: Any = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "labels": Items(Integer(least=0), least=1),
            "class_columns": Items(Integer(least=1, optional=True), least=1),
            "seed": SEED,
            "seeds": dataclasses.replace(SEEDS, optional=True),
            "num_columns": dataclasses.replace(NUM_COLUMNS, optional=True, none_means="without end"),
            "transition": TRANSITION,
            "strip_columns": _STRIP_COLUMNS,
        }
        for name, rule in rules.items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))
        self.class_schedule().check_length(self.num_columns)

    def class_schedule(self) -> ClassSchedule:
        """Returns the schedule of the classes."""
        return ClassSchedule(self.class_columns, self.transition)

    @property
    def row_seeds(self) -> tuple[int, ...]:
        """Seeds of all panoramas."""
        return (self.seed,) if self.seeds is None else self.seeds

    def scales_at(self, columns: Int[np.ndarray, "n"], training_columns: int) -> Float[np.ndarray, "n"]:
        """Returns the guidance scales of columns; those behind the last scale have that one.

        Args:
          columns: indices of columns, from 0 on; there may be any number before them, so no list of all is made.
          training_columns: columns of a training image, over which a "linear" scale rises in a panorama without end.
        """
        scale = np.asarray(self.guidance_scale, np.float32)
        if scale.ndim:
            return scale[np.minimum(columns, len(scale) - 1)]
        if self.guidance_schedule == "constant":
            return np.full(len(columns), scale, np.float32)
        num_columns = self.num_columns or training_columns
        done = np.minimum(columns + 1, num_columns).astype(np.float32)
        return np.asarray(flow.linear_scales(scale, done, num_columns))
