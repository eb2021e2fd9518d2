"""An engine that paints stripes at once: the server and the page are tested without a model."""

import dataclasses
import hashlib
import itertools
import threading
import types

import numpy as np

from eqjax.serving import errors
from eqjax.serving.steering import Steering

HEIGHT, COLUMN_WIDTH, STRIP_COLUMNS = 64, 16, 8
CLASS_NAMES = ("brick", "galaxies", "tissue", "retina", "coffee", "cat", "rocket", "flower")
WARM = [[150, 60, 50], [20, 20, 50], [230, 210, 220], [230, 90, 60]]
COLORS = np.asarray([*WARM, [120, 70, 40], [170, 130, 100], [60, 90, 160], [40, 150, 140]])


@dataclasses.dataclass(frozen=True)
class Session:
    """What the real engine returns for a new session."""

    id: str
    seed: int
    sides: tuple[str, ...]
    photo: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Status:
    """Counts."""

    sessions: int
    max_sessions: int
    strips: int


class FakeEngine:
    """Keeps to the order of strips, their retries and the number of sessions, as the real one does."""

    height, column_width, strip_columns = HEIGHT, COLUMN_WIDTH, STRIP_COLUMNS
    strip_width, lookahead_columns = STRIP_COLUMNS * COLUMN_WIDTH, 0
    class_names = CLASS_NAMES

    def __init__(self, max_sessions=4):
        self.max_sessions, self.strips, self.failure = max_sessions, 0, None
        self.model = types.SimpleNamespace(tokenizer_params={"a": np.zeros(1)}, generator_params={"b": np.ones(1)})
        self.sessions, self._numbers, self._lock = {}, itertools.count(), threading.Lock()

    def start(self, progress=None):
        if progress is not None:
            progress("Compiling nothing")
        return self

    def close(self):
        self.sessions.clear()

    def open(self, *, seed, photo=None):
        with self._lock:
            if len(self.sessions) >= self.max_sessions:
                raise errors.Full("All places are taken.", 3)
            sides = ("right",) if photo is None else ("left", "right")
            if photo is not None:
                if photo.shape[0] < 8:
                    raise ValueError("an image of that height is too small.")
                rows = np.linspace(0, photo.shape[0] - 1, HEIGHT).astype(int)
                columns = np.linspace(0, photo.shape[1] - 1, 6 * COLUMN_WIDTH).astype(int)
                photo = photo[rows][:, columns]
            info = Session(f"session-{next(self._numbers)}", seed, sides, photo)
            self.sessions[info.id] = (info, {side: {} for side in sides}, {side: 0 for side in sides})
            return info

    def strip(self, session_id, side, index, steering, timeout=30.0):
        assert isinstance(steering, Steering) and timeout > 0
        with self._lock:
            if self.failure is not None:
                raise self.failure
            if session_id not in self.sessions:
                raise errors.UnknownSession("This session has ended: begin a new one.")
            if max(steering.first_class, steering.second_class) >= len(CLASS_NAMES):
                raise ValueError("first_class must be below 8.")
            info, drawn, counts = self.sessions[session_id]
            if side not in drawn:
                raise ValueError(f"this session has no {side} side.")
            if index != counts[side] and index not in drawn[side]:
                raise errors.WrongOrder(f"Strip {index} is not the next one.", counts[side])
            if index not in drawn[side]:
                drawn[side][index] = self._paint(info.seed, side, index, steering)
                drawn[side].pop(index - 3, None)
                counts[side], self.strips = counts[side] + 1, self.strips + 1
            return drawn[side][index]

    def _paint(self, seed, side, index, steering):
        """Returns stripes in the color of the class, which differ by seed, side and place."""
        text = f"{seed} {side} {index} {dataclasses.astuple(steering)}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little"))
        color = (1 - steering.mix) * COLORS[steering.first_class] + steering.mix * COLORS[steering.second_class]
        wave = 20 * np.sin(np.arange(self.strip_width)[None, :] / 9 + np.arange(HEIGHT)[:, None] / 14)
        pixels = color + wave[..., None] + rng.normal(0, 3, (HEIGHT, self.strip_width, 1))
        return np.clip(pixels, 0, 255).astype(np.uint8)

    def drop(self, session_id):
        if self.sessions.pop(session_id, None) is None:
            raise errors.UnknownSession("This session has ended: begin a new one.")

    def status(self):
        return Status(len(self.sessions), self.max_sessions, self.strips)
