"""Decoding columns as they arrive, with the latents of one window in memory.

All windows have one width, which images may be shorter than, so decoding compiles once; pixels to the left of the next
window are final.

- Tokenizers with a halo have limited reach. A window is a strip together with the columns on either side that affect
  it, and the strips equal the pixels of the whole image.
- Other tokenizers, such as the published one, see the whole window. Windows of the training width overlap, and pixels
  fade linearly from one window to the next over the overlap.

Letters: B images, n columns, D latent size, H height, w width of a strip.
"""

from collections.abc import Mapping
import dataclasses
import functools

from jaxtyping import Float, Shaped
import numpy as np

from eqjax import pixels
from eqjax.tokenizer import Tokenizer
from eqjax.tokenizer.windows import check_finite, decode_window
from eqjax.typing import Params


@dataclasses.dataclass(frozen=True)
class Window:
    """Columns to be decoded at once, and the strip that they determine.

    Attributes:
      first: column at which the window begins.
      stop: column at which the strip ends; it begins at column `emitted`.
      latents: unscaled latents, with zeros behind the last column.
      count: columns of the window that belong to the image.
    """

    first: int
    stop: int
    latents: Float[np.ndarray, "*B window D"]
    count: int


class StreamDecoder:
    """Decodes scaled latents to strips of pixels, for one image or for a batch of images.

    Attributes:
      height: height of the strips, pixels.
      window: columns decoded at once.
      received: columns received.
      emitted: columns returned.
      held: latents of columns that later windows need, [n, D] or [B, n, D]; the last one is column received − 1.
      tail: float pixels from column `emitted` on, into which the next window fades, or None.
    """

    STATE = ("received", "emitted", "held", "tail")

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: Params,
        latent_scale: float,
        strip_columns: int,
        batch_shape: tuple[int, ...] = (),
        early: bool = False,
    ) -> None:
        """Prepares a decoder.

        Args:
          tokenizer: the tokenizer.
          params: its parameters.
          latent_scale: factor that latents have been multiplied by.
          strip_columns: columns per strip, if the tokenizer has a halo.
          batch_shape: (), or (B,).
          early: decodes a strip as soon as the columns that it sees are there, also in windows that are not full; if
            the tokenizer has a halo. No image that ends is decoded so.
        """
        self._decode_window = functools.partial(decode_window, tokenizer, params, to_uint8=False)
        self._scale, self._width, self._strip = latent_scale, tokenizer.column_width, strip_columns
        self._height, self._halo = tokenizer.resolution, tokenizer.halo_columns
        self._early = early and self._halo is not None
        if self._halo is None:
            self.window = max(2, tokenizer.resolution // tokenizer.column_width)  # Training images are square.
            self._strip = self.window - self.window // 2
        else:
            self.window = strip_columns + 2 * self._halo
        self.received = self.emitted = 0
        self.held: Float[np.ndarray, "*B n D"] = np.zeros((*batch_shape, 0, tokenizer.embed_dim), np.float32)
        self.tail: Float[np.ndarray, "*B H w 3"] | None = None

    def push(self, latents: Float[np.ndarray, "*B n D"], last: bool = False) -> list[Shaped[np.ndarray, "*B H _w 3"]]:
        """Receives columns; returns the strips that are final now, uint8.

        Args:
          latents: scaled latents.
          last: no columns follow.

        Raises:
          ValueError: latents are not finite.
        """
        self.receive(latents)
        strips = []
        while (window := self.next_window(last)) is not None:
            batch = window.latents.reshape(-1, *window.latents.shape[-2:])
            decoded = np.asarray(self._decode_window(batch, np.int32(window.count)))  # [B, H, w, 3]
            strip = self.finish(window, decoded.reshape(*window.latents.shape[:-2], *decoded.shape[1:]))
            strips.append(np.asarray(pixels.to_uint8(strip)))
        return strips

    def receive(self, latents: Float[np.ndarray, "*B n D"]) -> None:
        """Receives scaled latents of columns; `next_window` and `finish` decode them.

        Raises:
          ValueError: latents are not finite.
        """
        check_finite(latents)
        self.held = np.concatenate([self.held, np.asarray(latents, np.float32)], axis=-2)
        self.received += latents.shape[-2]

    def skip(self, columns: int) -> None:
        """Leaves out the first columns of an image whose tokenizer has a halo: the first strip begins behind them.

        Args:
          columns: how many, at most `received`.
        """
        start, self.emitted = self.received - self.held.shape[-2], columns
        self.held = self.held[..., self._first_of_window() - start :, :]

    def missing(self) -> int:
        """Returns the number of columns to be received before `next_window` has a window, 0 if it has one."""
        first = self._first_of_window()
        needed = first + self.window
        if self._early:
            needed = self.emitted + self._strip + (self._halo or 0)
        return max(needed - self.received, 0)

    def next_window(self, last: bool = False) -> Window | None:
        """Returns the next window whose strip is determined by the columns received, or None.

        Args:
          last: no columns follow.
        """
        first, stop = self._first_of_window(), self.emitted + self._strip
        if last and self.emitted < self.received <= first + self.window:
            # Windows at the end are moved inside, so that the image's border stays a border.
            first = max(min(first, self.received - self.window), 0)
            stop = self.received
        elif self.missing() or self.emitted >= self.received:
            return None
        start = self.received - self.held.shape[-2]
        latents = self.held[..., first - start : first - start + self.window, :] / np.float32(self._scale)
        count = latents.shape[-2]  # An image can be shorter than a window.
        padding = [(0, 0)] * (latents.ndim - 2) + [(0, self.window - count), (0, 0)]
        return Window(first, stop, np.pad(latents, padding), count)

    def _first_of_window(self) -> int:
        """Returns the first column of the next window."""
        return max(self.emitted - (self._halo or 0), 0)

    def finish(self, window: Window, decoded: Float[np.ndarray, "*B H w 3"]) -> Float[np.ndarray, "*B H _v 3"]:
        """Returns the strip of a decoded window, float pixels in [-1, 1].

        Args:
          window: the window that `next_window` returned last.
          decoded: its pixels.
        """
        image = np.clip(decoded[..., : window.count * self._width, :], -1, 1)
        image = image[..., (self.emitted - window.first) * self._width :, :]
        if self._halo is None:
            image = self._fade_in(image)
        cut = (window.stop - self.emitted) * self._width
        self.tail = image[..., cut:, :] if self._halo is None else None
        self.emitted = window.stop
        # The last `window` columns stay: a window that is moved inside at the end may need them.
        start = self.received - self.held.shape[-2]
        oldest = max(min(self._first_of_window(), self.received - self.window), start)
        self.held = self.held[..., oldest - start :, :]
        return np.ascontiguousarray(image[..., :cut, :])

    def _fade_in(self, image: Float[np.ndarray, "*B H _w 3"]) -> Float[np.ndarray, "*B H _w 3"]:
        """Fades from the previous window into this one, over the pixels that both have."""
        if self.tail is None or not self.tail.shape[-2]:
            return image
        n = min(self.tail.shape[-2], image.shape[-2])
        weight = (np.arange(n, dtype=np.float32) + 0.5)[:, None] / n
        faded = (1 - weight) * self.tail[..., :n, :] + weight * image[..., :n, :]
        return np.concatenate([faded, image[..., n:, :]], axis=-2)

    def state(self) -> dict[str, np.ndarray]:
        """Returns everything that later strips depend on."""
        tail = np.zeros((*self.held.shape[:-2], 0, 0, 3), np.float32) if self.tail is None else self.tail
        received, emitted = np.asarray(self.received), np.asarray(self.emitted)
        return {"received": received, "emitted": emitted, "held": self.held, "tail": tail}

    def expected_state(self, received: int) -> dict[str, tuple[str, list[tuple[int, int]]]]:
        """Returns kind of dtype, and least and largest length of each axis, of the arrays of `state`.

        Args:
          received: columns received.
        """
        batch = [(n, n) for n in self.held.shape[:-2]]
        held = [*batch, (0, min(received, self.window)), (self.held.shape[-1],) * 2]
        tail = [*batch, (0, self._height), (0, self.window * self._width), (3, 3)]
        return {"received": ("i", []), "emitted": ("i", []), "held": ("f", held), "tail": ("f", tail)}

    def restore(self, state: Mapping[str, np.ndarray], source: str) -> None:
        """Resumes from a `state`, whose arrays have the shapes of `expected_state`.

        Args:
          state: the arrays.
          source: name of their origin for messages.

        Raises:
          ValueError: numbers and arrays contradict each other.
        """
        self.received, self.emitted = int(state["received"]), int(state["emitted"])
        self.held, self.tail = state["held"], state["tail"] if state["tail"].size else None
        oldest, needed = self.received - self.held.shape[-2], min(self._first_of_window(), self.received - self.window)
        if not 0 <= self.emitted <= self.received or oldest > max(needed, 0):
            raise ValueError(
                f"{source} is not a saved panorama: {self.emitted} of {self.received} columns are decoded, and the "
                f"last {self.held.shape[-2]} are kept."
            )
