"""Conversion of Parquet files: images byte for byte, classes and their names, and messages about columns."""

import json
import os

import pyarrow
from pyarrow import parquet as writer
import pytest

from eqjax.data import WebDatasetSource, parquet
from tests.data import image_files, tar_files

IMAGES = [tar_files.png(10 * i) for i in range(4)]


def write(path, labels, images=None, names=None, **columns):
    """Writes a file in the form of the Hugging Face Hub's data sets."""
    images = IMAGES[: len(labels)] if images is None else images
    records = [{"bytes": image, "path": None} for image in images]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(records, kind), "label": labels, **columns})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    writer.write_table(table, path, row_group_size=2)


def test_images_and_classes_arrive(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [1, 0], names=["a cat, or two", "dog"])
    write(tmp_path / "train-00001-of-00002.parquet", [1, 1], IMAGES[2:], names=["a cat, or two", "dog"])
    made = parquet.convert(str(tmp_path), str(tmp_path / "out"))
    assert made == parquet.Conversion(4, 1, 0, ("a cat, or two", "dog"), "image", "label")
    source = WebDatasetSource(tmp_path / "out")
    assert source.class_names == ("a cat, or two", "dog")
    assert [source[i]["label"] for i in range(4)] == [1, 0, 1, 1]
    assert [image_files.value(source[i]) for i in range(4)] == [0, 10, 20, 30]
    assert source._open(2)[0].getvalue() == IMAGES[2]
    assert sorted(os.listdir(tmp_path / "out")) == ["class_names.json", "data-00000.tar"]
    assert not os.path.exists(tmp_path / "out.partial")


def test_archives_are_cut_by_size_and_the_same_again(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", [0, 0, 1, 0])
    monkeypatch.setattr(parquet, "_SHARD_BYTES", 2500)
    for name in ("one", "two"):
        assert parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / name)).num_shards == 2
        assert len(WebDatasetSource(tmp_path / name)) == 4
    for name in os.listdir(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_classes_may_be_names_and_numbers(tmp_path):
    write(tmp_path / "a.parquet", ["dog", "cat", "dog"])
    assert parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "a")).class_names == ("cat", "dog")
    assert [WebDatasetSource(tmp_path / "a")[i]["label"] for i in range(3)] == [1, 0, 1]
    write(tmp_path / "b.parquet", [5, 2])
    assert parquet.convert(str(tmp_path / "b.parquet"), str(tmp_path / "b")).class_names is None
    assert [WebDatasetSource(tmp_path / "b")[i]["label"] for i in range(2)] == [5, 2]


def test_columns_may_be_named(tmp_path):
    write(tmp_path / "a.parquet", [0, 0], mask=IMAGES[:2], kind=[1, 0])
    with pytest.raises(
        ValueError, match="several columns that may be images, image, mask; name one with --image_column"
    ):
        parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "out"))
    made = parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "out"), "mask", "kind")
    assert (made.image_column, made.label_column) == ("mask", "kind")
    assert [WebDatasetSource(tmp_path / "out")[i]["label"] for i in range(2)] == [1, 0]


def test_rows_without_an_image_are_left_out_and_counted(tmp_path, caplog):
    write(tmp_path / "a.parquet", [0, 1, 1], [IMAGES[0], None, IMAGES[2]])
    assert parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "out")).num_skipped == 1
    assert "left out 1 of 3 rows" in caplog.text and len(WebDatasetSource(tmp_path / "out")) == 2
    write(tmp_path / "b.parquet", [0], [None])
    with pytest.raises(ValueError, match="no row has an image in 'image'"):
        parquet.convert(str(tmp_path / "b.parquet"), str(tmp_path / "none"))
    assert not [name for name in os.listdir(tmp_path) if name.startswith("none")]


@pytest.mark.parametrize(
    ("labels", "columns", "message"),
    [
        ([0, None], {}, r"1 of 2 rows have no class in 'label'"),
        ([0, -1], {}, "the column 'label' holds -1, which is no class; −1 marks the rows of test sets"),
        ([0.5, 1.0], {}, "the column 'label' is double, expected integers or names"),
        ([0, 1], dict(label_column="absent"), r"no column 'absent' \(--label_column\)\. Columns: image .*, label"),
        ([0, 1], dict(image_column="url"), "the column 'url' is string, expected the bytes .* are not followed"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, labels, columns, message):
    write(tmp_path / "a.parquet", labels, url=["http://x", "http://y"])
    with pytest.raises(ValueError, match=message):
        parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "out"), **columns)
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_a_class_needs_a_name_if_there_are_names(tmp_path):
    write(tmp_path / "a.parquet", [0, 2], names=["cat", "dog"])
    with pytest.raises(ValueError, match="holds 2, which is no class"):
        parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "out"))


def test_missing_columns_are_named(tmp_path):
    writer.write_table(pyarrow.table({"text": ["a"], "value": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column of bytes of images; .* Columns: text \(string\), value \(int64\)"):
        parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "out"))
    writer.write_table(pyarrow.table({"image": IMAGES[:1], "value": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="no column of classes that is known; name one with --label_column"):
        parquet.convert(str(tmp_path / "b.parquet"), str(tmp_path / "out"))


def test_input_is_one_split(tmp_path):
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        write(tmp_path / f"{name}.parquet", [0])
    with pytest.raises(ValueError, match=r"several splits \(test, train\).*--input='.*/train-\*\.parquet'"):
        parquet.convert(str(tmp_path), str(tmp_path / "out"))
    assert parquet.convert(str(tmp_path / "test-*.parquet"), str(tmp_path / "out")).num_images == 1
    with pytest.raises(FileNotFoundError, match="there are no such files"):
        parquet.find_files(str(tmp_path / "val-*.parquet"))
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \.parquet files"):
        parquet.find_files(str(tmp_path / "none"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"bad\.parquet cannot be read as a Parquet file"):
        parquet.convert(str(tmp_path / "bad.parquet"), str(tmp_path / "other"))


def test_an_output_that_holds_something_is_kept(tmp_path):
    write(tmp_path / "a.parquet", [0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out exists; name another folder"):
        parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "out"))
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"new\.partial is in the way, and holds other files \(mine\.txt\)"):
        parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "new"))


def test_an_interrupted_conversion_leaves_no_output_and_can_be_repeated(tmp_path):
    write(tmp_path / "a.parquet", [0, 1])

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "out"), report=stop)
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "out.partial"]
    assert parquet.convert(str(tmp_path / "a.parquet"), str(tmp_path / "out")).num_images == 2
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "out"]
