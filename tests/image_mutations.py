"""Small image files of every format, their mutations, and a command that decodes many under a bound on memory.

python -m tests.image_mutations FIRST COUNT
"""

import faulthandler
import io
import random
import resource
import struct
import sys
import time
import warnings
import zlib

import numpy as np
from PIL import Image

from eqjax import image_files

MAX_PIXELS = 250_000
_GIB = 2**30


def encode(image, *args, **options):
    """Returns the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, *args, **options)
    return file.getvalue()


def tiff(order, data, tags):
    """Returns an uncompressed gray TIFF: its tags besides the common ones, each a 32-bit integer."""
    at = 8 + len(data) + len(data) % 2
    tags = {257: 1, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data), **tags}
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at) + data.ljust(at - 8, b"\0")
    content += struct.pack(f"{order}H", len(tags))
    for tag in sorted(tags):
        content += struct.pack(f"{order}HHII", tag, 4, 1, tags[tag])
    return content + bytes(4)


def originals():
    """Returns valid files of 12 × 10 pixels, in many formats and modes."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
    rgba = Image.fromarray(rng.integers(0, 256, (10, 12, 4), np.uint8))
    gray16 = Image.fromarray(rng.integers(0, 2**16, (10, 12), np.uint16))
    gray, palette = rgb.convert("L"), rgb.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6

    def animation(name):
        # New images, because writing a JPEG leaves its options behind in them.
        return encode(rgb.copy(), name, save_all=True, append_images=[rgb.rotate(180)], duration=40)

    return [
        *(encode(image, "PNG", exif=exif) for image in (rgb, rgba, gray, gray16, rgb.convert("1"), rgb.convert("LA"))),
        encode(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        animation("PNG"),
        *(encode(image, "JPEG", exif=exif) for image in (rgb, gray, rgb.convert("CMYK"))),
        encode(rgb, "JPEG", progressive=True, quality=95, subsampling=0),
        animation("MPO"),
        *(encode(image, "WEBP", lossless=lossless, exif=exif) for image in (rgb, rgba) for lossless in (True, False)),
        animation("WEBP"),
        encode(palette, "GIF", transparency=3),
        animation("GIF"),
        *(encode(rgb, "TIFF", compression=name) for name in (None, "tiff_lzw", "jpeg", "tiff_deflate", "packbits")),
        *(encode(image, "TIFF", exif=exif) for image in (rgba, gray16, palette, rgb.convert("1"), rgb.convert("LAB"))),
        animation("TIFF"),
        *(encode(image, "BMP") for image in (rgb, rgba, gray, palette)),
        *(encode(image, "PPM") for image in (rgb, gray, gray16)),
        b"P3 4 2 255 " + b"1 22 133 " * 8,
    ]


def mutate(content, rng):
    """Returns a file with some bytes changed, removed, repeated or exchanged, the ends among them."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # Headers decide more than pixels.
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 64))
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1)))
        elif kind == 3:
            data[at : at + 2] = struct.pack(rng.choice("<>") + "H", rng.randrange(2**16))
        elif kind == 4:
            del data[at : at + rng.choice((1, 4, 64))]
        elif kind == 5:
            data[at:at] = data[at : at + rng.choice((1, 12, 64))]
        else:
            del data[len(data) // 4 + rng.randrange(len(data)) :]
        if not data:
            break
    return _repair_png(data) if rng.random() < 0.7 else bytes(data)


def _repair_png(data):
    """Returns a PNG with fitting checksums, as the decoder looks no further at chunks whose checksum is wrong."""
    at = 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def check(content, seed):
    """Decodes a file; returns whether it is an image, and raises unless the result or the error is as documented."""
    halve = (lambda height, width: (max(1, height // 2), max(1, width // 2))) if seed % 2 else None
    try:
        image = image_files.decode(io.BytesIO(content), halve, draft=seed % 4 == 1, max_pixels=MAX_PIXELS)
    except image_files.ImageError:
        return False
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS
    return True


def check_many(first, count):
    """Checks mutations; returns how many are still images.

    Args:
      first: the first seed.
      count: number of seeds.
    """
    files, good = originals(), 0
    for seed in range(first, first + count):
        begin = time.monotonic()
        content = mutate(files[seed % len(files)], random.Random(seed))
        try:
            good += check(content, seed)
        except Exception as error:
            raise AssertionError(f"mutation {seed}: {error!r}") from error
        seconds = time.monotonic() - begin
        assert seconds < 20, f"mutation {seed} took {seconds:.1f} s"
    return good


def main():
    """Checks the mutations of the command line, with 1 GiB of memory more than now."""
    first, count = map(int, sys.argv[1:])
    faulthandler.enable()
    warnings.simplefilter("ignore")
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize() + _GIB
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    for begin in range(first, first + count, 100):  # Told on the way, to find what ends the process.
        print(begin, check_many(begin, min(100, first + count - begin)), flush=True)


if __name__ == "__main__":
    main()
