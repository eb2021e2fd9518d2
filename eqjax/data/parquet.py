"""Converts Parquet files with a column of images, as data sets of the Hugging Face Hub have it, to WebDataset archives.

In a Parquet file, one image cannot be read without the hundreds that are compressed together with it, so global
shuffling would read everything hundreds of times. Archives have random access: the conversion copies the images, byte
for byte, once.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import glob
import io
import os
import re
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

from absl import logging

from eqjax import extras
from eqjax.addresses import local_path
from eqjax.data.webdataset import CLASS_NAMES
from eqjax.io import parse_json, write_json

if TYPE_CHECKING:
    import pyarrow

_SHARD_BYTES = 500_000_000
_ROWS = 64  # Rows that are read at a time.
_LABEL_COLUMNS = ("label", "labels", "class", "cls", "fine_label")
_MAGIC = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"P5": "ppm",
    b"P6": "ppm",
}
_SHARD_NAME = re.compile(r"(data-\d{5}\.tar|class_names\.json)(\.\w+\.tmp)?")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion has written.

    Attributes:
      num_images: number of images.
      num_shards: number of archives.
      num_skipped: rows without an image, which were left out.
      class_names: names of the classes; None if they are numbers.
      image_column: name of the column of images.
      label_column: name of the column of classes.
    """

    num_images: int
    num_shards: int
    num_skipped: int
    class_names: tuple[str, ...] | None
    image_column: str
    label_column: str


def find_files(pattern: str) -> list[str]:
    """Returns the Parquet files of one split.

    Args:
      pattern: a folder, a file, or a pattern such as "data/train-*.parquet".

    Raises:
      FileNotFoundError: there are none.
      ValueError: a folder holds several splits.
    """
    if not os.path.isdir(pattern):
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
        if not found:
            raise FileNotFoundError(f"--input={pattern}: there are no such files; give a folder, a file or a pattern.")
        return found
    found = sorted(glob.glob(os.path.join(glob.escape(pattern), "*.parquet")))
    if not found:
        inner = sorted(glob.glob(os.path.join(glob.escape(pattern), "*", "*.parquet")))
        hint = f"; there are some in {os.path.dirname(inner[0])}" if inner else ""
        raise FileNotFoundError(f"--input={pattern}: the folder holds no .parquet files{hint}.")
    splits = sorted({re.split(r"[-_.]", os.path.basename(path))[0] for path in found if "-of-" in path})
    if len(splits) > 1:
        raise ValueError(
            f"--input={pattern}: the folder holds several splits ({', '.join(splits)}), which are not to be mixed; "
            f"convert each for itself: --input='{os.path.join(pattern, splits[-1])}-*.parquet'."
        )
    return found


def convert(
    pattern: str,
    output: str,
    image_column: str | None = None,
    label_column: str | None = None,
    report: Callable[[int, int], object] | None = None,
) -> Conversion:
    """Writes the images and classes of Parquet files as WebDataset archives.

    The output appears when it is complete; until then it is a folder of the same name with the ending `.partial`.

    Args:
      pattern: the files, see `find_files`.
      output: folder to write, which must not exist or be empty.
      image_column: column with the bytes of image files, or with records {bytes, path}; None finds it.
      label_column: column with numbers or names of classes; None finds it.
      report: function of the rows done and their total; None for none.

    Raises:
      FileNotFoundError: there are no such files.
      FileExistsError: the output holds something.
      ModuleNotFoundError: pyarrow is not installed.
      ValueError: a file is no Parquet file, a column is missing or of another type, rows have no class, or there are
        no images.
    """
    extras.require("pyarrow", "Parquet files")
    paths, output = find_files(pattern), local_path(output, "--output")
    if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise FileExistsError(f"--output={output} exists; name another folder, or remove it.")
    files = [_open(path) for path in paths]
    schema = files[0].schema_arrow
    image_column = image_column or _find_image_column(schema, paths[0])
    features = _features(schema)
    label_column = label_column or _find_label_column(schema, features, paths[0])
    for path, file in zip(paths, files, strict=True):
        _check_columns(file.schema_arrow, path, image_column, label_column)
    names, numbers = _classes(files, paths, label_column, features)

    partial = output.rstrip("/") + ".partial"
    _remove_partial(partial)
    os.makedirs(partial)
    total, num_skipped = sum(file.metadata.num_rows for file in files), 0
    with _ShardWriter(partial) as writer:
        for done, (image, label) in enumerate(_rows(files, image_column, label_column), 1):
            if image:
                writer.add(image, str(label if numbers is None else numbers[label]))
            else:
                num_skipped += 1
            if report is not None:
                report(done, total)
    if not writer.num_images:
        shutil.rmtree(partial)
        raise ValueError(f"--input={pattern}: no row has an image in {image_column!r}.")
    if names is not None:
        write_json(os.path.join(partial, CLASS_NAMES), names)
    os.replace(partial, output)
    if num_skipped:
        logging.warning("%s: left out %d of %d rows, which have no image.", pattern, num_skipped, total)
    classes = None if names is None else tuple(names)
    return Conversion(writer.num_images, writer.num_shards, num_skipped, classes, image_column, label_column)


def _open(path: str) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a Parquet file ({error}).") from error


