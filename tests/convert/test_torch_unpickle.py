"""Pickles made to take unbounded time or memory are refused at once; each bound is met just below and just above."""

import pickle
import struct
import time
import zipfile

import pytest

from eqjax.convert import pickle_bytes, pickle_stack, torch_archive, torch_unpickle
from eqjax.convert.torch_archive import CheckpointFileError
from tests.hostile_files import SECONDS, code, tensor_opcodes


def archive(path, opcodes, method=zipfile.ZIP_STORED, names=()):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + opcodes + b".")
        file.writestr("archive/data/0", bytes(16))
        for name in names:
            file.writestr(name, b"x")
    return path


def load(tmp_path, opcodes):
    """Reads a file with the given pickle within the time that a file may take."""
    path, start = archive(tmp_path / "a.pt", opcodes), time.process_time()
    try:
        return torch_archive.load(path)
    finally:
        assert time.process_time() - start < SECONDS


PAIRS = b")" + b"2\x86" * 100  # A tuple of a tuple of …, 2**100 leaves in 200 opcodes.


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"\x8a\x11" + bytes(17), "an integer of 17 bytes"),
        (b"\x8b" + struct.pack("<I", 800_000) + bytes(800_000), "an integer of 800000 bytes"),
        (b"](" + b"\x8f" * 2**15 + b"e", "more than 32768 opcodes"),
        (b"N" + b"\x85" * 65, "nested more than 64 deep"),
        (b")" + b"\x85" * 20_000, "nested more than 64 deep"),
        # A list in a list in …, each of which is inside another before it gets its own item.
        (b"]q\x00q\x01" + b"h\x01]q\x01a0" * 100 + b"0h\x00", "nested more than 64 deep"),
        (b"]q\x00h\x00a", "a value that contains itself"),
        (b"N0N0N0}q\x05" + code("a") + b"ca\nb\n)Rh\x05bs", "a value that contains itself"),
        (b"ca\nb\n" + b"}" + code("x") + b")" + b"\x85" * 70 + b"sb", "nested more than 64 deep"),
        (b"}" + PAIRS + b"Ns", "a key of type tuple"),
        (b"\x8f(" + PAIRS + b"\x90", "a key of type tuple"),
        (b"(" + PAIRS + b"\x91", "a key of type tuple"),
        (b"(" + PAIRS + b"Nd", "a key of type tuple"),
        (b"ccollections\nOrderedDict\n](" + PAIRS + b"N\x86e\x85R", "a key of type tuple"),
        (b"}" + code(2**63) + b"Ns", "a key of more than 64 bits"),
        (b"(" + code("storage") + b"ctorch\nFloatStorage\n" + PAIRS + b"NNtQ", "a storage whose key is a tuple"),
        (PAIRS + b"Q", "an unknown persistent id"),
        (b"(" + PAIRS + b"NNNNtQ", "an unknown persistent id"),
        (b"ctorch\nSize\n](" + b"K\x01" * 33 + b"e\x85R", "at most 32 integers"),
        (b"ctorch\nSize\n" + PAIRS + b"\x85R", "no integer"),
        (tensor_opcodes(size=(0,) * 33, stride=(1,) * 33), "at most 32 integers"),
        (tensor_opcodes(size=(2**120,), stride=(0,)), "does not fit its storage"),
        (tensor_opcodes(size=("a",)), "no integer"),
        (tensor_opcodes(offset=0.5), "no integer"),
        (tensor_opcodes(numel=None), "no integer"),
        (tensor_opcodes(key="a" * 100_000), "lacks its entry archive/data/aaa"),
        (b"c" + b"a" * 600 + b"\nb\n", "a name without an end within 512 bytes"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"N" * 17 + b"tR", "a call of a Known"),
        (b"]q\x00(" + b"N" * 10**4 + b"e0](" + b"ccollections\nOrderedDict\nh\x00\x85R" * 5000 + b"e", "no pair"),
        (b"]q\x00(" + b"NN\x86" * 5000 + b"e](" + b"ccollections\nOrderedDict\nh\x00\x85R" * 5000 + b"e", "opcodes"),
        (b"}r\xff\xff\xff\x7f", "malformed pickle .memo index 2147483647"),
        (b"I" + b"9" * 10 + b"\n", "opcode 0x49, which PyTorch does not write"),
        (b"\x97", "opcode 0x97"),
        (b"X" + struct.pack("<I", 2**32 - 1), "has no end"),
        (b"\x80\x63", "pickle protocol 99"),
        (tensor_opcodes() + b"}b", "a state for a ndarray"),
    ],
)  # fmt: skip
def test_hostile_pickles_are_refused_with_their_reason(tmp_path, monkeypatch, opcodes, message):
    monkeypatch.setattr(pickle_stack, "MAX_OPCODES", 2**15)
    with pytest.raises(CheckpointFileError, match=rf"a\.pt .*({message})|a\.pt: .*({message})") as error:
        load(tmp_path, opcodes)
    assert len(str(error.value)) < 1000


