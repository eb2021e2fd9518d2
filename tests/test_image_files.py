"""Image files as uint8 RGB: modes, ranges, transparency, orientation."""

import io
import struct

import numpy as np
from PIL import Image
import pytest

from eqjax import image_files
from eqjax.data import transforms
from tests.image_mutations import encode, tiff

RGB = np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8)


def decode(content, *args, **options):
    return image_files.decode(io.BytesIO(content), *args, **options)


def pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


# ── Plain images ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_images_are_as_pillow_reads_them(mode, name):
    content = encode(Image.fromarray(RGB).convert(mode), name)
    np.testing.assert_array_equal(decode(content), pillow(content))
    with Image.open(io.BytesIO(content)) as image:
        resized = image.convert("RGB").resize((14, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(
        decode(content, transforms.ResizeShorterSide(10, 10, 10).output_size), np.asarray(resized)
    )


def test_lossless_images_have_the_pixels_that_were_written():
    for name in ("PNG", "TIFF", "BMP", "PPM"):
        np.testing.assert_array_equal(decode(encode(Image.fromarray(RGB), name)), RGB)
        gray = decode(encode(Image.fromarray(RGB[..., 0]), name))
        np.testing.assert_array_equal(gray, np.repeat(RGB[..., :1], 3, axis=-1))


@pytest.mark.parametrize(("side", "drafts"), [(80, False), (40, True)])
def test_resize_during_decoding_equals_resize_after_it(side, drafts):
    """Draft mode gives nearly the same pixels, and differs only if the image is at least halved."""
    smooth = np.stack(np.meshgrid(np.linspace(0, 255, 200), np.linspace(0, 255, 120)) * 2, axis=-1)[..., :3]
    content = encode(Image.fromarray(smooth.astype(np.uint8)), "JPEG", quality=95)
    size = transforms.ResizeShorterSide(side, side, side).output_size
    expected = transforms.resize(decode(content), side, side * 200 // 120)
    np.testing.assert_array_equal(decode(content, size), expected)
    drafted = decode(content, size, draft=True)
    assert drafted.shape == expected.shape and (drafted != expected).any() == drafts
    assert np.abs(drafted.astype(int) - expected).max() <= 4


def test_format_is_recognized_by_content_and_only_known_ones_are_read(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(Image.fromarray(RGB), "PNG"))
    np.testing.assert_array_equal(image_files.read(path), RGB)
    for content in (encode(Image.fromarray(RGB), "EPS"), encode(Image.fromarray(RGB), "ICO"), b"text", bytes(100)):
        with pytest.raises(image_files.ImageError, match="format is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"):
            decode(content)
    with pytest.raises(image_files.ImageError, match="it is empty"):
        decode(b"")


# ── Modes ─────────────────────────────────────────────────────────────────────────────────────

# Value of the two pixels of an image, and the RGB that they mean; None if the mode is refused.
_OPAQUE_MODES = {
    "1": ([False, True], [(0, 0, 0), (255, 255, 255)]),
    "L": ([0, 77], [(0, 0, 0), (77, 77, 77)]),
    "RGB": ([(1, 2, 3), (4, 5, 6)], [(1, 2, 3), (4, 5, 6)]),
    "RGBX": ([(1, 2, 3, 0), (4, 5, 6, 9)], [(1, 2, 3), (4, 5, 6)]),
    "CMYK": ([(0, 0, 0, 0), (255, 0, 0, 0)], [(255, 255, 255), (0, 255, 255)]),
    "YCbCr": ([(255, 128, 128), (76, 85, 255)], [(255, 255, 255), (254, 0, 0)]),
    "HSV": ([(0, 255, 255), (0, 0, 9)], [(255, 0, 0), (9, 9, 9)]),
    "LAB": ([(255, 128, 128), (0, 128, 128)], [(255, 255, 255), (0, 0, 0)]),
    "I;16": ([257 * 77, 65535], [(77, 77, 77), (255, 255, 255)]),
    "I;16L": ([257 * 77, 65535], [(77, 77, 77), (255, 255, 255)]),
    "I;16B": ([257 * 77, 65535], [(77, 77, 77), (255, 255, 255)]),
    "I;16N": ([257 * 77, 65535], [(77, 77, 77), (255, 255, 255)]),
    "I": ([0, 1], None),
    "F": ([0.0, 1.0], None),
}
_TRANSPARENT_MODES = {
    "LA": ([(77, 255), (77, 0)], [(77, 77, 77), (255, 255, 255)]),
    "La": ([(77, 255), (0, 0)], [(77, 77, 77), (255, 255, 255)]),
    "RGBA": ([(10, 20, 30, 255), (0, 100, 255, 128)], [(10, 20, 30), (127, 177, 255)]),
    "RGBa": ([(10, 20, 30, 255), (0, 50, 128, 128)], [(10, 20, 30), (127, 177, 255)]),
    "PA": ([(1, 255), (1, 0)], [(7, 8, 9), (255, 255, 255)]),
    "P": ([0, 1], [(4, 5, 6), (7, 8, 9)]),
}
_MODES = {**_OPAQUE_MODES, **_TRANSPARENT_MODES}


def _two_pixels(mode):
    image = Image.new(mode, (2, 1))
    if mode in ("P", "PA"):
        image.putpalette([4, 5, 6, 7, 8, 9])
    for x, value in enumerate(_MODES[mode][0]):
        image.putpixel((x, 0), value)
    return image


def test_every_mode_of_pillow_has_a_rule():
    assert set(_MODES) == set(Image.MODES)


@pytest.mark.parametrize("mode", _MODES)
def test_mode_becomes_rgb_or_is_refused(mode):
    image, expected = _two_pixels(mode), _MODES[mode][1]
    if expected is None:
        with pytest.raises(image_files.ImageError, match="nothing gives those of black and white"):
            image_files.to_rgb(image)
        return
    rgb = image_files.to_rgb(image)
    assert rgb.mode == "RGB"
    # Pillow rounds products of alpha, and of Lab, to one level.
    assert np.abs(np.asarray(rgb, int)[0] - expected).max() <= (1 if mode in ("RGBA", "RGBa", "LAB") else 0)


@pytest.mark.parametrize("name", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_divided_by_257_and_rounded(name):
    values = np.array([[0, 128, 129, 385, 386, 32896, 65534, 65535]], np.uint16)
    rgb = decode(encode(Image.fromarray(values), name))
    assert rgb.shape == (1, 8, 3) and rgb[0, :, 0].tolist() == [0, 0, 1, 1, 2, 128, 255, 255]
    assert (rgb == rgb[..., :1]).all()


@pytest.mark.parametrize(
    ("order", "bits", "photometric", "expected"),
    [
        ("<", 16, 1, [0, 64, 255]),
        (">", 16, 1, [0, 64, 255]),
        ("<", 16, 0, [255, 191, 0]),
        ("<", 12, 1, [0, 64, 255]),
    ],
)
def test_tiff_states_its_byte_order_its_bits_and_whether_white_is_zero(order, bits, photometric, expected):
    packed = bytes([0x00, 0x04, 0x04, 0xFF, 0xF0])  # 0x000, 0x404, 0xFFF
    data = packed if bits == 12 else struct.pack(f"{order}3H", 0, 64 * 257, 65535)
    assert decode(tiff(order, data, {256: 3, 258: bits, 262: photometric}))[0, :, 0].tolist() == expected


def test_ppm_of_10_bits_is_scaled_by_its_largest_value():
    content = b"P5 3 1 1023 " + struct.pack(">3H", 0, 257, 1023)
    assert decode(content)[0, :, 0].tolist() == [0, 64, 255]


@pytest.mark.parametrize(("mode", "kind"), [("I", "32-bit integers"), ("F", "floats")])
def test_values_without_a_range_are_refused(mode, kind):
    with pytest.raises(image_files.ImageError, match=f"{kind}, and nothing .*; convert it to 8 or 16 bits"):
        decode(encode(Image.new(mode, (2, 2)), "TIFF"))


# ── Transparency ──────────────────────────────────────────────────────────────────────────────


def test_transparency_is_composited_over_white():
    rgba = Image.fromarray(np.dstack([np.zeros((2, 3, 3), np.uint8), np.full((2, 3), 64, np.uint8)]))
    for content in (encode(rgba, "PNG"), encode(rgba, "WEBP", lossless=True), encode(rgba, "TIFF")):
        assert (decode(content) == 191).all()
    assert (decode(encode(rgba.convert("LA"), "PNG")) == 191).all()


def test_transparent_palette_entries_and_colors_are_white():
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 0])
    for x in range(3):
        palette.putpixel((x, 0), x)
    expected = [[10, 20, 30], [255, 255, 255], [0, 0, 0]]
    for content in (
        encode(palette, "PNG", transparency=1),
        encode(palette, "PNG", transparency=b"\xff\0\xff"),
        encode(palette, "GIF", transparency=1),
        encode(palette.convert("RGB"), "PNG", transparency=(40, 50, 60)),
    ):
        assert decode(content)[0].tolist() == expected
    assert decode(encode(palette, "PNG"))[0].tolist() == [[10, 20, 30], [40, 50, 60], [0, 0, 0]]
    gray = Image.fromarray(np.array([[3, 9]], np.uint8))
    assert decode(encode(gray, "PNG", transparency=3))[0, :, 0].tolist() == [255, 9]
    gray = Image.fromarray(np.array([[3, 9 * 257]], np.uint16))
    assert decode(encode(gray, "PNG", transparency=3))[0, :, 0].tolist() == [255, 9]


def test_opaque_alpha_changes_nothing():
    rgba = Image.fromarray(RGB).convert("RGBA")
    np.testing.assert_array_equal(decode(encode(rgba, "PNG")), RGB)


# ── Orientation and frames ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_upright(name):
    turns = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x),
    }
    options = {"JPEG": dict(quality=95), "WEBP": dict(lossless=True)}.get(name, {})
    plain = decode(encode(Image.fromarray(RGB), name, **options))
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encode(Image.fromarray(RGB), name, exif=exif, **options)
        np.testing.assert_array_equal(decode(content), turn(plain), err_msg=str(orientation))
        # The size is that of the upright image.
        resized = decode(content, lambda height, width: (2 * height, width))
        np.testing.assert_array_equal(resized.shape[:2], np.array(turn(plain).shape[:2]) * (2, 1))


