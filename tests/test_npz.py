"""Arrays in npz files: headers that do not parse, many entries, text."""

import zipfile

import numpy as np
import pytest

from eqjax import npz
from tests import hostile_files

KINDS = {"a": npz.NUMBERS, "text": npz.TEXT}


def read(path, **options):
    with npz.open_npz(path, KINDS, max_bytes=2**20, **options) as file:
        return {name: file.read(name) for name in file.entries}


def write_header(path, header):
    content = hostile_files.npy("<f8", (3,), bytes(24))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", content[:8] + len(header).to_bytes(2, "little") + header + bytes(24))


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,) (\n",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': " + b"(" * 3000 + b"\n",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (3, 1L), '''\n",
        b"  {\n 'descr'\n",
        b"\xff\xfe\x00",
        b"",
        b" " * 20_000,
    ],
)
def test_headers_that_do_not_parse_are_refused_with_the_name_of_the_file(tmp_path, header):
    write_header(tmp_path / "a.npz", header)
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as thing .*: truncated, damaged") as caught:
        read(tmp_path / "a.npz", what="thing")
    assert len(str(caught.value)) < 600


def test_arrays_and_text_are_read_and_others_ignored(tmp_path):
    npz.write(tmp_path / "a.npz", {"a": np.arange(3), "b": np.ones(2)}, "text", {"n": [1.5, None]}, compressed=True)
    arrays = read(tmp_path / "a.npz")
    assert arrays.keys() == {"a", "text"}
    both = {"a": np.arange(3), "b": np.ones(2)}
    assert npz.signed_values(arrays["text"], both) == ({"n": [1.5, None]}, True)
    assert npz.signed_values(arrays["text"], {"a": np.arange(3)})[1] is False


def test_an_archive_that_lost_an_entry_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.arange(3), b=np.ones(2))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.rindex(b"PK\x01\x02") - 20] ^= 0x80  # Length of the first entry's comment: it swallows the second.
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as npz"):
        read(tmp_path / "a.npz")
