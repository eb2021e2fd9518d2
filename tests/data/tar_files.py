"""Writes WebDataset archives of images of one gray value."""

import io
import tarfile

from PIL import Image


def png(value, size=(20, 16)):
    """The bytes of a PNG file of one gray value."""
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write(path, files, tar_format=tarfile.USTAR_FORMAT):
    """Writes an archive of {name: bytes or text}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples(labels, start=0, **others):
    """Files of samples of the given classes, whose images have the gray value 10 · number."""
    files = {}
    for number, label in enumerate(labels, start):
        files[f"{number:04d}.png"] = png(10 * number)
        files[f"{number:04d}.cls"] = str(label)
        files |= {f"{number:04d}.{name}": content for name, content in others.items()}
    return files
