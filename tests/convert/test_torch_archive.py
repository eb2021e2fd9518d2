"""Reading and writing PyTorch files: real, hand-made and malicious ones."""

import os
import pickle
import pickletools
import struct
from typing import Any
import zipfile

import ml_dtypes
import numpy as np
import pytest

from eqjax.convert import torch_archive
from eqjax.convert.torch_archive import CheckpointFileError, Inert
from tests import bit_flips, published_checkpoints, reference_weights


def code(value):
    """Pickle opcodes of a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def mapping(**entries):
    return b"}(" + b"".join(code(name) + opcodes for name, opcodes in entries.items()) + b"u"


def tensor(size=(4,), stride=(1,), offset=0, numel=4, storage="FloatStorage", key="0", view=None, legacy=False):
    """Opcodes of a tensor as PyTorch writes it."""
    pid = code("storage") + f"ctorch\n{storage}\n".encode() + code(key) + code("cpu") + code(numel)
    pid = b"(" + pid + (code(view) if legacy else b"") + b"tQ"
    arguments = pid + code(offset) + code(size) + code(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def call(name, *arguments):
    """Opcodes that call a global, as attacks do."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n(".encode() + b"".join(map(code, arguments)) + b"tR"


def write_zip(path, opcodes, storages=(), byteorder=b"little", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes + b".")
        archive.writestr("archive/byteorder", byteorder)
        for key, array in enumerate(storages):
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_legacy(path, opcodes, storages, little_endian=True):
    head = [0x1950A86A20F9469CFC6C, 1001, dict(protocol_version=1001, little_endian=little_endian)]
    content = b"".join(pickle.dumps(value, protocol=2) for value in head)
    content += b"\x80\x02" + opcodes + b"." + pickle.dumps(list(storages), protocol=2)
    content += b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())
    path.write_bytes(content)
    return path


FOUR = np.arange(4, dtype=np.float32)


def test_reads_a_real_file():
    checkpoint = torch_archive.load(published_checkpoints.GENERATOR)
    assert checkpoint["epoch"] == 3
    for part, salt in (("model", published_checkpoints.RAW), ("model_ema", "")):
        weights = torch_archive.state_dict(checkpoint[part], part)
        assert len(weights) == 133
        for name, array in weights.items():
            np.testing.assert_array_equal(array, reference_weights.weight(name, array.shape, salt), err_msg=name)


def test_classes_that_are_not_installed_are_inert(tmp_path):
    arguments = torch_archive.load(published_checkpoints.GENERATOR)["args"]
    assert isinstance(arguments, Inert) and arguments.name == "argparse.Namespace"
    assert arguments.state == {"model": "tiny_model", "cfg": 1.0, "output_dir": "out"}
    callbacks = torch_archive.load(published_checkpoints.write_lightning(tmp_path / "tokenizer.ckpt"))["callbacks"]
    (callback,) = callbacks
    assert callback.name == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert callbacks[callback]["dirpath"] == "logs"


@pytest.mark.parametrize(
    ("storage", "dtype"),
    [("DoubleStorage", np.float64), ("HalfStorage", np.float16), ("BFloat16Storage", ml_dtypes.bfloat16),
     ("LongStorage", np.int64), ("IntStorage", np.int32), ("ShortStorage", np.int16), ("CharStorage", np.int8),
     ("ByteStorage", np.uint8), ("BoolStorage", np.bool_)],
)  # fmt: skip
def test_every_dtype_is_read(tmp_path, storage, dtype):
    values = np.array([1, 0, 3, 2]).astype(dtype)
    path = write_zip(tmp_path / "a.pt", mapping(w=tensor(storage=storage)), [values])
    array = torch_archive.load(path)["w"]
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("write", ["zip", "legacy"])
def test_views_of_a_shared_storage(tmp_path, write):
    legacy = write == "legacy"
    values = np.arange(24, dtype=np.float32)
    common: dict[str, Any] = dict(numel=24, legacy=legacy)
    opcodes = mapping(
        transposed=tensor((6, 4), (1, 6), 0, **common),
        part=tensor((2, 3), (12, 2), 6, **common),
        scalar=tensor((), (), 23, **common),
        empty=tensor((0, 3), (3, 1), 0, **common),
    )
    path = tmp_path / "a.pt"
    write_legacy(path, opcodes, {"0": values}) if legacy else write_zip(path, opcodes, [values])
    out = torch_archive.load(path)
    np.testing.assert_array_equal(out["transposed"], values.reshape(4, 6).T)
    np.testing.assert_array_equal(out["part"], [[6, 8, 10], [18, 20, 22]])
    assert out["scalar"] == 23 and out["scalar"].shape == ()
    assert out["empty"].shape == (0, 3)
    with pytest.raises(ValueError, match="read-only"):
        out["part"][0, 0] = 1


