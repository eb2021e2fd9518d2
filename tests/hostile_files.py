"""Hostile files of every format that eqjax reads: built from grammars, or mutated from good ones, all from a seed.

As a program, `python -m tests.hostile_files SEED COUNT FOLDER`, it reads COUNT files of each format with little
memory, and prints how many were read and refused.
"""

import collections
import json
import pathlib
import pickle
import random
import resource
import struct
import sys
import time
from typing import Any
import zipfile

import numpy as np
import safetensors.numpy

from eqjax import Generator, Tokenizer, pretrained
from eqjax.convert import checkpoint, torch_archive
from eqjax.evaluation import statistics
from tests.random_params import random_params

# What documented readers may raise, and the seconds of CPU time that one file may take.
READERS = {
    "zip.pt": (torch_archive.load, torch_archive.CheckpointFileError),
    "legacy.pt": (torch_archive.load, torch_archive.CheckpointFileError),
    "state.safetensors": (checkpoint.read_reference, torch_archive.CheckpointFileError),
    "weights.safetensors": (pretrained.load, pretrained.WeightsError),
    "statistics.npz": (statistics.load, statistics.StatisticsError),
}
# In tests the types of every call are checked, which takes most of the time. The slowest file took 6.2 s of a slow
# machine's CPU beside another test, and 3 s alone; what is not read in time would take minutes, or for ever.
SECONDS = 12.0 if "pytest" in sys.modules else 2.0
MEMORY = 2**30  # Bytes on top of what the program has mapped when it starts to read.

GENERATOR = Generator(width=8, depth=2, num_heads=2, latent_dim=4, num_classes=3, flow_width=8, flow_depth=1)
TOKENIZER = Tokenizer(
    channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(), resolution=16, z_channels=2,
    embed_dim=4, semantic=dict(channels=8, channel_multipliers=[1], num_res_blocks=1, out_channels=8, downsamples=0),
)  # fmt: skip
_NUMBERS = [0, 1, -1, 2, 3, 255, 2**16, 2**31 - 1, -(2**31), 2**31, 2**32, 2**63 - 1, 2**63, -(2**64), 2**127, 10**100]
_VALUES = [
    *_NUMBERS, 0.5, float("nan"), float("inf"), -1e300, None, True, "", "a/b", "x" * 5000, [], [1], [None], ["a"] * 40,
    [2**40], [[1]], [1] * 10**4, {}, {"a": {"b": []}}, {"channels": -1},
]  # fmt: skip


