"""Saved states of panoramas: compared with a checksum, and with what the panorama expects before they are read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
from typing import Any

from jaxtyping import Shaped
import numpy as np

from eqjax import npz
from eqjax.fingerprint import fingerprint
from eqjax.messages import shorten
from eqjax.model import Model
from eqjax.pretrained import module_to_dict

FORMAT = "eqjax-panorama-2"
# Bound of all arrays of a file together.
_MAX_BYTES = 2**33

# What is expected of an array: its kind of dtype, and the bounds (least, largest) of each axis.
Expected = Mapping[str, tuple[str, Sequence[tuple[int, int]]]]


@dataclasses.dataclass(frozen=True)
class SavedState:
    """A state that was opened, but of which nothing but the text is read.

    Attributes:
      source: name of the file, for messages.
      about: JSON values of the state.
    """

    source: str
    about: dict[str, Any]
    _declared: Mapping[str, tuple[str, tuple[int, ...]]]
    _read: Callable[[str], Shaped[np.ndarray, "..."]]

    def arrays(self, expected: Expected) -> dict[str, np.ndarray]:
        """Returns the arrays.

        Args:
          expected: kind and bounds of the shape of each of them.

        Raises:
          ValueError: an array is lost or of another kind or shape, or the checksum differs.
        """
        for name, (kind, shape) in expected.items():
            if name not in self._declared:
                raise ValueError(f"{self.source} is not a saved panorama of format {FORMAT!r} (it has no {name}).")
            found_kind, found = self._declared[name]
            fits = len(found) == len(shape) and all(a <= n <= b for n, (a, b) in zip(found, shape, strict=True))
            if not fits or found_kind != kind:
                text = " × ".join(str(a) if a == b else f"({a} … {b})" for a, b in shape) or "one number"
                raise ValueError(
                    f"{self.source} does not fit this panorama: {name} has shape {shorten(str(found))} and dtypes of "
                    f"kind {found_kind!r}; expected {text} and kind {kind!r}."
                )
        arrays = {name: self._read(name) for name in expected}
        if not npz.signed_values(self._read("about"), arrays)[1]:
            raise ValueError(
                f"{self.source} is not a saved panorama of format {FORMAT!r}, or is damaged: its checksum differs. "
                "Begin the panorama again."
            )
        return arrays


@contextlib.contextmanager
def open_state(
    state: str | os.PathLike[str] | Mapping[str, Shaped[np.ndarray, "..."]], names: Sequence[str]
) -> Iterator[SavedState]:
    """Opens a file of a state, or the arrays of one.

    Args:
      state: path of a file, or the arrays.
      names: names of the arrays.

    Yields:
      The state.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no saved state, or of another format.
    """
    if isinstance(state, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in state.items()}
        declared = {name: (array.dtype.kind, array.shape) for name, array in arrays.items()}
        yield SavedState("this state", _about("this state", arrays.get("about")), declared, arrays.__getitem__)
        return
    path = os.fspath(state)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no saved panorama at {path}.")
    kinds = {**dict.fromkeys(names, npz.NUMBERS), "about": npz.TEXT}
    # Caches are zeros at first: not their expansion is bounded, but their shapes, by those that the model has.
    with npz.open_npz(path, kinds, max_bytes=_MAX_BYTES, expansion_floor=_MAX_BYTES, what="a saved panorama") as file:
        about = _about(path, file.read("about") if "about" in file.entries else None)
        declared = {name: (entry.dtype.kind, entry.shape) for name, entry in file.entries.items()}
        yield SavedState(path, about, declared, file.read)


def _about(source: str, text: np.ndarray | None) -> dict[str, Any]:
    reason = "it has no about"
    try:
        values = npz.signed_values(text, {})[0] if text is not None else {}
        if values.get("format") == FORMAT:
            return values
        reason = f"its format is {shorten(repr(values.get('format')))}" if values else reason
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{source} is not a saved panorama of format {FORMAT!r} ({reason}).")


def identity(model: Model) -> dict[str, Any]:
    """Returns JSON values that identify a model: fields of both modules, latent scale, fingerprints of the weights."""
    identity = {
        "latent_scale": float(model.latent_scale),
        "tokenizer": module_to_dict(model.require("tokenizer")),
        "tokenizer_weights": fingerprint(model.tokenizer_params),
        "generator": module_to_dict(model.require("generator")),
        "generator_weights": fingerprint(model.generator_params),
    }
    return json.loads(json.dumps(identity))
