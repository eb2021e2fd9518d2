"""Hostile files that only make sense beside others: states of panoramas, caches, results, lists of classes.

Each format is a class that makes a good file, writes a hostile one, and reads it. As a program,
`python -m tests.hostile_states SEED COUNT FOLDER`, it reads COUNT files of each format with little memory.
"""

import collections
import copy
import json
import pathlib
import random
import resource
import sys
import time
import zipfile

import numpy as np

from eqjax import checksums, convert_files, npz, panorama
from eqjax.convert import rules, state_dicts, torch_archive
from eqjax.data.folder import read_class_file
from eqjax.evaluation import image_sets, results
from eqjax.evaluation.sample_folder import SampleFolder
from eqjax.latent_cache import format as cache_format
from eqjax.latent_cache.writer import CacheWriter
from tests import hostile_files
from tests.random_params import random_params
from tests.sampling.small_models import local_model

NUMBERS = [0, 1, -1, 2, 3, 255, 2**31, 2**40, 2**63, -(2**64), 10**100, 0.5, float("nan"), float("inf")]
VALUES = [*NUMBERS, None, True, "", "a/b", "x" * 5000, [], [1], [[1]], {}, {"a": {"b": []}}, [1] * 10**4]
TEXTS = ["[" * 5000, "null", "3", "[]", "{", "", "\0", '{"a": ' * 99 + "1" + "}" * 99, "NaN", '{"checksum": 1}', "é"]


def change(values, rng):
    """Changes one value of nested JSON, or removes it."""
    part = values
    while True:
        items = list(part.items() if isinstance(part, dict) else enumerate(part))
        if not items:
            return
        key, value = rng.choice(items)
        if isinstance(value, (dict, list)) and value and rng.random() < 0.7:
            part = value
        elif rng.random() < 0.2:
            del part[key]
            return
        else:
            part[key] = copy.deepcopy(rng.choice(VALUES))  # A later change must not put a list into itself.
            return


def hostile_json(text, rng):
    """Returns a changed JSON text, with a fitting checksum most of the time."""
    if rng.random() < 0.2:
        return rng.choice(TEXTS)
    values = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        change(values, rng)
    if isinstance(values, dict) and rng.random() < 0.8:
        values = checksums.sign({name: value for name, value in values.items() if name != "checksum"})
    return json.dumps(values)


class Images:
    """npz of images."""

    name, error = "images.npz", image_sets.StatisticsError

    def __init__(self, folder):
        self.path = folder / self.name
        np.savez(self.path, np.zeros((3, 4, 4, 3), np.uint8))

    def write(self, path, rng):
        shape = rng.choice([(3, 4, 4, 3), (0, 4, 4, 3), (2**40, 4, 4, 3), (1, 2**31, 2**31, 3), (-3, 4, 4, 3), (9,)])
        content = hostile_files.npy(
            rng.choice(["|u1", "<f4", "|O", "|V9", "<U4"]), shape, bytes(rng.choice([0, 144, 2**20, 2**25]))
        )
        method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in rng.choice([["arr_0"], ["x"], ["arr_0", "arr_1"], ["a", "b"], []]):
                archive.writestr(f"{name}.npy", content)

    def read(self, path):
        for batch in image_sets.from_npz(path).batches():
            assert batch.nbytes <= image_sets._BATCH_BYTES


class PanoramaState:
    """Saved state of a panorama."""

    name, error = "state.npz", ValueError

    def __init__(self, folder):
        self.path, self.model = folder / self.name, local_model()
        strips = panorama(self.model, "cat", strip_columns=5, num_flow_steps=1)
        next(strips)
        strips.save(self.path)

    def write(self, path, rng):
        with np.load(self.path) as file:
            arrays = dict(file)
        about, _ = npz.signed_values(arrays.pop("about"), arrays)
        if rng.random() < 0.6:
            change(about if rng.random() < 0.3 else about["options"], rng)
        else:
            name = rng.choice(list(arrays))
            shape = rng.choice([(), (0,), (1, 2, 3), (4000, 4), arrays[name].shape])
            arrays[name] = np.zeros(shape, rng.choice(["f4", "f8", "i4", "u1", "<U3", "?"]))
        npz.write(path, arrays, "about", about)

    def read(self, path):
        panorama(self.model, state=path)


class Cache:
    """Manifest of a cache of latents, beside its shard."""

    name, error = "cache/manifest.json", (cache_format.CacheError, FileNotFoundError)

    def __init__(self, folder):
        self.path = folder / self.name
        spec = cache_format.CacheSpec(
            "0" * 64, {"embed_dim": 2}, {"height": 4, "width": 12}, "train", 7, ("ant", "bee"), 1, False, (3, 2),
            "float16", 7, 0,
        )  # fmt: skip
        writer = CacheWriter(str(self.path.parent), spec)
        writer.open()
        writer.write_shard(0, [(np.full((3, 2), i, np.float16), i % 2) for i in range(7)])
        assert writer.write_manifest(1.0)
        self.good = self.path.read_text()

    def write(self, path, rng):
        path.write_text(hostile_json(self.good, rng))

    def read(self, path):
        source = cache_format.LatentSource(path.parent)
        for i in range(min(len(source), 7)):
            source.read(i, 0)