def _rows(files: list[Any], image_column: str, label_column: str) -> Iterator[tuple[bytes | None, Any]]:
    """Yields (bytes of the image, class) of every row."""
    for file in files:
        for batch in file.iter_batches(_ROWS, columns=[image_column, label_column]):
            images, labels = batch.column(image_column), batch.column(label_column)
            if hasattr(images.type, "names") or images.type.num_fields:
                images = images.field("bytes")
            yield from zip(images.to_pylist(), labels.to_pylist(), strict=True)


# ── Columns ─────────────────────────────────────────────────────────────────────────────────────


def _is_image(kind: "pyarrow.DataType") -> bool:
    """Returns whether a column may hold files: bytes, or records with bytes."""
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _describe(schema: "pyarrow.Schema") -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _find_image_column(schema: "pyarrow.Schema", path: str) -> str:
    found = [field.name for field in schema if _is_image(field.type)]
    if len(found) != 1:
        what = f"several columns that may be images, {', '.join(found)}" if found else "no column of bytes of images"
        raise ValueError(f"{path} has {what}; name one with --image_column. Columns: {_describe(schema)}.")
    return found[0]


def _features(schema: "pyarrow.Schema") -> Mapping[str, Any]:
    """Returns the descriptions of columns that the library `datasets` stores, or {}."""
    try:
        found = parse_json((schema.metadata or {})[b"huggingface"].decode())["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _class_names(features: Mapping[str, Any], column: str) -> list[str] | None:
    """Returns the names of the classes of a column, if they are stored."""
    feature = features.get(column)
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _find_label_column(schema: "pyarrow.Schema", features: Mapping[str, Any], path: str) -> str:
    found = [name for name in schema.names if _class_names(features, name) is not None]
    found = found or [name for name in schema.names if name in _LABEL_COLUMNS]
    if len(found) != 1:
        what = f"several columns of classes, {', '.join(found)}" if found else "no column of classes that is known"
        raise ValueError(f"{path} has {what}; name one with --label_column. Columns: {_describe(schema)}.")
    return found[0]


def _check_columns(schema: "pyarrow.Schema", path: str, image_column: str, label_column: str) -> None:
    from pyarrow import types

    for flag, name in (("image", image_column), ("label", label_column)):
        if name not in schema.names:
            raise ValueError(f"{path} has no column {name!r} (--{flag}_column). Columns: {_describe(schema)}.")
    kind = schema.field(image_column).type
    if not _is_image(kind):
        hint = "; paths or addresses are not followed" if types.is_string(kind) else ""
        raise ValueError(f"{path}: the column {image_column!r} is {kind}, expected the bytes of image files{hint}.")
    kind = schema.field(label_column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise ValueError(f"{path}: the column {label_column!r} is {kind}, expected integers or names of classes.")


def _classes(
    files: list[Any], paths: list[str], column: str, features: Mapping[str, Any]
) -> tuple[list[str] | None, dict[Any, int] | None]:
    """Returns the names of all classes, None for numbers without names; and the labels of names, None for numbers.

    Raises:
      ValueError: rows have no class, or a class without a name.
    """
    found: set[Any] = set()
    for path, file in zip(paths, files, strict=True):
        values = file.read([column]).column(column)
        if values.null_count:
            raise ValueError(f"{path}: {values.null_count} of {len(values)} rows have no class in {column!r}.")
        found |= set(values.unique().to_pylist())
    if any(isinstance(value, str) for value in found):
        names = sorted(found)
        return names, {name: number for number, name in enumerate(names)}
    names = _class_names(features, column)
    if found and (min(found) < 0 or (names is not None and max(found) >= len(names))):
        wrong = min(found) if min(found) < 0 else max(found)
        raise ValueError(
            f"{paths[0]}: the column {column!r} holds {wrong}, which is no class; −1 marks the rows of test sets whose "
            "classes are not published."
        )
    return names, None


# ── Archives ────────────────────────────────────────────────────────────────────────────────────


class _ShardWriter:
    """Writes samples to archives of about 500 MB, the same bytes for the same samples."""

    def __init__(self, folder: str) -> None:
        self._folder, self._tar = folder, None
        self.num_images = self.num_shards = 0

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._tar is not None:
            self._tar.close()

    def add(self, image: bytes, label: str) -> None:
        """Appends an image file and its class."""
        if self._tar is None or self._tar.offset > _SHARD_BYTES:
            self.__exit__()
            path = os.path.join(self._folder, f"data-{self.num_shards:05d}.tar")
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed when it is full
            self.num_shards += 1
        extension = next((name for magic, name in _MAGIC.items() if image.startswith(magic)), "jpg")
        for ending, content in ((extension, image), ("cls", label.encode())):
            info = tarfile.TarInfo(f"{self.num_images:09d}.{ending}")
            info.size = len(content)
            self._tar.addfile(info, io.BytesIO(content))
        self.num_images += 1


def _remove_partial(folder: str) -> None:
    """Removes what an interrupted conversion has left, and nothing else."""
    if not os.path.isdir(folder):
        return
    if others := [name for name in os.listdir(folder) if not _SHARD_NAME.fullmatch(name)]:
        raise FileExistsError(f"{folder} is in the way, and holds other files ({others[0]}); remove it.")
    shutil.rmtree(folder)