class Files:
    """Makes files of each format.

    Attributes:
      folder: folder of the files.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.good = {}
        rng = np.random.default_rng(0)
        tree = {"model": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "epoch": 3, "list": [1.5, None, "é"]}
        torch_archive.save(self.folder / "zip.pt", tree)
        write_legacy(self.folder / "legacy.pt", tensor_opcodes("0"), [b"0"], 4)
        safetensors.numpy.save_file({"a.weight": np.ones((2, 3), "f4")}, self.folder / "state.safetensors")
        modules = {"tokenizer": TOKENIZER, "generator": GENERATOR}
        params = {name: random_params(module) for name, module in modules.items()}
        weights = pretrained.Weights(modules, params, 0.5, ("a", "b", "c"), "notes")
        pretrained.save(self.folder / "weights.safetensors", weights)
        moments = statistics.Statistics(
            rng.normal(size=3), np.eye(3), np.ones(2), np.eye(2), 7, {"network": "tiny"}, rng.normal(size=(5, 3))
        )
        statistics.save(self.folder / "statistics.npz", moments)
        for name, (read, _) in READERS.items():
            self.good[name] = (self.folder / name).read_bytes()
            read(self.folder / name)

    def make(self, name, rng):
        """Writes a hostile file of a format and returns its path."""
        path = self.folder / f"hostile_{name}"
        grammar = {
            "zip.pt": self._zip, "legacy.pt": self._legacy, "weights.safetensors": self._weights,
            "statistics.npz": self._statistics, "state.safetensors": self._safetensors,
        }  # fmt: skip
        if rng.random() < 0.5:
            path.write_bytes(mutate(self.good[name], rng))
        else:
            grammar[name](path, rng)
        return path

    def _zip(self, path, rng):
        write_zip(path, hostile_opcodes(rng), rng)

    def _legacy(self, path, rng):
        keys = rng.choice([[b"0"], [b"0", b"1"], [b"0"] * 1000, []])
        write_legacy(path, hostile_opcodes(rng), keys, rng.choice([4, 0, -1, 2**40, 2**62]))

    def _safetensors(self, path, rng):
        entry = {
            "dtype": rng.choice(["F32", "BF16", "I64", "F8_E4M3", "F4", "BOOL", "", 3]),
            "shape": rng.choice([[2, 3], [], [0, 2**62], [2**62, 2**62], [-1], None, [1] * 1000]),
            "data_offsets": rng.choice([[0, 24], [0, 0], [24, 0], [0, 2**63], [-1, 4], None]),
        }
        write_safetensors(path, {"w": entry, "__metadata__": rng.choice([{}, {"a": "b"}, {"a": 1}, 3])}, bytes(24))

    def _weights(self, path, rng):
        content = self.good["weights.safetensors"]
        length = int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        config = json.loads(header["__metadata__"]["eqjax"])
        for _ in range(rng.randint(1, 3)):
            part = rng.choice(
                [config, config, config["tokenizer"], config["generator"], config["tokenizer"]["semantic"]]
            )
            if isinstance(part, dict) and part:
                key = rng.choice([*part, *part, "unknown"])
                if key not in ("tokenizer", "generator", "semantic", "format"):
                    part[key] = rng.choice(_VALUES)
        text = json.dumps(config)
        if rng.random() < 0.8:
            header["__metadata__"].pop("checksum")
        if rng.random() < 0.1:
            text = rng.choice(
                ["[" * 5000, "null", "3", "[]", '{"format": "eqjax-1"}', '{"format": ' + "[" * 99 + "]" * 99]
            )
        header["__metadata__"]["eqjax"] = text
        if rng.random() < 0.3:
            name = rng.choice([name for name in header if name != "__metadata__"])
            header[rng.choice(["w", "generator", "/", "a/b", f"{name}/x", "x" * 3000])] = header.pop(name)
        write_safetensors(path, header, data)

    def _statistics(self, path, rng):
        arrays = {"mu": np.ones(3), "sigma": np.eye(3), "features": np.ones((5, 3))}
        entries = {name: npy(array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}
        name = rng.choice([*entries, "protocol", "mu_s"])
        shape = rng.choice([(3,), (3, 3), (), (2**30,), (2**30, 2**30), (-1,), (0,), (2**63,), (1,) * 100])
        kind = rng.choice(["<f8", "<f4", "|O", "<U3", "|V1000000", "<M8[s]", ">f8", "<c16", "?"])
        entries[name] = npy(kind, shape, bytes(rng.choice([0, 24, 2**20])))
        if rng.random() < 0.5:
            header = {"format": "eqjax-statistics-1", "count": rng.choice(_VALUES), "protocol": rng.choice(_VALUES)}
            text = rng.choice([json.dumps(header), "[" * 5000, "[" * 99 + "]" * 99, "NaN", "{"])
            entries["protocol"] = npy(f"<U{len(text)}", (), text.encode("utf-32-le"))
        method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in entries.items():
                archive.writestr(f"{name}.npy", content)


def mutate(content, rng):
    """Changes a file: bytes, 4-byte numbers, pieces left out, doubled or swapped, the end cut off."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, size = rng.randrange(len(content)), rng.choice([1, 4, 64])
        match rng.randrange(6):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at] = rng.choice([0, 1, 0x28, 0x2E, 0x7F, 0x80, 0xFF])
            case 2:
                content[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1]))
            case 3:
                del content[at : at + size]
            case 4:
                content[at:at] = content[at : at + size]
            case 5:
                content[at : at + size] = content[at - size : at]
        content = content or bytearray(b"\0")
    return bytes(content[: rng.randrange(len(content)) + 1]) if rng.random() < 0.1 else bytes(content)


