"""The files of a latent cache: every image of a data set encoded once, in several crops and both flips.

    cache/spec.json                                  the specification: encoder, images, crops; written first
    cache/latents-00003-of-00010.array_record        one shard: the records of consecutive images
    cache/latents-00003-of-00010.json                statistics of the shard, written when the shard is complete
    cache/manifest.json                              written when every shard is complete

Image i has `num_variants` = crops × flips consecutive records (crop 0, crop 0 mirrored, crop 1, …). A record is the
label (int32, little-endian) followed by the posterior's mean [L, D]; its noise is drawn at every training step.

ArrayRecord keeps a 64-bit hash of every record and compares it at every reading; JSON files hold a checksum.
"""

import dataclasses
import json
import math
import operator
import os
import threading
from typing import Any, SupportsIndex

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]  # Compiled.
from jaxtyping import Float
import ml_dtypes
import numpy as np

from eqjax import checksums
from eqjax.addresses import local_path
from eqjax.io import read_json, write_json
from eqjax.messages import shorten
from eqjax.typing import Record

FORMAT = "eqjax-latents-1"
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
_REPEAT = "Run the same eqjax cache-latents command again; it makes the missing shards."


class CacheError(ValueError):
    """A cache of latents is damaged or does not fit; the message names the expected value and the remedy."""


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """Everything that determines the records of a cache.

    Attributes:
      encoder_fingerprint: fingerprint of the encoder's weights.
      encoder_fields: fields of the tokenizer, as JSON values.
      data: the data configuration of the images, as JSON values.
      split: "train" (random crops) or "eval" (the evaluation crops, not mirrored).
      num_images: images in the data set.
      class_names: names of the labels.
      num_crops: crops per image.
      flips: whether every crop is also encoded mirrored.
      shape: (L, D), the columns and channels of a record's latents.
      dtype: dtype of the latents, "bfloat16" or "float16".
      shard_size: images per shard; the last shard has the rest.
      seed: seed of the random crops.
    """

    encoder_fingerprint: str
    encoder_fields: dict[str, Any]
    data: dict[str, Any]
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
    def num_variants(self) -> int:
        """Records per image."""
        return self.num_crops * (2 if self.flips else 1)

    @property
    def num_shards(self) -> int:
        """Shards of the whole cache."""
        return -(-self.num_images // self.shard_size)

    def image_range(self, shard: int) -> range:
        """Returns the indices of the images in a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def shard_name(self, shard: int) -> str:
        """Returns a shard's file name without its extension."""
        return f"latents-{shard:05d}-of-{self.num_shards:05d}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the specification as JSON values."""
        return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}))

    @classmethod
    def from_dict(cls, values: dict[str, Any], path: str) -> "CacheSpec":
        """Makes a specification from the values of `to_dict`; others are ignored.

        Args:
          values: content of a cache's spec.json or manifest.json.
          path: the file, for messages.

        Raises:
          CacheError: the values have another format, or fields are missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values]
        if values.get("format") != FORMAT or missing:
            raise CacheError(
                f"{path} has format {shorten(repr(values.get('format')))} and lacks {missing}; expected {FORMAT!r} "
                "with all fields. Make the cache again in another folder."
            )
        for name in names:
            if not _is_valid(name, values[name]):
                raise CacheError(
                    f"{path}: {name} is {shorten(repr(values[name]))}, which no cache has. Make the cache again in "
                    "another folder."
                )
        fields = {name: values[name] for name in names}
        return cls(**{**fields, "class_names": tuple(fields["class_names"]), "shape": tuple(fields["shape"])})


def _is_valid(name: str, value: Any) -> bool:
    """Returns whether a field of a specification has a value of the right type, and in its range."""
    match name:
        case "encoder_fields":
            return isinstance(value, dict)
        case "data":
            return isinstance(value, dict) and all(_is_count(value.get(side)) for side in ("height", "width"))
        case "class_names":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "shape":
            return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))
        case "num_images" | "num_crops" | "shard_size":
            return _is_count(value)
        case "dtype":
            return isinstance(value, str) and value in DTYPES
        case "flips":
            return isinstance(value, bool)
        case "seed":
            return isinstance(value, int)
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40


def read_cache_json(path: str) -> dict[str, Any]:
    """Returns the JSON object in a file of a cache, compared with its checksum.

    Raises:
      CacheError: the file holds no JSON object, or another one than was written.
    """
    try:
        values = read_json(path)
    except ValueError as error:
        raise CacheError(f"{error} Delete it. {_REPEAT}") from error
    if not isinstance(values, dict):
        raise CacheError(f"{path} holds {type(values).__name__}, expected an object. Delete it. {_REPEAT}")
    values, intact = checksums.verify(values)
    if not intact:
        raise CacheError(f"{path} is damaged, as its checksum differs. Delete it. {_REPEAT}")
    return values


def write_cache_json(path: str, values: dict[str, Any]) -> None:
    """Writes a JSON object with a checksum, for `read_cache_json`."""
    write_json(path, checksums.sign(values))


def encode_record(latents: Float[np.ndarray, "L D"], label: int) -> bytes:
    """Returns the bytes of one record; the latents have a dtype of DTYPES."""
    return np.array(label, "<i4").tobytes() + np.ascontiguousarray(latents).tobytes()


def decode_record(record: bytes, spec: CacheSpec) -> Record:
    """Returns {"latents": [L, D], "label": int} from the bytes of one record."""
    label = int(np.frombuffer(record, "<i4", 1)[0])
    return {"latents": np.frombuffer(record, DTYPES[spec.dtype], offset=4).reshape(spec.shape), "label": label}


def load_manifest(root: str) -> tuple[CacheSpec, dict[str, Any]]:
    """Reads the manifest of a complete cache and checks the sizes of its shards.

    Returns:
      The specification, and the whole manifest, which also has "latent_scale", "num_records" and "shards".

    Raises:
      FileNotFoundError: `root` is not a folder, or has no manifest because the cache is incomplete.
      CacheError: a shard is missing or has another size.
    """
    path = os.path.join(local_path(root, "root"), "manifest.json")
    if not os.path.isfile(path):
        if not os.path.isdir(root):
            raise FileNotFoundError(f"root={root!r} is not a folder; expected a cache written by eqjax cache-latents.")
        done = sum(name.startswith("latents-") and name.endswith(".json") for name in os.listdir(root))
        raise FileNotFoundError(
            f"{root!r} has no manifest.json: it is not a complete cache of latents (complete shards: {done}). {_REPEAT}"
        )
    manifest = read_cache_json(path)
    spec, shards, scale = CacheSpec.from_dict(manifest, path), manifest.get("shards"), manifest.get("latent_scale")
    if not isinstance(shards, dict) or not isinstance(scale, float) or not 0 < scale < math.inf:
        raise CacheError(f"{path} lists no shards, or no latent_scale. Delete it. {_REPEAT}")
    for shard in range(spec.num_shards):
        name = spec.shard_name(shard)
        shard_path = os.path.join(root, f"{name}.array_record")
        found = os.path.getsize(shard_path) if os.path.isfile(shard_path) else None
        listed = shards.get(name)
        expected = listed.get("bytes") if isinstance(listed, dict) else None
        if expected is None:
            raise CacheError(f"{path} does not list the shard {name}. Delete it. {_REPEAT}")
        if found != expected:
            state = "is missing" if found is None else f"has {found} bytes"
            raise CacheError(
                f"{shard_path} {state}; the manifest expects {expected} bytes. Delete manifest.json, {name}.json and "
                f"the shard. {_REPEAT}"
            )
    return spec, manifest


class LatentSource:
    """Grain source of a complete cache: record i is the first variant of image i, {"latents": [L, D], "label": int}.

    Latents are posterior means, not scaled. `read` returns the other variants.

    Attributes:
      root: folder of the cache.
      spec: specification of the cache.
      manifest: the whole manifest, which also has the measured "latent_scale".
      class_names: names of the labels.
    """

    root: str
    spec: CacheSpec
    manifest: dict[str, Any]
    class_names: tuple[str, ...]

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Opens a cache.

        Raises:
          FileNotFoundError: `root` is not a folder, or the cache is incomplete.
          CacheError: a file of the cache is damaged or missing.
        """
        self.root = os.fspath(root)
        self.spec, self.manifest = load_manifest(self.root)
        self.class_names = self.spec.class_names
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}  # Opened at the first read.
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.spec.num_images

    def __getitem__(self, index: SupportsIndex) -> Record:
        return self.read(operator.index(index), 0)

    def read(self, image: int, variant: int) -> Record:
        """Returns one variant of an image.

        Args:
          image: index of the image, in [0, len(self)).
          variant: index of the variant, in [0, spec.num_variants).

        Raises:
          CacheError: the record is damaged.
        """
        shard, offset = divmod(image, self.spec.shard_size)
        position = offset * self.spec.num_variants + variant
        path = os.path.join(self.root, f"{self.spec.shard_name(shard)}.array_record")
        try:
            (record,) = self._reader(shard, path).read([position])
            return decode_record(record, self.spec)
        except (RuntimeError, ValueError, IndexError) as error:
            raise CacheError(
                f"Record {position} of {path} cannot be read ({error}). Delete manifest.json, "
                f"{self.spec.shard_name(shard)}.json and the shard. {_REPEAT}"
            ) from error

    def _reader(self, shard: int, path: str) -> array_record_module.ArrayRecordReader:
        with self._lock:  # Only opening is serialized; concurrent reads are safe.
            if shard not in self._readers:
                # Reads are random, so reading ahead would be wasted.
                self._readers[shard] = array_record_module.ArrayRecordReader(path, options="readahead_buffer_size:0")
            return self._readers[shard]


@dataclasses.dataclass(frozen=True)
class RandomVariant:
    """Grain transform from the index of an image to a random variant of it, mirrored ones only if `flip` is set.

    Attributes:
      source: the cache.
      flip: whether mirrored variants are drawn too.
    """

    source: LatentSource
    flip: bool

    def __post_init__(self) -> None:
        if self.flip and not self.source.spec.flips:
            raise CacheError(
                f"flip=True, but the cache {self.source.root} was made with flips=False. Set data.flip=False, or make "
                "a cache with flips."
            )

    def __call__(self, image: SupportsIndex, rng: np.random.Generator) -> Record:
        spec = self.source.spec
        step = 2 if spec.flips and not self.flip else 1  # Mirrored crops are the odd variants.
        return self.source.read(operator.index(image), step * int(rng.integers(0, spec.num_variants // step)))