def test_values_at_the_bounds_are_read(tmp_path):
    assert load(tmp_path, b"\x8a\x10" + b"\xff" * 15 + b"\x7f") == 2**127 - 1
    value, depth = load(tmp_path, b")" + b"\x85" * 63), 0
    while value:
        value, depth = value[0], depth + 1
    assert depth == 63
    assert load(tmp_path, b"}" + code(-(2**63)) + b"Ns") == {-(2**63): None}
    assert load(tmp_path, tensor_opcodes(size=(1,) * 32, stride=(1,) * 32)).shape == (1,) * 32
    assert load(tmp_path, b"ccollections\nOrderedDict\n" + code(([("a", 1)],)) + b"R") == {"a": 1}


@pytest.mark.slow
def test_as_many_opcodes_as_allowed_are_read_in_time_and_no_more(tmp_path):
    many = pickle_stack.MAX_OPCODES - 4  # Besides the protocol, the list, the mark and the end of the list.
    assert len(load(tmp_path, b"](" + b"}" * many + b"e")) == many
    with pytest.raises(CheckpointFileError, match="more than 524288 opcodes"):
        load(tmp_path, b"](" + b"}" * (many + 1) + b"e")


def test_shared_values_are_read_without_looking_at_their_copies(tmp_path):
    value = load(tmp_path, b")" + b"2\x86" * 60)
    assert value[0] is value[1] and value[0][0] is value[0][1]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_other_protocols_are_read(tmp_path, protocol):
    values = {"a": [1, 2.5, None, True], "b": ((), (1, 2), (1, 2, 3, 4)), "c": {1: -1, None: 2**100}, "d": "é" * 300}
    if protocol >= 4:  # Before, these are calls of unknown functions.
        values["e"] = (b"bytes", b"b" * 300, {1, 2}, frozenset({"x"}))
    assert load(tmp_path, pickle.dumps(values, protocol)[2:-1]) == values


def test_a_pickle_of_many_bytes_is_refused_from_the_header(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.pt", b"B" + struct.pack("<I", 2**20) + bytes(2**20))
    assert torch_archive.load(path) == bytes(2**20)
    monkeypatch.setattr(torch_archive, "MAX_PICKLE_BYTES", 2**20)
    monkeypatch.setattr(torch_archive, "_zip_entry", None)  # Nothing is unpacked.
    with pytest.raises(CheckpointFileError, match=r"a\.pt holds a pickle of 1048584 bytes; .* more than 1048576"):
        torch_archive.load(path)


def test_a_legacy_pickle_of_many_bytes_is_refused(monkeypatch):
    monkeypatch.setattr(pickle_bytes, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(CheckpointFileError, match="a pickle of more than 100 bytes"):
        torch_unpickle.unpickle("a.pt", b"C\x64" + bytes(100) + b".")


@pytest.mark.parametrize("count", [15, 17])
def test_tensors_that_share_a_storage_are_bounded_together(tmp_path, count):
    path, size = tmp_path / "a.pt", 10**5
    with zipfile.ZipFile(path, "w") as file:
        one = tensor_opcodes(size=(size,), numel=size)
        file.writestr("archive/data.pkl", b"\x80\x02](" + one * count + b"e.")
        file.writestr("archive/data/0", bytes(4 * size))
    if count == 15:
        assert [array.shape for array in torch_archive.load(path)] == [(size,)] * count
    else:
        with pytest.raises(CheckpointFileError, match=r"a\.pt holds a pickle whose tensors share storages and .* over"):
            torch_archive.load(path)


@pytest.mark.parametrize(
    ("names", "method", "message"),
    [
        (["archive/data/0"], zipfile.ZIP_STORED, "entry 'archive/data/0' occurs twice"),
        (["archive/data.pkl"], zipfile.ZIP_STORED, "entry 'archive/data.pkl' occurs twice"),
        (["archive/../data/1"], zipfile.ZIP_STORED, "leads out of the archive"),
        (["/data/1"], zipfile.ZIP_STORED, "leads out of the archive"),
        ([], zipfile.ZIP_BZIP2, "is compressed by method 12; only stored and deflated entries are read"),
        ([], zipfile.ZIP_LZMA, "is compressed by method 14; only stored and deflated entries are read"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_odd_entries_of_an_archive_are_refused(tmp_path, names, method, message):
    path = archive(tmp_path / "a.pt", b"}", method, names)
    with pytest.raises(CheckpointFileError, match=rf"a\.pt: .*{message}.*; refused"):
        torch_archive.load(path)


def test_encrypted_and_displaced_entries_are_refused(tmp_path):
    content = bytearray(archive(tmp_path / "a.pt", b"}").read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 8] |= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointFileError, match=r"a\.pt: entry 'archive/data.pkl' is encrypted"):
        torch_archive.load(tmp_path / "a.pt")
    content[directory + 8] &= 0xFE
    content[directory + 42] += 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointFileError, match=r"a\.pt has no entry archive/data.pkl where it should"):
        torch_archive.load(tmp_path / "a.pt")


def test_messages_show_little_of_hostile_names(tmp_path):
    value = load(tmp_path, b"}" + code("k" * 10**5) + b"ca" + b"b" * 400 + b"\nc\ns")
    with pytest.raises(CheckpointFileError, match="should be a tensor, and is made by ab+…") as error:
        torch_archive.state_dict(value, "a.pt")
    assert len(str(error.value)) < 700
    assert len(repr(next(iter(value.values())))) < 300
