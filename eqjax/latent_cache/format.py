"""A cache of latents on disk: every image of a data set encoded once, in several crops and both flips.

    cache/plan.json                                  what is being made; written first, compared by every process
    cache/latents-00003-of-00010.array_record        one shard: the records of consecutive images
    cache/latents-00003-of-00010.json                written after its shard: the shard is finished
    cache/manifest.json                              written last, when every shard is finished

Image i has `variants` = crops × flips records, one behind the other (crop 0, crop 0 mirrored, crop 1, …). A record is
the label (int32, little-endian) and the posterior's mean [L, D]; its noise is drawn anew at every training step.
"""

import dataclasses
import json
import os
import threading

from array_record.python import array_record_module
import ml_dtypes
import numpy as np

from eqjax.io import atomic_write
from eqjax.typing import Record

FORMAT = "eqjax-latents-1"
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
_AGAIN = "Run the same eqjax.cli.cache_latents command again: it makes what is missing."


class CacheError(ValueError):
    """A cache of latents is not what it should be; the message says what was expected and what to do."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a cache holds: all that decides the contents of its records.

    Attributes:
        tokenizer_hash: Hash of the tokenizer's weights.
        tokenizer: Fields of the tokenizer, as JSON values.
        data: The data configuration that images were read with, as JSON values.
        split: "train" (random crops) or "eval" (the evaluation crops, not mirrored).
        num_images: Images in the data set.
        class_names: Names of the labels.
        num_crops: Crops per image.
        flips: Whether every crop is there mirrored too.
        shape: (L, D) of a record's latents: columns, channels.
        dtype: "bfloat16" or "float16".
        shard_size: Images per shard; the last has the rest.
        seed: Of the random crops.
    """

    tokenizer_hash: str
    tokenizer: dict
    data: dict
    split: str
    num_images: int
    class_names: tuple[str, ...]
    num_crops: int
    flips: bool
    shape: tuple[int, int]
    dtype: str
    shard_size: int
    seed: int

    @property
    def variants(self) -> int:
        """Records per image."""
        return self.num_crops * (2 if self.flips else 1)

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_images // self.shard_size)

    def images(self, shard: int) -> range:
        """Returns the numbers of the images in a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def shard_name(self, shard: int) -> str:
        """Returns a shard's file name without its ending."""
        return f"latents-{shard:05d}-of-{self.num_shards:05d}"

    def to_json(self) -> dict:
        """Returns JSON values: what `from_json` takes."""
        return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}))

    @classmethod
    def from_json(cls, values: dict, where: str) -> "Plan":
        """Makes a plan from `to_json`'s values, and possibly others.

        Raises:
            CacheError: If they have another format.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values]
        if values.get("format") != FORMAT or missing:
            raise CacheError(f"{where} has format {values.get('format')!r} and lacks {missing}; expected {FORMAT!r}.")
        fields = {name: values[name] for name in names}
        return cls(**{**fields, "class_names": tuple(fields["class_names"]), "shape": tuple(fields["shape"])})


def read_json(path: str) -> dict:
    """Reads a JSON file of a cache.

    Raises:
        CacheError: If it is no JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except json.JSONDecodeError as error:
        raise CacheError(f"{path} is damaged ({error}). Delete it. {_AGAIN}") from error
    if not isinstance(values, dict):
        raise CacheError(f"{path} holds {type(values).__name__}, expected an object. Delete it. {_AGAIN}")
    return values


