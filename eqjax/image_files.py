"""Reads image files as uint8 RGB, by one rule for training, evaluation and commands.

    format              BMP, GIF, JPEG, PNG, PPM, TIFF or WebP, recognized by content; the first frame of an animation
    gray, 1 or 8 bits   the value is repeated in all channels
    gray, 9–16 bits     scaled to 8 bits, round(255 · value / largest); for 16 bits that is value / 257, rounded
    color, 16 bits      the upper 8 bits
    32 bits, floats     refused: nothing in the file gives the values of black and white
    CMYK, YCbCr, LAB    converted by Pillow; color profiles are ignored
    transparency        composited over white, as browsers and most image-text data sets do
    orientation         of the EXIF data (or XMP), applied: the image is upright, as viewers show it
    size                at most `max_pixels`, compared before anything is decoded

`max_pixels` replaces Pillow's `Image.MAX_IMAGE_PIXELS`, which is suspended while an image is decoded: it would warn
about images below the bound, and refuse some that the bound allows.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import importlib
import io
import os
import stat
import threading
from typing import Any

from jaxtyping import UInt8
import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

# 480 MB as RGB: above the largest cameras (151 megapixels), below sizes that only a damaged or hostile header declares.
MAX_PIXELS = 160_000_000
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

for _name in ("Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP"):
    importlib.import_module(f"PIL.{_name}ImagePlugin")  # Registers the format.

# The transposition that makes an image upright, by its EXIF orientation; Pillow's rotations are counterclockwise.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_JPEG = ("JPEG", "MPO")  # Pillow calls a JPEG with several images MPO.
_WHITE_IS_ZERO = 0  # Photometric interpretation of a TIFF.
_MAX_TILE_PIXELS = 4096**2  # Largest tile of a TIFF whose image is smaller than its tile.


class ImageError(ValueError):
    """An image file that cannot be read, or that is refused; the message is the reason, without the file's name."""