def code(value):
    """Pickle opcodes of a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor_opcodes(key="0", size: Any = (4,), stride: Any = (1,), offset: Any = 0, numel: Any = 4):
    """Pickle opcodes of a tensor."""
    pid = b"(" + code("storage") + b"ctorch\nFloatStorage\n" + code(key) + code("cpu") + code(numel) + b"NtQ"
    arguments = pid + code(offset) + code(size) + code(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def hostile_opcodes(rng):
    """Returns a program of random opcodes, most of which has what its opcodes need."""
    parts, depth = [b"}q\x00"], rng.choice([2, 5, 20, 500])
    number = lambda: rng.choice(_NUMBERS)  # noqa: E731 - drawn at each use
    for _ in range(depth):
        match rng.randrange(16):
            case 0:
                parts.append(rng.choice([b"]", b"}", b")", b"\x8f", b"(", b"N", b"\x88"]))
            case 1:
                parts.append(code(number()))
            case 2:
                parts.append(b"2" + rng.choice([b"\x86", b"\x85", b"a", b"b", b"s", b"R", b"Q"]))
            case 3:
                parts.append(b"2\x86" * rng.choice([1, 30, 100]))  # Shared pairs: 2**100 leaves.
            case 4:
                parts.append(rng.choice([b"l", b"t", b"d", b"e", b"u", b"\x90", b"\x91", b"0", b"1"]))
            case 5:
                index = rng.choice([0, 1, 2, 255])
                parts.append(rng.choice([b"q", b"h"]) + bytes([index]))
            case 6:
                argument = struct.pack("<I", rng.choice([0, 2, 2**31, 2**32 - 1]))
                parts.append(rng.choice([b"r", b"j", b"\x8b", b"X", b"B", b"T"]) + argument)
            case 7:
                module = rng.choice(["torch", "torch._utils", "collections", "os", "a" * 600, "torch._tensor"])
                name = rng.choice(["Size", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "OrderedDict", "system",
                                   "FloatStorage", "_rebuild_from_type_v2", "_rebuild_parameter"])  # fmt: skip
                parts.append(f"c{module}\n{name}\n".encode())
            case 8:
                parts.append(rng.choice([b")", b"(t", b"h\x00\x85", b"2\x85"]) + rng.choice([b"R", b"\x81"]))
            case 9:
                sizes = tuple(number() for _ in range(rng.choice([0, 1, 2, 40])))
                parts.append(tensor_opcodes("0", sizes, sizes, number(), rng.choice([4, number()])))
            case 10:
                parts.append(b"ctorch\nSize\n" + code(tuple(number() for _ in range(3))) + b"\x85R")
            case 11:
                parts.append(rng.choice([b"]", b")"]) + rng.choice([b"\x85", b"]2a0"]) * rng.choice([10, 100, 1000]))
            case 12:
                parts.append(bytes(rng.randrange(256) for _ in range(3)))
            case 13:
                parts.append(b"}" + rng.choice([code("k"), code((1, 2)), b")\x85", code(number())]) + b"Ns")
            case 14:
                parts.append(b"h\x00" + code(rng.choice(["a", "b"])) + tensor_opcodes() + b"s0")
            case 15:
                parts.append(b"ccollections\nOrderedDict\n" + rng.choice([b")", b"]\x85", code(([("a", 1)],))]) + b"R")
    return b"".join(parts) + rng.choice([b"", b"0h\x00"])


def write_zip(path, opcodes, rng):
    """Writes a zip file of PyTorch, with odd entries now and then."""
    method = rng.choice([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes + b".")
        archive.writestr("archive/data/0", bytes(16))
        for name in rng.choice([[], [], ["archive/../x"], ["/x"], ["archive/byteorder"], ["a" * 3000]]):
            archive.writestr(name, b"little")


def write_legacy(path, opcodes, keys, numel):
    """Writes a legacy file of PyTorch."""
    head = [0x1950A86A20F9469CFC6C, 1001, dict(protocol_version=1001, little_endian=True)]
    content = b"".join(pickle.dumps(value, protocol=2) for value in head)
    content += b"\x80\x02" + opcodes + b"." + pickle.dumps([key.decode() for key in keys], protocol=2)
    pathlib.Path(path).write_bytes(content + b"".join(struct.pack("<q", numel) + bytes(16) for _ in keys))


def write_safetensors(path, header, data):
    """Writes a safetensors file with any header."""
    text = json.dumps(header).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def npy(kind, shape, data):
    """Returns an npy file with any header."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def read_many(files, seed, count, formats=tuple(READERS)):
    """Reads hostile files of each format; returns {format: Counter of "read" and "refused"}.

    Raises:
      AssertionError: a file took too long, was read with another exception, or its message is long or names no file.
    """
    counts = {}
    for name in formats:
        read, error = READERS[name]
        counts[name] = collections.Counter()
        for i in range(count):
            rng = random.Random(f"{seed} {name} {i}")
            path = files.make(name, rng)
            start = time.process_time()
            try:
                read(path)
                outcome = "read"
            except error as refused:
                outcome = "refused"
                message = str(refused)
                assert len(message) < 6000 and path.name in message, f"{name} of seed {seed}, number {i}: {message}"
            except Exception as other:
                raise AssertionError(f"{name} of seed {seed}, number {i}: {type(other).__name__}: {other}") from other
            seconds = time.process_time() - start
            assert seconds < SECONDS, f"{name} of seed {seed}, number {i}, took {seconds:.1f} s"
            counts[name][outcome] += 1
    return counts


def main(seed, count, folder):
    """Reads with bounded memory; see `read_many`."""
    files = Files(folder)  # Reads a good one of each, which maps what JAX needs, before memory is limited.
    mapped = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    for name, outcomes in read_many(files, seed, int(count)).items():
        print(name, *(f"{outcome} {number}" for outcome, number in sorted(outcomes.items())), sep=", ")


if __name__ == "__main__":
    main(*sys.argv[1:])