def write_json(path: str, values: dict) -> None:
    """Writes a JSON file, whole or not at all."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, sort_keys=True)


def encode_record(latents: np.ndarray, label: int) -> bytes:
    """Returns the bytes of one record: latents [L, D] of a dtype of DTYPES, and a label."""
    return np.array(label, "<i4").tobytes() + np.ascontiguousarray(latents).tobytes()


def decode_record(record: bytes, plan: Plan) -> Record:
    """Returns {"latents": [L, D], "label": int} from the bytes of one record."""
    label = int(np.frombuffer(record, "<i4", 1)[0])
    return {"latents": np.frombuffer(record, DTYPES[plan.dtype], offset=4).reshape(plan.shape), "label": label}


def load_manifest(root: str) -> tuple[Plan, dict]:
    """Reads a finished cache's manifest and compares the sizes of its shards with it.

    Returns:
        The plan, and the whole manifest: also "latent_scale", "num_records" and "shards".

    Raises:
        FileNotFoundError: If there is no folder, or no manifest in it: the cache was not finished.
        CacheError: If a shard is missing or has another size.
    """
    path = os.path.join(root, "manifest.json")
    if not os.path.isfile(path):
        if not os.path.isdir(root):
            raise FileNotFoundError(
                f"root={root!r} is not a folder; expected a cache that eqjax.cli.cache_latents wrote."
            )
        done = sum(name.startswith("latents-") and name.endswith(".json") for name in os.listdir(root))
        raise FileNotFoundError(
            f"{root!r} has no manifest.json: it is not a finished cache of latents ({done} shards are). {_AGAIN}"
        )
    manifest = read_json(path)
    plan = Plan.from_json(manifest, path)
    for shard in range(plan.num_shards):
        name = plan.shard_name(shard)
        shard_path = os.path.join(root, f"{name}.array_record")
        have = os.path.getsize(shard_path) if os.path.isfile(shard_path) else None
        want = manifest["shards"][name]["bytes"]
        if have != want:
            state = "is missing" if have is None else f"has {have} bytes"
            raise CacheError(
                f"{shard_path} {state}, the manifest says {want}. Delete manifest.json, {name}.json and the shard. "
                f"{_AGAIN}"
            )
    return plan, manifest


class LatentSource:
    """Grain source of a finished cache: record i is image i in its first variant, {"latents": [L, D], "label": int}.

    `read` gives the other variants. Latents are posterior means, unscaled.

    Attributes:
        plan: What the cache holds, a `Plan`.
        manifest: The whole manifest, also with the measured "latent_scale".
        class_names: Names of the labels.
    """

    def __init__(self, root: str):
        """Opens a cache; raises as `load_manifest`."""
        self.root = os.fspath(root)
        self.plan, self.manifest = load_manifest(self.root)
        self.class_names = self.plan.class_names
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}  # Opened when first read from.
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_readers": {}, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.plan.num_images

    def __getitem__(self, index: int) -> Record:
        return self.read(int(index), 0)

    def read(self, image: int, variant: int) -> Record:
        """Returns one variant, in [0, plan.variants), of an image.

        Raises:
            CacheError: If the record is damaged; names the shard.
        """
        shard, place = divmod(image, self.plan.shard_size)
        path = os.path.join(self.root, f"{self.plan.shard_name(shard)}.array_record")
        try:
            (record,) = self._reader(shard, path).read([place * self.plan.variants + variant])
            return decode_record(record, self.plan)
        except (RuntimeError, ValueError, IndexError) as error:
            raise CacheError(
                f"Record {place * self.plan.variants + variant} of {path} cannot be read ({error}). Delete "
                f"manifest.json, {self.plan.shard_name(shard)}.json and the shard. {_AGAIN}"
            ) from error

    def _reader(self, shard: int, path: str) -> array_record_module.ArrayRecordReader:
        with self._lock:  # Opening alone: threads may read at the same time.
            if shard not in self._readers:
                # Records are read one here, one there: reading ahead would be wasted.
                self._readers[shard] = array_record_module.ArrayRecordReader(path, options="readahead_buffer_size:0")
            return self._readers[shard]


@dataclasses.dataclass(frozen=True)
class PickVariant:
    """Grain transform: the number of an image → a random variant of it, mirrored ones only where `flip` is set."""

    source: LatentSource
    flip: bool

    def __post_init__(self):
        if self.flip and not self.source.plan.flips:
            raise CacheError(
                f"flip=True, but the cache {self.source.root} was made with flips=False. Set data.flip=False, or make "
                "a cache with flips."
            )

    def __call__(self, image: int, rng: np.random.Generator) -> Record:
        plan = self.source.plan
        step = 2 if plan.flips and not self.flip else 1  # Mirrored crops have odd numbers.
        return self.source.read(int(image), step * int(rng.integers(0, plan.variants // step)))