class Shard(Cache):
    """Shard of a cache of latents."""

    name = "shards/manifest.json"

    def __init__(self, folder):
        super().__init__(folder)
        self.path = self.path.parent / "latents-00000-of-00001.array_record"
        self.good = self.path.read_bytes()

    def write(self, path, rng):
        content = bytearray(self.good)
        for _ in range(rng.randint(1, 40)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)


class Results:
    """results.json of an evaluation."""

    name, error = "results/results.json", ValueError

    def __init__(self, folder):
        self.path = folder / self.name
        results.save(self.path.parent, [{"metrics": {"fid": 2.5}, "protocol": {"seed": 0, "size": [1, 2]}}])
        self.good = self.path.read_text()

    def write(self, path, rng):
        path.write_text(hostile_json(self.good, rng))

    def read(self, path):
        results.table(results.load(path.parent) or [{"metrics": {}, "protocol": {}}])


class Protocol(Results):
    """protocol.json of a folder of samples."""

    name = "samples/protocol.json"

    def __init__(self, folder):
        self.path, self.protocol = folder / self.name, {"seed": 0, "guidance": [1.0], "network": {"width": 3}}
        SampleFolder(self.path.parent, 3, 2).check_protocol(self.protocol)
        self.good = self.path.read_text()

    def read(self, path):
        SampleFolder(path.parent, 3, 2).check_protocol(self.protocol)


class Classes:
    """List of classes."""

    name, error = "classes.txt", ValueError

    def __init__(self, folder):
        self.path = folder / self.name
        self.path.write_text("ant\nbee\n")

    def write(self, path, rng):
        lines = [rng.choice(["ant", "#", "", "x" * 10**6, "\0", "é", "a b c"]) for _ in range(rng.choice([0, 1, 9]))]
        lines += [str(i) for i in range(rng.choice([0, 10**5]))] * rng.choice([1, 2])
        path.write_bytes("\n".join(lines).encode(rng.choice(["utf-8", "utf-16", "latin-1"])))

    def read(self, path):
        read_class_file(path)


class StateDict:
    """PyTorch file whose tensors have other names and shapes than those of a model."""

    name, error = "weights.pt", (torch_archive.CheckpointFileError, rules.ConversionError, ValueError)

    def __init__(self, folder):
        self.path = folder / self.name
        self.dicts = [
            state_dicts.tokenizer_state_dict(random_params(hostile_files.TOKENIZER), hostile_files.TOKENIZER),
            state_dicts.generator_state_dict(random_params(hostile_files.GENERATOR), hostile_files.GENERATOR),
        ]
        torch_archive.save(self.path, self.dicts[0])

    def write(self, path, rng):
        arrays = dict(rng.choice(self.dicts))
        keys = [name for name in arrays if name.count(".") < 3 or rng.random() < 0.1]
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(keys)
            shape = rng.choice([(), (0,), (3,), (1, 1), (0, 0, 3), (2, 3, 4), (1, 2, 3, 4), (4, 4, 0, 3), (1,) * 9])
            new = rng.choice([name, name, name.replace("0", "9" * 30), "encoder.down.3000.x", "x" * 10**4])
            arrays.pop(name, None)
            if rng.random() < 0.8:
                arrays[new] = np.zeros(shape, rng.choice([np.float32, np.int8, np.bool_, np.float64]))
        torch_archive.save(path, arrays)

    def read(self, path):
        convert_files.read_torch(path)


FORMATS = (Images, PanoramaState, Cache, Shard, Results, Protocol, Classes, StateDict)

# Files of each format in the ordinary tests.
COUNTS = dict(zip(FORMATS, (60, 60, 60, 60, 60, 60, 30, 15), strict=True))


def read_many(kind, folder, seed, count):
    """Reads hostile files of a format; returns a Counter of "read" and "refused".

    Raises:
      AssertionError: a file took too long, or was read with another exception than documented.
    """
    folder = pathlib.Path(folder) / kind.__name__
    (folder / kind.name).parent.mkdir(parents=True, exist_ok=True)
    made, counts, longest = kind(folder), collections.Counter(), 0
    good = made.path.read_bytes()
    made.read(made.path)
    for i in range(count):
        rng = random.Random(f"{seed} {kind.name} {i}")
        if rng.random() < 0.3:
            made.path.write_bytes(hostile_files.mutate(good, rng))
        else:
            made.write(made.path, rng)
        start = time.process_time()
        try:
            made.read(made.path)
            counts["read"] += 1
        except kind.error as refused:
            counts["refused"] += 1
            longest = max(longest, len(str(refused)))
        except Exception as other:
            raise AssertionError(f"{kind.name} of seed {seed}, number {i}: {type(other).__name__}: {other}") from other
        seconds = time.process_time() - start
        assert seconds < 3 * hostile_files.SECONDS, f"{kind.name} of seed {seed}, number {i}, took {seconds:.1f} s"
        made.path.write_bytes(good)
    assert longest < 300_000
    return counts


def main(seed, count, folder):
    """Reads with bounded memory; see `read_many`."""
    for kind in FORMATS:
        read_many(kind, folder, seed, 1)  # Maps what JAX needs, before memory is limited.
    mapped = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + hostile_files.MEMORY, mapped + hostile_files.MEMORY))
    for kind in FORMATS:
        outcomes = read_many(kind, folder, seed, int(count) * COUNTS[kind] // 60)
        print(kind.__name__, *(f"{outcome} {number}" for outcome, number in sorted(outcomes.items())), sep=", ")


if __name__ == "__main__":
    main(*sys.argv[1:])