def test_turned_jpeg_is_drafted_as_a_plain_one():
    image = Image.fromarray(RGB).resize((400, 200))
    exif = Image.Exif()
    exif[0x0112] = 3
    size = transforms.ResizeShorterSide(50, 50, 50).output_size
    plain, turned = (decode(encode(image, "JPEG", **options), size, draft=True) for options in ({}, {"exif": exif}))
    assert plain.shape == (50, 100, 3) and np.abs(turned[::-1, ::-1].astype(int) - plain).max() <= 1
    assert (plain != decode(encode(image, "JPEG"), size)).any()
    exif[0x0112] = 6  # Both are drafted to the wanted size, without a resize.
    turned = decode(encode(image, "JPEG", exif=exif), size, draft=True)
    np.testing.assert_array_equal(np.rot90(turned), plain)


@pytest.mark.parametrize("value", [0, 9])
def test_unknown_orientation_is_ignored(value):
    exif = Image.Exif()
    exif[0x0112] = value
    np.testing.assert_array_equal(decode(encode(Image.fromarray(RGB), "PNG", exif=exif)), RGB)


def test_damaged_metadata_are_ignored():
    content = encode(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0no metadata")
    np.testing.assert_array_equal(decode(content), decode(encode(Image.fromarray(RGB), "JPEG")))


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_first_frame_of_an_animation_is_read(name):
    frames = [Image.new("RGB", (4, 4), (value, value, value)) for value in (200, 100, 0)]
    content = encode(frames[0], name, save_all=True, append_images=frames[1:], duration=40)
    assert np.abs(decode(content).astype(int) - 200).max() <= 2