def test_legacy_storages_of_several_types_and_storage_views(tmp_path):
    opcodes = mapping(
        second=tensor(key="b", storage="ShortStorage", legacy=True),
        first=tensor(key="a", legacy=True),
        view=tensor((2,), (1,), 0, 4, key="a", view=("v", 1, 2), legacy=True),
    )
    path = write_legacy(tmp_path / "a.pt", opcodes, {"a": FOUR, "b": np.arange(4, dtype=np.int16) + 7})
    out = torch_archive.load(path)
    np.testing.assert_array_equal(out["first"], FOUR)
    np.testing.assert_array_equal(out["second"], [7, 8, 9, 10])
    np.testing.assert_array_equal(out["view"], [1, 2])


def test_a_legacy_storage_of_unknown_size_is_refused(tmp_path):
    opcodes = mapping(a=tensor(key="a", storage="QInt8Storage", legacy=True), b=tensor(key="b", legacy=True))
    path = write_legacy(tmp_path / "a.pt", opcodes, {"a": FOUR.astype(np.int8), "b": FOUR})
    with pytest.raises(CheckpointFileError, match="storage a is of an unknown type"):
        torch_archive.load(path)


@pytest.mark.parametrize("name", ["os.system", "posix.system", "builtins.exec", "subprocess.call", "webbrowser.open"])
def test_no_global_is_called(tmp_path, name):
    witness = tmp_path / "witness"
    attack = call(name, f"open({str(witness)!r}, 'w')" if name == "builtins.exec" else f"touch {witness}")
    path = write_zip(tmp_path / "a.pt", mapping(w=tensor(), extra=attack), [FOUR])
    out = torch_archive.load(path)
    assert not witness.exists()
    assert out["extra"].name == name
    np.testing.assert_array_equal(out["w"], FOUR)
    with pytest.raises(CheckpointFileError, match=rf"a\.pt: 'extra' .*{name}.*never called"):
        torch_archive.state_dict(out, path)


def test_weights_that_depend_on_an_unknown_global_are_refused(tmp_path):
    foreign = tensor().replace(b"torch\nFloatStorage", b"quantum\nFloatStorage")
    subclass = b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n(" + code("true") + b"t}tR"
    out = torch_archive.load(write_zip(tmp_path / "a.pt", mapping(w=foreign, v=subclass), [FOUR]))
    for part, name in (("w", "quantum.FloatStorage"), ("v", "os.system")):
        with pytest.raises(CheckpointFileError, match=name):
            torch_archive.state_dict({part: out[part]}, "a.pt")


def test_a_state_dict_is_a_mapping_of_arrays():
    with pytest.raises(CheckpointFileError, match="file: model should map .* type list"):
        torch_archive.state_dict([1], "file: model")
    with pytest.raises(CheckpointFileError, match="'epoch' should be a tensor, and is of type int"):
        torch_archive.state_dict({"epoch": 3}, "file")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(size=(5,)), r"shape \(5,\), strides \(1,\) and offset 0 does not fit its storage of 4 values"),
        (dict(size=(2, 2), stride=(3, 1)), "does not fit"),
        (dict(offset=1), "does not fit"),
        (dict(offset=-1), "does not fit"),
        (dict(stride=(-1,), offset=3), "does not fit"),
        (dict(size=(-1,)), "does not fit"),
        (dict(size=(1000000, 1000000), stride=(0, 0)), "does not fit"),
        (dict(numel=5), "storage 0 has 16 bytes, fewer than its 5 values need"),
        (dict(numel=-1), "fewer than its -1 values"),
        (dict(size=(4, 1), stride=(1,)), "damaged or truncated"),
        (dict(key="7"), "lacks its entry archive/data/7"),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, fields, message):
    path = write_zip(tmp_path / "a.pt", mapping(w=tensor(**fields)), [FOUR])
    with pytest.raises(CheckpointFileError, match=rf"a\.pt.*{message}.*Download or copy it again"):
        torch_archive.load(path)


