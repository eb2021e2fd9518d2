"""Writes images and animations, in the format that the file's extension names.

    .png          images, exact
    .jpg, .jpeg   images, quality 95, up to 65 500 pixels a side
    .webp         images, quality 90, up to 16 383 pixels a side; animations, quality 80
    .gif          animations, 128 colors a frame; plays everywhere, and is the largest
    .mp4          animations, H.264, the smallest; needs PyAV: pip install 'eqjax[video]'

An animation is a window that moves along an image from left to right. Files are written whole or not at all.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import os
from typing import Any

import numpy as np
from PIL import Image

from eqjax import extras
from eqjax.io import atomic_write
from eqjax.messages import show
from eqjax.rules import Array, Integer

FRAMES_PER_SECOND = 25

_IMAGE = Array(("height", "width", 3), "uint8")


@dataclasses.dataclass(frozen=True)
class _Format:
    """Pillow's name of an image format, its options, and the largest side it can hold; None is unlimited."""

    name: str
    options: dict[str, Any]
    max_side: int | None = None


_JPEG = _Format("JPEG", dict(quality=95, subsampling=0), 65500)
_IMAGES = {
    ".png": _Format("PNG", {}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _Format("WEBP", dict(quality=90, method=4), 16383),
}


@dataclasses.dataclass(frozen=True)
class AnimationSize:
    """What `save_animation` has written.

    Attributes:
      num_frames: number of frames; 1 is a still.
      height: height of a frame in pixels.
      width: width of a frame in pixels.
    """

    num_frames: int
    height: int
    width: int


def check_image_path(path: str | os.PathLike[str], *, height: int = 1, width: int = 1) -> None:
    """Checks that `save_image` can write such a file, before the work whose result it is to hold.

    Args:
      path: the file.
      height: height of the image in pixels, if it is known.
      width: width of the image in pixels, if it is known.

    Raises:
      ValueError: the extension names no format of images, or the format cannot hold an image of that size.
      IsADirectoryError: the path is a folder.

    Example:
      >>> check_image_path("photo.tif")
      Traceback (most recent call last):
      ...
      ValueError: photo.tif: an image's extension is one of .png, .jpg, .jpeg, .webp; found '.tif'.
    """
    extension = _extension(path, "an image", _IMAGES, _ANIMATIONS, "--animation or eqjax.save_animation")
    largest = _IMAGES[extension].max_side
    if largest is not None and max(height, width) > largest:
        raise ValueError(
            f"{os.fspath(path)}: {extension} files hold at most {largest} pixels a side, and the image has "
            f"{width} × {height}; use .png."
        )


def save_image(path: str | os.PathLike[str], image: Any) -> None:
    """Writes an image in the format that the extension names.

    Args:
      path: the file, with the extension .png, .jpg, .jpeg or .webp.
      image: uint8 [H, W, 3]; `eqjax.pixels.to_uint8` converts floats, `eqjax.pixels.grid` arranges several images.

    Raises:
      ValueError: the extension names no format of images, the image has another shape, or is too large for it.
      TypeError: the image is no array of uint8.

    Example:
      >>> save_image("gray.png", np.full((64, 128, 3), 127, np.uint8))
    """
    image = np.asarray(_IMAGE.check("image", image))
    check_image_path(path, height=image.shape[0], width=image.shape[1])
    chosen = _IMAGES[os.path.splitext(os.fspath(path))[1].lower()]
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, chosen.name, **chosen.options)


def check_animation_path(path: str | os.PathLike[str]) -> None:
    """Checks that `save_animation` can write such a file, before the work whose result it is to show.

    Args:
      path: the file.

    Raises:
      ValueError: the extension names no format of animations.
      ModuleNotFoundError: it needs an optional package that is not installed.
      IsADirectoryError: the path is a folder.
    """
    if _extension(path, "an animation", _ANIMATIONS, _IMAGES, "--output or eqjax.save_image") == ".mp4":
        extras.require("av", f"{os.fspath(path)}: mp4 files need PyAV (.webp and .gif do not)")


def save_animation(
    path: str | os.PathLike[str],
    strips: Any,
    *,
    frame_width: Any = None,
    pixels_per_frame: Any = 4,
) -> AnimationSize:
    """Writes an animation of a window that moves along an image, 25 frames per second.

    Frames are made one at a time, so that memory does not grow with their number. Strips are read as they come: GIF
    and mp4 need memory for a few of them only; WebP needs memory for the pixels of the whole image.

    Args:
      path: the file, with the extension .gif, .webp or .mp4.
      strips: the image, uint8 [H, W, 3], or its pieces from left to right, such as the strips of a panorama; they
        have to end.
      frame_width: width of the window in pixels; None is four times the height. A narrower image is one frame.
      pixels_per_frame: pixels by which the window moves from frame to frame, at least 1.

    Returns:
      The number of frames and their size; mp4 repeats the last row or column of odd sizes.

    Raises:
      ValueError: the extension names no format of animations, a strip has another shape or height, there are no
        strips, or a number is below 1.
      TypeError: a strip is no array of uint8, or a number is no integer.
      ModuleNotFoundError: the format needs an optional package that is not installed.

    Example:
      >>> save_animation("pan.webp", np.zeros((16, 100, 3), np.uint8), frame_width=60)
      AnimationSize(num_frames=11, height=16, width=60)
    """
    frame_width = Integer(least=1, optional=True).check("frame_width", frame_width)
    pixels_per_frame = Integer(least=1).check("pixels_per_frame", pixels_per_frame)
    check_animation_path(path)
    write = _ANIMATIONS[os.path.splitext(os.fspath(path))[1].lower()]
    frames = _Frames(_as_strips(strips), frame_width, pixels_per_frame)
    with atomic_write(path) as temporary:
        write(temporary, frames)
    return AnimationSize(frames.count, *frames.size)


