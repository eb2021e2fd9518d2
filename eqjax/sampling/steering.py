"""Steering: what a viewer changes of a panorama while it runs."""

import dataclasses
from typing import Any

import jax
import numpy as np

from eqjax.model import Model
from eqjax.rules import Number
from eqjax.sampling import strips
from eqjax.sampling.checks import check_labels
from eqjax.sampling.class_schedule import Blend
from eqjax.sampling.sampler import Sampler, SamplerInputs

_MIX = Number(least=0, most=1, optional=True)
_AT_LEAST_0 = Number(least=0, optional=True)


def share(mix: float, size: int) -> Blend:
    """Returns the `Blend` of `size` columns that all see a share of the second of two segments.

    Args:
      mix: the share, 0 … 1; at 1 exactly the second segment.
      size: number of columns.
    """
    segment, weight = (1, 0.0) if mix == 1 else (0, mix)
    return Blend(np.full(size, segment, np.int32), np.full(size, weight, np.float32))


@dataclasses.dataclass(frozen=True)
class PanoramaSteering:
    """The values that `Panorama.steer` was given; None where it was given none.

    Attributes:
      labels: one class, or the first and the second one, integers.
      mix: share of the second class, 0 … 1.
      guidance_scale: scale of all columns.
      temperature: scale on the initial noise.
    """

    labels: tuple[int, ...] | None = None
    mix: float = 0.0
    guidance_scale: float | None = None
    temperature: float | None = None

    def change(
        self,
        model: Model,
        is_guided: bool,
        labels: Any = None,
        mix: Any = None,
        guidance_scale: Any = None,
        temperature: Any = None,
    ) -> "PanoramaSteering":
        """Returns the steering with other values.

        Args:
          model: the model whose classes they are.
          is_guided: whether the panorama was begun with guidance.
          labels: a class or two; None: as before.
          mix: share of the second class; None: as before.
          guidance_scale: the scale; None: as before.
          temperature: the temperature; None: as before.

        Raises:
          ValueError: see `Panorama.steer`.
          TypeError: a value is of another type.
        """
        if labels is None and mix is None and guidance_scale is None and temperature is None:
            raise ValueError("nothing to steer: give labels, mix, guidance_scale or temperature.")
        mix = _MIX.check("mix", mix)
        scale = _AT_LEAST_0.check("guidance_scale", guidance_scale)
        temperature = _AT_LEAST_0.check("temperature", temperature)
        chosen = self.labels
        if labels is not None:
            found = np.asarray(model.labels(labels), np.int32).reshape(-1)
            check_labels(model.require("generator"), found)
            if len(found) > 2:
                raise ValueError(f"labels has {len(found)} classes; a panorama is steered to one class, or to two.")
            chosen = tuple(found.tolist())
        has_two = chosen is not None and len(chosen) == 2
        if mix and not has_two:
            raise ValueError(
                f"mix={mix:g} is the share of a second class, and there is none: give labels=(first, second)."
            )
        if scale not in (None, 1) and not is_guided:
            raise ValueError(
                f"guidance_scale={scale:g} needs the rows of the null class, and this panorama was begun without them, "
                "with guidance_scale=1: begin it with another scale, and steer to 1 where no guidance is wanted."
            )
        mix = self.mix if mix is None else mix
        return PanoramaSteering(
            chosen,
            mix if has_two else 0.0,
            self.guidance_scale if scale is None else scale,
            self.temperature if temperature is None else temperature,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON values, keyword arguments of `change`."""
        return dataclasses.asdict(self)

    def sampler(self, inputs: SamplerInputs) -> Sampler:
        """Returns the sampler of the chosen classes, made by the programs that made the one for `inputs`.

        Args:
          inputs: the inputs with which the panorama was begun; all but the classes apply.
        """
        assert self.labels is not None
        made = [
            strips.begin(dataclasses.replace(inputs, labels=np.full(inputs.labels.shape, label, np.int32)))
            for label in (self.labels[0], self.labels[-1])
        ]

        def join(first: jax.Array, second: jax.Array) -> jax.Array:
            # On the host: another number of segments would be another program.
            table = np.array(first)
            table[1] = np.asarray(second)[1]
            return jax.numpy.asarray(table)

        conditions = jax.tree.map(join, made[0].conditions, made[1].conditions)
        return dataclasses.replace(made[0], conditions=conditions)

    def blend(self, size: int) -> Blend:
        """Returns the `Blend` of `size` columns."""
        return share(self.mix, size)
