"""Writes image files of one gray value, and damages them."""

from PIL import Image


def write(path, value, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def truncate(path):
    """Cuts a file in half, as an interrupted copy does."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def value(record):
    """The gray value of a record's image."""
    return int(record["image"].mean().round())
