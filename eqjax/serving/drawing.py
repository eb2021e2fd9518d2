"""Draws strips for all slots: which columns a strip needs, and when its windows can be decoded."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import time
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np

from eqjax.model import Model
from eqjax.rules import Array
from eqjax.sampling.options import SamplingOptions
from eqjax.sampling.outpainting import fit_image
from eqjax.sampling.streaming import StreamDecoder
from eqjax.serving.programs import MAX_PHOTO_COLUMNS, Programs, Row
from eqjax.serving.sessions import Drawing, Request, Session, Side
from eqjax.serving.steering import Steering

# Seconds of drawing in which the speed is measured, at least.
_MEASURED_SECONDS = 0.5
# The narrowest photograph: its first and its last column fade into the two sides.
_LEAST_PHOTO_COLUMNS = 3


class Artist:
    """Draws strips of several requests together; used by one thread at a time.

    Attributes:
      num_slots: requests drawn together at most.
      lookahead_columns: columns sampled ahead of a strip.
    """

    def __init__(self, model: Model, options: SamplingOptions, num_slots: int, strip_columns: int) -> None:
        """Prepares the programs.

        Args:
          model: a model with tokenizer and generator.
          options: see `Programs`.
          num_slots: requests drawn together at most.
          strip_columns: columns of a strip.
        """
        self._model, self.num_slots, self._strip_columns = model, num_slots, strip_columns
        self._tokenizer = model.require("tokenizer")
        self._width = strip_columns * self._tokenizer.column_width
        halo = self._tokenizer.halo_columns
        self.lookahead_columns = self._decoder().window if halo is None else halo
        with model.with_precision():
            self._programs = Programs(model, options, num_slots, strip_columns)

    def _decoder(self) -> StreamDecoder:
        model = self._model
        return StreamDecoder(
            self._tokenizer, model.tokenizer_params, model.latent_scale, self._strip_columns, early=True
        )

    def sides(
        self, seed: int, photo: UInt8[np.ndarray, "H W 3"] | None, latents: Float[np.ndarray, "2 P D"] | None
    ) -> dict[str, Side]:
        """Returns the sides of a session before their first strips.

        Args:
          seed: its seed.
          photo: the photograph from which they begin, of the model's height, or None.
          latents: its `encode`.
        """
        if photo is None or latents is None:
            return {"right": self._side(seed)}
        floats = _to_floats(photo)
        left = self._side(seed + 1, floats[:, ::-1], latents[1])
        left.is_mirrored = True
        return {"left": left, "right": self._side(seed, floats, latents[0])}

    def _side(
        self,
        seed: int,
        photo: Float[np.ndarray, "H W 3"] | None = None,
        latents: Float[np.ndarray, "P D"] | None = None,
    ) -> Side:
        """Returns a side that grows to the right."""
        drawing = Drawing(self._programs.first_state, self._decoder())
        if photo is not None and latents is not None:
            # Strips begin with the photograph's last column, which fades into its reconstruction.
            known = latents.shape[0] - 1
            drawing.prefix, drawing.seam = latents, photo[:, known * self._tokenizer.column_width :].copy()
            drawing.decoder.receive(latents)
            if self._tokenizer.halo_columns is None:
                drawing.hidden = known * self._tokenizer.column_width
            else:
                drawing.decoder.skip(known)
        return Side(self._programs.key(seed), drawing)

    def with_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which the thread that draws computes in the model's precision."""
        return self._model.with_precision()

    def fit(self, photo: Any) -> UInt8[np.ndarray, "H w 3"]:
        """Returns a photograph of the model's height and of whole columns.

        Args:
          photo: an image [H, W, 3], uint8.

        Raises:
          ValueError: it is narrower or wider than what is drawn, or has another shape.
          TypeError: it is no array of pixels.
        """
        photo = np.asarray(Array(("height", "width", 3), "uint8").check("photo", photo))
        photo, width = fit_image(photo, self._tokenizer), self._tokenizer.column_width
        columns = photo.shape[1] // width
        if not _LEAST_PHOTO_COLUMNS <= columns <= MAX_PHOTO_COLUMNS:
            raise ValueError(
                f"the photo is {columns * width} pixels wide at a height of {self._tokenizer.resolution}; expected "
                f"{_LEAST_PHOTO_COLUMNS * width} … {MAX_PHOTO_COLUMNS * width}: cut out a part of another shape."
            )
        return photo

    def encode(self, photo: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "2 P D"]:
        """Returns the scaled latents of a photograph of the model's height, and of it in the mirror."""
        return self._programs.encode(_to_floats(photo))

    def step(self, requests: Sequence[Request]) -> list[Request]:
        """Samples and decodes once for every request; returns those whose strip is ready.

        Args:
          requests: at most `num_slots` requests. Their drawings go on, the sides' stay as they are.
        """
        for request in requests:
            if request.drawing is None:
                request.drawing = self._begin(request)
        drawings = [(request, request.drawing) for request in requests if request.drawing is not None]
        rows, sampled = [], []
        for request, drawing in drawings:
            missing = drawing.decoder.missing()
            if missing and drawing.width() < self._width:
                count = min(missing, self._strip_columns)
                rows.append(Row(drawing.state, request.side.key, request.steering, count))
                sampled.append(drawing)
        if rows:
            for drawing, (state, latents) in zip(sampled, self._programs.sample(rows), strict=True):
                drawing.state = state
                drawing.decoder.receive(latents)
        windows = [
            (drawing, window)
            for _, drawing in drawings
            if drawing.width() < self._width and (window := drawing.decoder.next_window()) is not None
        ]
        if windows:
            decoded = self._programs.decode([window for _, window in windows])
            for (drawing, window), image in zip(windows, decoded, strict=True):
                drawing.add(window, image)
        return [request for request, drawing in drawings if drawing.width() >= self._width]

    def strip(self, request: Request) -> UInt8[np.ndarray, "H w 3"]:
        """Returns the strip of a request that `step` has returned; nobody can write to it."""
        assert request.drawing is not None
        strip = request.drawing.take(self._width)
        strip = np.ascontiguousarray(strip[:, ::-1] if request.side.is_mirrored else strip)
        strip.setflags(write=False)  # All who ask get this array.
        return strip

    def _begin(self, request: Request) -> Drawing:
        """Returns a copy of a side's drawing, in which the sampler has seen the photograph."""
        drawing = request.side.drawing.copy()
        if drawing.prefix is not None:
            drawing.state = self._programs.prefill(drawing.state, drawing.prefix, request.steering)
            drawing.prefix = None
        return drawing

    def prepare(self, tell: Callable[[str], object]) -> float:
        """Compiles everything by drawing, and returns how many columns are drawn in a second, by all slots together.

        Args:
          tell: called with a few words on what is done next.
        """
        with self._model.with_precision():
            tell("compiling: photographs")
            height, width = self._tokenizer.resolution, self._tokenizer.column_width
            photo = np.zeros((height, 3 * width, 3), np.uint8)
            sides = self.sides(0, photo, self.encode(photo))
            tell("compiling: strips")
            self._draw_once(sides)
            tell("measuring the speed")
            crowd = {str(i): self._side(i) for i in range(self.num_slots)}
            self._draw_once(crowd)  # First strips take more columns than others.
            strips, begin = 0, time.perf_counter()
            while strips < 2 or time.perf_counter() < begin + _MEASURED_SECONDS:
                self._draw_once(crowd)
                strips += 1
            return strips * self.num_slots * self._strip_columns / (time.perf_counter() - begin)

    def _draw_once(self, sides: Mapping[str, Side]) -> None:
        """Draws one strip of every side."""
        session = Session(dict(sides), 0.0)
        waiting = [Request(side, session, Steering(0, 0), 0.0) for side in sides.values()]
        while waiting:
            batch = waiting[: self.num_slots]
            for request in self.step(batch):
                request.side.keep(request, self.strip(request))
                waiting.remove(request)


def _to_floats(photo: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """Converts pixels as `eqjax.pixels.from_uint8` does, on the host: JAX would compile it for every width."""
    return photo.astype(np.float32) / np.float32(127.5) - np.float32(1)