def read(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the RGB image in a file; see the rules above.

    Args:
      path: the file.
      max_pixels: largest number of pixels to read.

    Raises:
      FileNotFoundError: there is no such file.
      ImageError: the file cannot be read as an image; the message names it.

    Example:
      >>> read("photo.jpg").shape  # doctest: +SKIP
      (300, 451, 3)
    """
    try:
        return decode(path, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"{os.fspath(path)} cannot be read as an image ({error}): repair or remove it.") from error


def decode(
    file: str | os.PathLike[str] | io.BytesIO | io.BufferedReader,
    output_size: Callable[[int, int], tuple[int, int]] | None = None,
    *,
    draft: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the RGB image in a file, upright, resized on request, bilinear and antialiased.

    Args:
      file: path, or an open binary file at its beginning.
      output_size: function from the (height, width) of the upright image to those wanted; None keeps the size.
        Resizing here saves a copy of the whole image.
      draft: whether the JPEG decoder may halve an image, repeatedly while it stays at least as large as wanted, before
        the resize. Other formats ignore it.
      max_pixels: largest number of pixels of the file and of the result.

    Raises:
      FileNotFoundError: there is no such file.
      ImageError: the file is not a regular file, not an image of a known format, damaged, too large, or has values
        without a range; the message is the reason.
      MemoryError: there is too little memory, which is not a property of the file.

    Example:
      >>> file = io.BytesIO()
      >>> Image.new("LA", (6, 4), (0, 0)).save(file, "PNG")  # Transparent black.
      >>> decode(io.BytesIO(file.getvalue()))[0, 0].tolist()
      [255, 255, 255]
    """
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(file, str | os.PathLike):
                _check_regular(file)
                file = stack.enter_context(open(file, "rb"))
            stack.enter_context(_no_pillow_bound())
            return _decode(stack.enter_context(_open(file)), output_size, draft, max_pixels)
    except (FileNotFoundError, ImageError, MemoryError):
        raise
    except Exception as error:
        # Broken bytes make Pillow raise OSError, SyntaxError, ValueError, struct.error, zlib.error, …
        reason = error.strerror if isinstance(error, OSError) else None
        raise ImageError(reason or f"{type(error).__name__}: {error}") from error


def check_pixels(height: int, width: int, max_pixels: int, what: str = "it has") -> None:
    """Checks the size of an image against a bound.

    Args:
      height: height in pixels.
      width: width in pixels.
      max_pixels: the bound.
      what: beginning of the message.

    Raises:
      ImageError: the image has more pixels, or none.
    """
    if height < 1 or width < 1:
        raise ImageError(f"{what} {width} × {height} pixels")
    if height * width > max_pixels:
        raise ImageError(
            f"{what} {width} × {height} pixels, more than max_pixels={max_pixels}; reduce it, or increase max_pixels "
            "(data.max_pixels in a configuration)"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an opened image as RGB, by the rules above except those of orientation and size.

    Raises:
      ImageError: the image has values without a range.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise ImageError(
            f"its values are {kind}, and nothing gives those of black and white; convert it to 8 or 16 bits"
        )
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Returns a gray image of up to 16 bits per pixel as RGB; PPM scales its values to 16 bits itself."""
    tags = _tiff_tags(image)  # Pillow leaves 12 bits, and white as 0, as they are.
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    table = np.round(np.minimum(np.arange(2**16) / (2**bits - 1), 1) * 255).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        table = 255 - table
    transparent = image.info.get("transparency")  # Of PNG: a value whose pixels are transparent.
    if isinstance(transparent, int):
        table[transparent] = 255
    values = np.clip(np.asarray(image), 0, 2**16 - 1) if image.mode == "I" else np.asarray(image)
    return Image.fromarray(table[values]).convert("RGB")


def _check_regular(path: str | os.PathLike[str]) -> None:
    """Raises ImageError unless a path is a regular file: opening a named pipe or a device could wait forever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ImageError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file")


class _PillowBound:
    """Pillow's bound while it is suspended: `value` is to be restored when no thread decodes any more."""

    lock = threading.Lock()
    num_users = 0
    value: int | None = None


@contextlib.contextmanager
def _no_pillow_bound() -> Iterator[None]:
    """Suspends Pillow's bound, a global of its module, until the last thread has left the block."""
    with _PillowBound.lock:
        if _PillowBound.num_users == 0:
            _PillowBound.value, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _PillowBound.num_users += 1
    try:
        yield
    finally:
        with _PillowBound.lock:
            _PillowBound.num_users -= 1
            if _PillowBound.num_users == 0:
                Image.MAX_IMAGE_PIXELS = _PillowBound.value


def _open(file: io.BytesIO | io.BufferedReader) -> ImageFile.ImageFile:
    """Returns an image whose header is read, of one of the formats above.

    The other formats that `Image.open` knows are rare and would run more code on bytes of strangers, for EPS a program.

    Raises:
      ImageError: the format is unknown.
    """
    prefix = file.read(16)
    file.seek(0)
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(prefix) is True:
            return factory(file, "")
    raise ImageError(f"its format is none of {', '.join(FORMATS)}" if prefix else "it is empty")


def _decode(
    image: ImageFile.ImageFile,
    output_size: Callable[[int, int], tuple[int, int]] | None,
    draft: bool,
    max_pixels: int,
) -> UInt8[np.ndarray, "H W 3"]:
    check_pixels(image.height, image.width, max_pixels)
    tags = _tiff_tags(image)
    if TiffImagePlugin.TILEWIDTH in tags:  # The decoder reserves memory for a whole tile, however small the image is.
        tile = tags[TiffImagePlugin.TILELENGTH], tags[TiffImagePlugin.TILEWIDTH]
        check_pixels(*tile, max(max_pixels, _MAX_TILE_PIXELS), "it has tiles of")
    if image.format not in _JPEG:
        image.load()  # PNG may have its orientation behind the pixels; TIFF is turned by Pillow here.
    orientation = _orientation(image)
    height, width = image.height, image.width
    if orientation in _SIDEWAYS:
        height, width = width, height
    if output_size is not None:
        height, width = output_size(height, width)
        check_pixels(height, width, max_pixels, "resized for its crop, it would have")
    if draft:
        image.draft("RGB", (height, width) if orientation in _SIDEWAYS else (width, height))
    rgb = to_rgb(image)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    """Returns the tags of a TIFF; nothing for other formats."""
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _orientation(image: ImageFile.ImageFile) -> int:
    """Returns the orientation in the image's metadata; 1 if they are absent or damaged, as the pixels may be whole."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1