def test_files_that_would_take_unbounded_memory_are_refused(tmp_path):
    bomb = write_zip(tmp_path / "bomb.pt", mapping(), [np.zeros(1 << 20)], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointFileError, match=r"bomb\.pt would expand from \d+ to 8\d+ bytes"):
        torch_archive.load(bomb)
    memo = write_zip(tmp_path / "memo.pt", b"}r\xff\xff\xff\x7f")
    with pytest.raises(CheckpointFileError, match=r"memo\.pt holds a malformed pickle"):
        torch_archive.load(memo)


def test_compressed_entries_are_read(tmp_path):
    noise = np.random.default_rng(0).standard_normal(4).astype(np.float32)
    path = write_zip(tmp_path / "a.pt", mapping(w=tensor()), [noise], compression=zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(torch_archive.load(path)["w"], noise)


def test_big_endian_files_are_refused(tmp_path):
    zipped = write_zip(tmp_path / "a.pt", mapping(w=tensor()), [FOUR], byteorder=b"big")
    legacy = write_legacy(tmp_path / "b.pt", mapping(w=tensor(legacy=True)), {"0": FOUR}, little_endian=False)
    for path in (zipped, legacy):
        with pytest.raises(CheckpointFileError, match="big-endian"):
            torch_archive.load(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "a PNG image"),
        (b"<!doctype html><html>Not found</html>", "text, perhaps an error page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (struct.pack("<Q", 2) + b"{}", "a safetensors file"),
        (b"\x1f\x8b\x08\x00\x00", "gzip"),
        (pickle.dumps({"w": 1}), "a pickle that torch.save did not write"),
        (b"\x01\x02\x03\x04", "unknown contents"),
    ],
)
def test_other_files_are_named(tmp_path, content, kind):
    path = tmp_path / "odd.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointFileError, match=rf"odd\.ckpt .*{kind}"):
        torch_archive.load(path)


def test_other_archives_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", w=FOUR)
    with pytest.raises(CheckpointFileError, match="torch.save did not write"):
        torch_archive.load(tmp_path / "a.npz")
    program = write_zip(tmp_path / "program.pt", mapping(), [])
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(CheckpointFileError, match="TorchScript"):
        torch_archive.load(program)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no PyTorch checkpoint at .*none\.ckpt: no such file"):
        torch_archive.load(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match="a directory"):
        torch_archive.load(tmp_path)


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, keep):
    values = np.arange(1000, dtype=np.float32)
    opcodes = mapping(w=tensor((1000,), numel=1000))
    whole = write_zip(tmp_path / "whole.pt", opcodes, [values]).read_bytes()
    legacy = write_legacy(tmp_path / "legacy.pt", mapping(w=tensor((1000,), numel=1000, legacy=True)), {"0": values})
    for content in (whole, legacy.read_bytes()):
        path = tmp_path / "cut.pt"
        path.write_bytes(content[: max(20, int(keep * len(content)))])
        with pytest.raises(CheckpointFileError, match=r"cut\.pt .*truncated"):
            torch_archive.load(path)


def test_a_damaged_pickle_is_one_clear_error(tmp_path):
    for opcodes in (b"", b"0", b"}(K\x01u", b"\xff", code("a")[:-3], b"ctorch._utils\n_rebuild_tensor_v2\n)R"):
        with pytest.raises(CheckpointFileError, match=r"a\.pt is damaged or truncated"):
            torch_archive.load(write_zip(tmp_path / "a.pt", opcodes))


TREE = {
    "state_dict": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int64(3)},
    "list": [1, -2.5, None, True, "é", 2**40],
    "tuple": (np.zeros((0, 3), ml_dtypes.bfloat16), np.array([True, False])),
}


