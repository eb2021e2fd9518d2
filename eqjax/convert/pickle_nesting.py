"""How deep values are nested, found without recursion."""

from collections.abc import Iterator
import itertools
from typing import Any

from eqjax.convert.torch_pickle import CheckpointFileError, Inert

# Training states are nested 10 deep. Whoever walks through the result recursively must not run out of stack.
MAX_DEPTH = 64

_CONTAINERS = (dict, list, tuple, set, frozenset, Inert)


def check_nesting(path: str, root: Any) -> None:
    """Checks that no path through the value is longer than `MAX_DEPTH`, and none returns to where it was.

    Values may be shared any number of times: each is entered once.

    Args:
      path: the file, for messages.
      root: the value of a pickle.

    Raises:
      CheckpointFileError: a value contains itself, or is nested deeper.
    """
    if not isinstance(root, _CONTAINERS):
        return
    heights: dict[int, int] = {id(root): 0}  # 0: on the path to the current value.
    walk: list[tuple[int, Iterator[Any]]] = [(id(root), _items(root))]
    tallest = [0]  # Greatest height so far inside each value on the path.
    while walk:
        for item in walk[-1][1]:
            if not isinstance(item, _CONTAINERS):
                continue
            height = heights.get(id(item))
            if height == 0:
                raise CheckpointFileError(f"{path} holds a pickle with a value that contains itself; refused.")
            if height is None:
                heights[id(item)] = 0
                walk.append((id(item), _items(item)))
                tallest.append(0)
                break
            tallest[-1] = max(tallest[-1], height)
        else:
            height = heights[walk.pop()[0]] = tallest.pop() + 1
            if tallest:
                tallest[-1] = max(tallest[-1], height)
            if height > MAX_DEPTH:
                raise CheckpointFileError(
                    f"{path} holds a pickle nested more than {MAX_DEPTH} deep, as no checkpoint is; refused."
                )


def _items(value: Any) -> Iterator[Any]:
    """Returns the values directly inside a container."""
    if isinstance(value, dict):
        return itertools.chain(value, value.values())
    return iter((value.state,) if isinstance(value, Inert) else value)
