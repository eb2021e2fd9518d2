"""Decoding columns as they come, with the latents of one window in memory.

Windows have one width, so that decoding compiles once; what lies left of the next window is final.

- `halo`: the tokenizer's operations are local. A window is a strip with the columns that decide it on
  either side, and the strips are the whole image's pixels.
- `overlap`: the tokenizer sees the whole window, as the published one does. Windows of the training
  width overlap, and pixels go linearly from one window to the next over the overlap.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from eqjax import pixels


@functools.partial(jax.jit, static_argnums=0)
def _decode(tokenizer, params, latents):
    return jnp.clip(tokenizer.apply({"params": params}, latents, method="decode").images, -1, 1)


class StreamDecoder:
    """Scaled latents in, strips of pixels out: of one image, or of a batch of images side by side.

    Attributes:
      window: columns decoded at once.
      received: columns taken in.
      emitted: columns given out.
      held: latents of columns that later windows need, float32 [n, D] or [B, n, D]; the last one is received − 1.
      tail: float pixels of columns from `emitted` on that the next window fades in over, or None.
    """

    STATE = ("received", "emitted", "held", "tail")

    def __init__(self, tokenizer, params, latent_scale, strip_columns, batch=()):
        self._decode = functools.partial(_decode, tokenizer, params)
        self._scale, self._width, self._strip = latent_scale, tokenizer.column_width, strip_columns
        self._halo = tokenizer.halo_columns
        if self._halo is None:
            self.window = max(2, tokenizer.resolution // tokenizer.column_width)  # Training images are square.
            self._strip = self.window - self.window // 2
        else:
            self.window = strip_columns + 2 * self._halo
        self.received = self.emitted = 0
        self.held = np.zeros((*batch, 0, tokenizer.embed_dim), np.float32)
        self.tail = None

    def push(self, latents, last=False):
        """Takes in columns.

        Args:
          latents: scaled, float32 [n, D]; [B, n, D] where `batch` is (B,).
          last: no others follow.

        Returns:
          strips, uint8 [H, w, 3] or [B, H, w, 3], that are final now.
        """
        strips = []
        self.held = np.concatenate([self.held, np.asarray(latents, np.float32)], axis=-2)
        self.received += latents.shape[-2]
        while self.emitted < self.received:
            first = self._first()
            if self.received < first + self.window or (last and self.received == first + self.window):
                break
            strips.append(self._decode_strip(first, self.emitted + self._strip))
        # Windows at the end are moved inside: the image's border stays a border.
        while last and self.emitted < self.received:
            first = max(min(self._first(), self.received - self.window), 0)
            reaches_end = first + self.window >= self.received
            stop = self.received if reaches_end else first + self.window - (self._halo or 0)
            strips.append(self._decode_strip(first, stop))
        return strips

    def _first(self):
        """The first column of the next window."""
        return max(self.emitted - (self._halo or 0), 0)

    def _decode_strip(self, first, stop):
        """Decodes the window at column `first` and gives the final pixels up to column `stop`."""
        start = self.received - self.held.shape[-2]
        latents = self.held[..., first - start : first - start + self.window, :]
        batch = latents.reshape(-1, *latents.shape[-2:])
        image = np.asarray(self._decode(batch / self._scale))  # [B, H, w, 3]
        image = image.reshape(*latents.shape[:-2], *image.shape[1:])
        image = image[..., (self.emitted - first) * self._width :, :]
        if self._halo is None:
            image = self._fade(image)
        cut = (stop - self.emitted) * self._width
        self.tail = image[..., cut:, :] if self._halo is None else None
        self.emitted = stop
        # The last `window` columns stay: a window that is moved inside at the end may need them.
        oldest = max(min(self._first(), self.received - self.window), start)
        self.held = self.held[..., oldest - start :, :]
        return np.asarray(pixels.to_uint8(image[..., :cut, :]))

    def _fade(self, image):
        """From the window before into this one, over the pixels that both have."""
        if self.tail is None or not self.tail.shape[-2]:
            return image
        n = min(self.tail.shape[-2], image.shape[-2])
        share = (np.arange(n, dtype=np.float32) + 0.5)[:, None] / n
        faded = (1 - share) * self.tail[..., :n, :] + share * image[..., :n, :]
        return np.concatenate([faded, image[..., n:, :]], axis=-2)

    def state(self):
        """What later strips depend on, {name: array}."""
        tail = np.zeros((0, 0, 3), np.float32) if self.tail is None else self.tail
        return dict(received=np.int64(self.received), emitted=np.int64(self.emitted), held=self.held, tail=tail)

    def restore(self, state):
        """Goes on from a `state`."""
        self.received, self.emitted = int(state["received"]), int(state["emitted"])
        self.held, self.tail = state["held"], state["tail"] if state["tail"].size else None
