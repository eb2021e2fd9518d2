"""What a viewer chooses for a strip: two classes and their mix, guidance, temperature."""

import dataclasses
from typing import Any

from eqjax.rules import Integer, Number

_RULES = {
    "first_class": Integer(least=0),
    "second_class": Integer(least=0),
    "mix": Number(least=0, most=1),
    "guidance_scale": Number(least=0, most=20),
    "temperature": Number(least=0, most=2),
}


@dataclasses.dataclass(frozen=True)
class Steering:
    """What governs the columns that a request samples; checked and converted when it is built.

    Attributes:
      first_class: an integer.
      second_class: another one, or the same.
      mix: share of the second class, 0 … 1.
      guidance_scale: classifier-free guidance scale, 0 … 20; 1 is no guidance.
      temperature: scale on the initial noise, 0 … 2.

    Raises:
      TypeError: a value is of another type.
      ValueError: a value is out of its range.

    Example:
      >>> Steering(first_class=0, second_class=2, mix=0.5).guidance_scale
      2.0
      >>> Steering(0, 2, mix=1.5)
      Traceback (most recent call last):
      ValueError: mix=1.5 must be a finite number ≥ 0 and ≤ 1.
    """

    first_class: Any
    second_class: Any
    mix: Any = 0.0
    guidance_scale: Any = 2.0
    temperature: Any = 1.0

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))
