"""Image files that are too large, damaged or no files: what is refused, in which words, and at what cost."""

from concurrent import futures
import io
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
from PIL import Image
import pytest

from eqjax import image_files
from eqjax.data import transforms
from tests import image_mutations
from tests.image_mutations import encode, tiff

RGB = np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8)


def decode(content, *args, **options):
    return image_files.decode(io.BytesIO(content), *args, **options)


# ── Sizes ─────────────────────────────────────────────────────────────────────────────────────


def png_header(width, height):
    """Returns a PNG of that size without its pixels, which would take 3 · width · height bytes."""
    content = b"\x89PNG\r\n\x1a\n"
    data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, chunk in ((b"IHDR", data), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        content += struct.pack(">I", len(chunk)) + kind + chunk + struct.pack(">I", zlib.crc32(kind + chunk))
    return content


def test_size_is_bounded_before_anything_is_decoded():
    image_files.check_pixels(10652, 14204, image_files.MAX_PIXELS)  # The largest camera.
    with pytest.raises(
        image_files.ImageError, match=r"it has 13300 × 13300 pixels, more than max_pixels=160000000; .*data\.max_pixels"
    ):
        decode(png_header(13300, 13300))
    with pytest.raises(image_files.ImageError, match="2000000000 × 2000000000 pixels"):
        decode(png_header(2 * 10**9, 2 * 10**9))


def test_bound_can_be_set():
    content = encode(Image.fromarray(RGB), "PNG")
    np.testing.assert_array_equal(decode(content, max_pixels=560), RGB)
    with pytest.raises(image_files.ImageError, match="28 × 20 pixels, more than max_pixels=559"):
        decode(content, max_pixels=559)


def test_size_after_the_resize_is_bounded_too():
    content = encode(Image.new("L", (20_000, 1)), "PNG")
    assert decode(content).shape == (1, 20_000, 3)
    with pytest.raises(image_files.ImageError, match="resized for its crop, it would have 1280000 × 64 pixels"):
        decode(content, transforms.ResizeShorterSide(64, 64, 64).output_size, max_pixels=10**6)


def test_tile_of_a_tiff_is_bounded():
    tags = {256: 1, 258: 8, 259: 8, 322: 16, 323: 16, 324: 8, 325: 9}
    assert (
        decode(tiff("<", zlib.compress(bytes([7]) * 256), {**tags, 325: len(zlib.compress(bytes([7]) * 256))})).max()
        == 7
    )
    with pytest.raises(image_files.ImageError, match="it has tiles of 65536 × 65536 pixels"):
        decode(tiff("<", zlib.compress(bytes(256)), {**tags, 322: 65536, 323: 65536}))


@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP", "JPEG", "GIF"])
def test_bound_replaces_the_one_of_pillow(name, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encode(Image.fromarray(RGB), name)).shape == RGB.shape
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_bound_of_pillow_returns_after_many_threads_and_errors(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    content = encode(Image.fromarray(RGB), "TIFF")

    def decode_some(index):
        if index % 3:
            return decode(content).shape
        with pytest.raises(image_files.ImageError):
            decode(content[:100])
        return RGB.shape

    with futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(decode_some, range(200))) == {RGB.shape}
    assert Image.MAX_IMAGE_PIXELS == 100


# ── Files ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Names of sockets are short.
    os.mkfifo("pipe.png")
    os.mkdir("folder.png")
    os.symlink("/dev/zero", "device.png")
    os.symlink("loop.png", "loop.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        expected = {
            "pipe.png": "it is a named pipe, not a regular file",
            "socket.png": "it is a socket",
            "device.png": "it is a device",
            "folder.png": "it is a folder",
            "loop.png": "Too many levels of symbolic links",
        }
        for name, message in expected.items():
            found = []

            def read(name=name, found=found):
                with pytest.raises(image_files.ImageError) as error:
                    image_files.read(name)
                found.append(str(error.value))

            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            thread.join(timeout=20)
            assert found, f"{name}: no answer"
            assert re.match(f"{name} cannot be read as an image \\(.*{message}.* repair or remove it", found[0])


def test_damaged_file_is_named_with_the_reason(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(RGB), "PNG")[:500])
    with pytest.raises(
        image_files.ImageError, match=r"a\.png cannot be read as an image \(OSError: .*truncated.* repair"
    ):
        image_files.read(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        image_files.read(tmp_path / "absent.png")


def test_lack_of_memory_is_not_blamed_on_the_file(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(image_files, "to_rgb", fail)
    with pytest.raises(MemoryError):
        decode(encode(Image.fromarray(RGB), "PNG"))


# ── Mutations ─────────────────────────────────────────────────────────────────────────────────


def test_files_before_mutation_are_images():
    assert all(image_mutations.check(content, 0) for content in image_mutations.originals())


@pytest.mark.filterwarnings("ignore")  # Of Pillow, about damaged metadata.
def test_mutated_file_is_an_image_or_refused():
    good = image_mutations.check_many(0, 400)
    assert 40 < good < 300  # Mutations change something, and not only beyond repair.


@pytest.mark.slow
def test_thousands_of_mutated_files_take_bounded_memory_and_time():
    root = pathlib.Path(__file__).parent.parent
    command = [sys.executable, "-m", "tests.image_mutations", "1000", "20000"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 200