def test_written_values_are_read_back(tmp_path):
    torch_archive.save(tmp_path / "sub" / "a.ckpt", TREE)
    out = torch_archive.load(tmp_path / "sub" / "a.ckpt")
    np.testing.assert_array_equal(out["state_dict"]["w"], TREE["state_dict"]["w"])
    assert out["state_dict"]["step"] == 3 and out["state_dict"]["step"].dtype == np.int64
    assert out["list"] == TREE["list"]
    assert [(a.shape, a.dtype) for a in out["tuple"]] == [(a.shape, a.dtype) for a in TREE["tuple"]]


def test_transposed_arrays_are_written_right_and_shared_ones_once(tmp_path):
    big = np.arange(20000, dtype=np.float32).reshape(100, 200)
    torch_archive.save(tmp_path / "a.ckpt", {"raw": big.T})
    np.testing.assert_array_equal(torch_archive.load(tmp_path / "a.ckpt")["raw"], big.T)
    torch_archive.save(tmp_path / "b.ckpt", {"raw": big, "ema": big})
    np.testing.assert_array_equal(torch_archive.load(tmp_path / "b.ckpt")["ema"], big)
    assert os.path.getsize(tmp_path / "b.ckpt") < 1.5 * big.nbytes


def test_written_files_use_only_globals_of_pytorchs_safe_mode(tmp_path):
    torch_archive.save(tmp_path / "a.ckpt", TREE)
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        opcodes = list(pickletools.genops(archive.read("archive/data.pkl")))
        offsets = [info.header_offset + 30 + len(info.filename) + len(info.extra) for info in archive.infolist()]
    known = "PROTO EMPTY_DICT MARK SETITEMS BINUNICODE BINPUT GLOBAL TUPLE TUPLE1 TUPLE2 BINPERSID REDUCE NEWFALSE"
    known += " NEWTRUE NONE BININT BININT1 BININT2 LONG1 BINFLOAT EMPTY_LIST APPENDS EMPTY_TUPLE STOP"
    assert {opcode.name for opcode, _, _ in opcodes} <= set(known.split())
    names = {argument for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}
    storages = {f"torch {kind}Storage" for kind in ("Float", "Long", "BFloat16", "Bool")}
    assert names == storages | {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
    assert all(offset % 64 == 0 for offset in offsets)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.ckpt"
    torch_archive.save(path, {"w": FOUR})
    for bad in (object(), np.array(["text"])):
        with pytest.raises(TypeError):
            torch_archive.save(path, {"w": bad})
    assert os.listdir(tmp_path) == ["a.ckpt"]
    np.testing.assert_array_equal(torch_archive.load(path)["w"], FOUR)


def test_a_flipped_bit_of_a_tensor_is_found_by_the_checksum_of_its_entry(tmp_path):
    values = np.random.default_rng(0).normal(size=4).astype(np.float32)
    path = write_zip(tmp_path / "a.pt", mapping(w=tensor()), [values])
    content = bytearray(path.read_bytes())
    content[content.index(values.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointFileError, match=r"a\.pt: entry archive/data/0 is damaged, as its checksum"):
        torch_archive.load(path)


def test_entries_whose_checksum_was_not_computed_are_read(tmp_path):
    path = write_zip(tmp_path / "a.pt", mapping(w=tensor()), [FOUR])
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            content = content.replace(struct.pack("<I", info.CRC), bytes(4))
    path.write_bytes(content)
    np.testing.assert_array_equal(torch_archive.load(path)["w"], FOUR)


def test_flipped_bits_are_found_or_change_nothing(tmp_path):
    values = np.random.default_rng(0).normal(size=40).astype(np.float32)
    path = write_zip(tmp_path / "a.pt", mapping(w=tensor((40,), numel=40), n=code(3)), [values])
    found = 0
    for place, bit in bit_flips.flipped(path, 300):
        try:
            out = torch_archive.load(path)
        except CheckpointFileError:
            found += 1
            continue
        np.testing.assert_array_equal(out["w"], values, err_msg=f"bit {bit} of byte {place}")
        assert out["n"] == 3 and len(out) == 2
    assert 150 < found < 300


def test_a_directory_of_millions_of_entries_is_not_read(tmp_path):
    path = write_zip(tmp_path / "a.pt", mapping(w=tensor()), [FOUR])
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(1100):
            archive.writestr(f"{number:04000d}", b"")
    with pytest.raises(CheckpointFileError, match=r"a\.pt .*its directory has \d+ bytes; at most 4194304 are read"):
        torch_archive.load(path)
