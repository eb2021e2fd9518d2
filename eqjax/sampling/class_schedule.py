"""Classes that change along an image: which class a column belongs to, and soft transitions.

A schedule is a row of segments. With a transition of n columns, the first n columns of a segment
see a blend of two classes: the keys and values of the condition tokens go linearly from the old
class to the new one, so a transition costs no more than any other column.

    columns      … a    a   │ b         b         b       b   b …
    weight of b     0    0   │ 1/(n+1)   …   n/(n+1)   1   1
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class Blend(NamedTuple):
    """What columns see of S segments: (1 − weight) of `segment`, and weight of the one after it.

    Attributes:
      segment: int32 [L].
      weight: float32 [L], in [0, 1).
    """

    segment: np.ndarray
    weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class ClassSchedule:
    """How many columns each segment has.

    Attributes:
      columns: per segment; the last may be None: to the end, however far that is.
      transition: columns of a soft transition, n ≥ 0; at most the columns of any segment after the first.

    Raises:
      ValueError: a segment without columns, an open end that is not the last, a longer transition.
    """

    columns: tuple[int | None, ...] = (None,)
    transition: int = 0

    def __post_init__(self):
        *inner, last = self.columns
        if any(n is None for n in inner) or any(n is not None and n < 1 for n in self.columns):
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

    def check_length(self, num_columns):
        """Compares with an image of `num_columns` columns (None: without end).

        Raises:
          ValueError: the schedule ends before the image does.
        """
        if self.columns[-1] is None:
            return
        total = sum(self.columns)
        if num_columns is None or total < num_columns:
            end = "no end" if num_columns is None else f"{num_columns} columns"
            raise ValueError(
                f"the class schedule covers columns 0 … {total - 1}, and the image has {end}: the columns from "
                f"{total} on have no class. Lengthen the last segment, or leave it open with None."
            )

    def at(self, columns):
        """The `Blend` of column numbers [L]; columns after the end belong to the last segment."""
        starts = np.cumsum([0, *self.columns[:-1]])
        segment = np.searchsorted(starts, columns, side="right") - 1
        into = np.asarray(columns) - starts[segment]
        soft = (segment > 0) & (into < self.transition)
        weight = np.where(soft, (into + 1) / (self.transition + 1), 0)
        return Blend((segment - soft).astype(np.int32), weight.astype(np.float32))


def parse_classes(labels):
    """Splits [(label, columns), …] into labels and columns; columns of the last may be None.

    Returns:
      labels of the segments, their columns.

    Raises:
      ValueError: pairs of another form.
    """
    if not labels or not all(isinstance(item, tuple | list) and len(item) == 2 for item in labels):
        raise ValueError(f"a class schedule is a list of (label, columns), not {labels!r}.")
    return [label for label, _ in labels], tuple(columns for _, columns in labels)


def class_schedule(labels, class_columns, transition):
    """The `ClassSchedule` of labels [B] or [B, S].

    Raises:
      ValueError: it does not have one number of columns per class.
    """
    segments = labels.shape[1] if labels.ndim == 2 else 1
    class_columns = (None,) * segments if class_columns is None and segments == 1 else tuple(class_columns or ())
    if len(class_columns) != segments:
        raise ValueError(
            f"class_columns={class_columns or None} must say for each of the {segments} classes of a row how many "
            "columns it has."
        )
    return ClassSchedule(class_columns, transition)