def _extension(path: str | os.PathLike[str], what: str, known: Iterable[str], others: Iterable[str], place: str) -> str:
    """Returns the extension of a path in small letters, after checking it."""
    path = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder; give the name of a file.")
    found = os.path.splitext(path)[1].lower()
    if found not in known:
        elsewhere = f" ({found} files are for {place})" if found in others else ""
        raise ValueError(
            f"{path}: {what}'s extension is one of {', '.join(known)}; found {found or 'none'!r}{elsewhere}."
        )
    return found


def _as_strips(strips: Any) -> Iterator[np.ndarray]:
    """Yields the checked pieces of an image, which may be in one piece."""
    rule = _IMAGE
    if not isinstance(strips, Iterable):
        raise TypeError(f"strips={show(strips)} must be an image, or its pieces from left to right.")
    for number, strip in enumerate([strips] if getattr(strips, "ndim", None) == 3 else strips):
        strip = np.asarray(rule.check(f"strips[{number}]", strip))
        rule = Array((strip.shape[0], "width", 3), "uint8")  # All have the height of the first.
        yield strip


class _Frames(Iterator[np.ndarray]):
    """The frames of a window that moves along strips; counts them, and holds only the pixels that it still needs."""

    def __init__(self, strips: Iterator[np.ndarray], width: int | None, step: int) -> None:
        self._strips, self._step = strips, step
        first = next(strips, None)
        if first is None:
            raise ValueError("strips: there are none, expected at least one.")
        self._pixels: np.ndarray = first
        self._width = width or 4 * self._pixels.shape[0]
        self._left, self.count = 0, 0
        self._extend()
        self._width = min(self._width, self._pixels.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self._pixels.shape[0], self._width

    def __next__(self) -> np.ndarray:
        self._extend()
        frame = self._pixels[:, self._left : self._left + self._width]
        if frame.shape[1] < self._width:
            raise StopIteration
        self._left, self.count = self._left + self._step, self.count + 1
        return frame

    def _extend(self) -> None:
        """Appends strips until the window is full, or no more come; forgets the pixels left of the window."""
        while self._pixels.shape[1] < self._left + self._width and (strip := next(self._strips, None)) is not None:
            passed = min(self._left, self._pixels.shape[1])
            self._pixels = np.concatenate([self._pixels[:, passed:], strip], axis=1)
            self._left -= passed

    def rest(self) -> list[np.ndarray]:
        """Returns the remaining frames, as views of one array that holds all remaining pixels."""
        self._pixels = np.concatenate([self._pixels, *self._strips], axis=1)
        return list(self)


class _LazyImage:
    """An image of several frames for Pillow, which are made when Pillow seeks them: a list would hold them all."""

    def __init__(self, frames: list[np.ndarray]) -> None:
        self._frames, self.n_frames = frames, len(frames)

    def seek(self, frame: int) -> None:
        """Makes a frame the current one."""
        self._image = Image.fromarray(self._frames[frame])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image, name)


def _write_gif(path: str, frames: _Frames) -> None:
    images = (Image.fromarray(frame).quantize(128) for frame in frames)
    next(images).save(
        path, "GIF", save_all=True, append_images=images, duration=1000 // FRAMES_PER_SECOND, loop=0, optimize=False
    )


def _write_webp(path: str, frames: _Frames) -> None:
    first, *others = frames.rest()
    Image.fromarray(first).save(
        path,
        "WEBP",
        save_all=True,
        append_images=[_LazyImage(others)] if others else [],
        duration=1000 // FRAMES_PER_SECOND,
        loop=0,
        quality=80,
        method=2,
    )


def _write_mp4(path: str, frames: _Frames) -> None:
    import av

    codec = next((name for name in ("libx264", "libopenh264") if name in av.codecs_available), None)
    if codec is None:
        raise ValueError("mp4: this PyAV has no encoder of H.264; write .webp, or install the package av from PyPI.")
    height, width = frames.size
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream(codec, rate=FRAMES_PER_SECOND, options={"crf": "20"})
        # Players expect colors at half the resolution, and so even sizes.
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        for frame in frames:
            padded = np.pad(frame, [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(stream.encode())


_ANIMATIONS: dict[str, Callable[[str, _Frames], None]] = {".gif": _write_gif, ".webp": _write_webp, ".mp4": _write_mp4}
