"""Sessions of the engine: what is remembered of a viewer between two strips.

Letters: H height, w width of a strip in pixels, P columns of a photograph, D latent size.
"""

import collections
from concurrent import futures
import copy
import dataclasses

from jaxtyping import Float, UInt8, UInt32
import numpy as np

from eqjax import pixels
from eqjax.sampling.outpainting import fade_at_right
from eqjax.sampling.streaming import StreamDecoder, Window
from eqjax.sampling.strips import StripState
from eqjax.serving.steering import Steering

# Strips of a side that can be asked for again.
KEPT_STRIPS = 3


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """What a viewer is told when a session begins.

    Attributes:
      id: random name of the session.
      seed: its seed.
      sides: directions in which the image grows, "right", or "left" and "right" with a photograph.
      photo: the photograph at the model's height, cropped to whole columns, without its first and last column: with
        these, faded into their reconstructions, the strips of the two sides begin. None without a photograph.
    """

    id: str
    seed: int
    sides: tuple[str, ...]
    photo: UInt8[np.ndarray, "H w 3"] | None = None


@dataclasses.dataclass(frozen=True)
class Status:
    """How an engine does.

    Attributes:
      sessions: sessions that are alive.
      max_sessions: how many there may be.
      waiting: requests that wait for a slot.
      columns_per_second: columns that all slots together draw in a second, measured at the start.
      strips: strips drawn since the start.
      latency: median of the seconds from request to strip, over the last 100 strips; 0 before the first.
    """

    sessions: int
    max_sessions: int
    waiting: int
    columns_per_second: float
    strips: int
    latency: float


@dataclasses.dataclass
class Drawing:
    """Everything that drawing a strip changes. Arrays are replaced, never written to, so that a copy is a snapshot.

    Attributes:
      state: the sampler's state.
      decoder: the columns that wait to be decoded.
      prefix: latents of a photograph that the sampler has not seen yet, or None.
      seam: the last column of a photograph, float pixels, until the first strip begins with it, or None.
      hidden: pixels at the beginning of the image that no strip shows.
      waiting: pixels that are decoded and not yet part of a strip.
    """

    state: StripState
    decoder: StreamDecoder
    prefix: Float[np.ndarray, "P D"] | None = None
    seam: Float[np.ndarray, "H w 3"] | None = None
    hidden: int = 0
    waiting: Float[np.ndarray, "H w 3"] | None = None

    def copy(self) -> "Drawing":
        """Returns a drawing that can go on alone."""
        return dataclasses.replace(self, decoder=copy.copy(self.decoder))

    def width(self) -> int:
        """Returns the pixels that wait to be shown."""
        return 0 if self.waiting is None else self.waiting.shape[1]

    def add(self, window: Window, decoded: Float[np.ndarray, "H w 3"]) -> None:
        """Adds the strip of a decoded window."""
        strip = self.decoder.finish(window, decoded)
        dropped = min(self.hidden, strip.shape[1])
        self.hidden, strip = self.hidden - dropped, strip[:, dropped:]
        self.waiting = strip if self.waiting is None else np.concatenate([self.waiting, strip], axis=1)

    def take(self, width: int) -> UInt8[np.ndarray, "H w 3"]:
        """Returns the next strip, for which there are enough pixels."""
        assert self.waiting is not None
        strip, self.waiting = self.waiting[:, :width], self.waiting[:, width:].copy()
        if self.seam is not None:
            fade = self.seam.shape[1]
            faded = fade_at_right(self.seam, strip[:, :fade], fade)
            strip, self.seam = np.concatenate([faded, strip[:, fade:]], axis=1), None
        return np.asarray(pixels.to_uint8(np.ascontiguousarray(strip)))


@dataclasses.dataclass
class Side:
    """One direction in which a session's image grows.

    Attributes:
      key: data of the random key.
      drawing: the state after the strips drawn so far.
      is_mirrored: whether it grows to the left.
      next_index: index of the next strip.
      kept: the last strips by their indices.
      request: the request for the next strip, or None.
    """

    key: UInt32[np.ndarray, "..."]
    drawing: Drawing
    is_mirrored: bool = False
    next_index: int = 0
    kept: collections.OrderedDict[int, UInt8[np.ndarray, "H w 3"]] = dataclasses.field(
        default_factory=collections.OrderedDict
    )
    request: "Request | None" = None

    def keep(self, request: "Request", strip: UInt8[np.ndarray, "H w 3"]) -> None:
        """Takes over the drawing of a request, and its strip."""
        assert request.drawing is not None
        self.drawing, self.kept[self.next_index] = request.drawing, strip
        if len(self.kept) > KEPT_STRIPS:
            self.kept.popitem(last=False)
        self.next_index += 1


@dataclasses.dataclass
class Session:
    """A viewer.

    Attributes:
      sides: the sides by name.
      last_used: time of the last request, or of its answer, by the engine's clock.
    """

    sides: dict[str, Side]
    last_used: float

    @property
    def is_waiting(self) -> bool:
        """Whether a strip is being drawn."""
        return any(side.request is not None for side in self.sides.values())


@dataclasses.dataclass(eq=False)
class Request:
    """A strip that somebody waits for.

    Attributes:
      side: the side, whose `next_index` is the strip's.
      session: the session.
      steering: what governs the columns that are sampled for it.
      asked: when, by the engine's clock.
      drawing: the side's drawing while the strip is drawn.
      future: the strip, or an error.
    """

    side: Side
    session: Session
    steering: Steering
    asked: float
    drawing: Drawing | None = None
    future: "futures.Future[np.ndarray]" = dataclasses.field(default_factory=futures.Future)


@dataclasses.dataclass(eq=False)
class PhotoRequest:
    """A photograph whose latents somebody waits for.

    Attributes:
      photo: the photograph, of the model's height.
      future: latents of it, and of it in the mirror, or an error.
    """

    photo: UInt8[np.ndarray, "H W 3"]
    future: "futures.Future[np.ndarray]" = dataclasses.field(default_factory=futures.Future)
