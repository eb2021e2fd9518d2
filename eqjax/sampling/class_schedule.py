"""Classes that change along an image: the class of every column, and soft transitions between classes.

A schedule is a sequence of segments. With a transition of n columns, the first n columns of a segment
see a blend of two classes: the keys and values of the condition tokens are interpolated linearly from the old
class to the new one, so a transition costs no more than any other column.

    columns      … a    a   │ b         b         b       b   b …
    weight of b     0    0   │ 1/(n+1)   …   n/(n+1)   1   1

Letters: B batch, L columns, S segments.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

from jaxtyping import Float, Int
import numpy as np

from eqjax.messages import show
from eqjax.rules import Integer, Items
from eqjax.typing import AnyArray, Scalar

TRANSITION = Integer(least=0)
# The schedule itself refuses 0, and None but at the end.
_COLUMNS = Integer(optional=True, none_means="to the end")


class Blend(NamedTuple):
    """The classes that columns see: (1 − weight) of `segment`, and weight of the segment after it.

    Attributes:
      segment: index of a segment, int32; [L], or a scalar for one column.
      weight: in [0, 1), float32, of the same shape.
    """

    segment: Int[AnyArray, "*L"] | Scalar
    weight: Float[AnyArray, "*L"] | Scalar


@dataclasses.dataclass(frozen=True)
class ClassSchedule:
    """The number of columns of every segment.

    Attributes:
      columns: columns per segment; None for the last one leaves its end open.
      transition: columns of a soft transition, n ≥ 0; at most the columns of any segment after the first.

    Raises:
      ValueError: there is no segment, a segment has no columns, one before the last has an open end, or the
        transition is longer than a segment.

    Example:
      >>> ClassSchedule((2, None), transition=1).at([0, 1, 2, 3]).weight.tolist()
      [0.0, 0.0, 0.5, 0.0]
    """

    columns: tuple[int | None, ...] = (None,)
    transition: int = 0

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("the class schedule has no segment: give at least one class.")
        if any(n is None for n in self.columns[:-1]) or any(n is not None and n < 1 for n in self.columns):
            raise ValueError(
                f"the class schedule's segments have {list(self.columns)} columns: each needs at least 1, and only "
                "the last may be open (None), or there would be a gap."
            )
        shortest = min((n for n in self.columns[1:] if n is not None), default=None)
        if self.transition < 0 or (shortest is not None and self.transition > shortest):
            raise ValueError(
                f"transition={self.transition} must be ≥ 0, and at most the {shortest} columns of the shortest "
                "segment after the first."
            )

    def check_length(self, num_columns: int | None) -> None:
        """Checks that the schedule covers an image.

        Args:
          num_columns: columns of the image; None: without end.

        Raises:
          ValueError: the schedule ends before the image.
        """
        total = sum(n for n in self.columns if n is not None)
        if self.columns[-1] is not None and (num_columns is None or total < num_columns):
            end = "no end" if num_columns is None else f"{num_columns} columns"
            raise ValueError(
                f"the class schedule covers columns 0 … {total - 1}, and the image has {end}: the columns from "
                f"{total} on have no class. Lengthen the last segment, or leave it open with None."
            )

    def at(self, columns: Int[np.ndarray, "L"] | Sequence[int]) -> Blend:
        """Returns the `Blend` of columns by their indices; columns after the end belong to the last segment."""
        starts = np.cumsum([0, *(n for n in self.columns[:-1] if n is not None)])
        segment = np.searchsorted(starts, columns, side="right") - 1
        offset = np.asarray(columns) - starts[segment]
        blended = (segment > 0) & (offset < self.transition)
        weight = np.where(blended, (offset + 1) / (self.transition + 1), 0)
        return Blend((segment - blended).astype(np.int32), weight.astype(np.float32))


def parse_classes(classes: Any) -> tuple[list[Any], tuple[int | None, ...]]:
    """Splits [(class, columns), …] into classes and columns.

    Args:
      classes: a list of pairs; the last number of columns may be None.

    Returns:
      The classes, and their columns.

    Raises:
      TypeError: columns are not integers.
      ValueError: `classes` is not such a list.

    Example:
      >>> parse_classes([("cat", 8), ("dog", None)])
      (['cat', 'dog'], (8, None))
    """
    if not classes or not all(isinstance(item, tuple | list) and len(item) == 2 for item in classes):
        raise ValueError(f"a class schedule is a list of (label, columns), not {show(classes)}.")
    columns = tuple(_COLUMNS.check(f"columns of class {show(label)}", n) for label, n in classes)
    return [label for label, _ in classes], columns


def class_schedule(labels: Int[AnyArray, "..."], class_columns: Any, transition: Any) -> ClassSchedule:
    """Returns the `ClassSchedule` of labels [B], or [B, S] of S classes along the columns.

    Args:
      labels: integers.
      class_columns: columns of each of the S classes; None for one class over all columns.
      transition: columns of a soft transition.

    Raises:
      TypeError: columns are not integers.
      ValueError: there is not one number of columns per class, or they make no valid schedule.
    """
    segments = labels.shape[1] if labels.ndim == 2 else 1
    if class_columns is None and segments == 1:
        class_columns = (None,)
    columns = Items(_COLUMNS, optional=True).check("class_columns", class_columns)
    if columns is None or len(columns) != segments:
        raise ValueError(
            f"class_columns={show(columns)} must give a number of columns for each of the {segments} classes of a row."
        )
    return ClassSchedule(columns, TRANSITION.check("transition", transition))
