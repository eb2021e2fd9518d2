"""Builds a cache of latents: images → crops and flips → encoder → shards.

The shard is the unit of work: process p of P makes the shards p, p + P, …, and a process that starts makes only the
missing ones. Crops depend only on the seed, the index of the image and that of the crop, so the records do not depend
on which process makes a shard, or how often. The process that finds all shards complete writes the manifest.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import functools
import os
import time
from typing import Any, TypeAlias

from absl import logging
import grain
from jaxtyping import Float, UInt8
import numpy as np

from eqjax.data import datasets
from eqjax.latent_cache.check import encoder_fields, encoder_fingerprint
from eqjax.latent_cache.encode import MeanEncoder, noise_mean_square
from eqjax.latent_cache.format import DTYPES, CacheSpec
from eqjax.latent_cache.writer import CacheWriter
from eqjax.pretrained import Weights
from eqjax.progress import ProgressLogger, announced
from eqjax.typing import AnyArray, Config

Records: TypeAlias = datasets.Source | grain.MapDataset
# All variants of one image, and its label.
Variants: TypeAlias = tuple[UInt8[np.ndarray, "V H W 3"], int]

_SPLITS = ("train", "eval")
_POLL_SECONDS = 2.0


def make_spec(
    config: Config,
    weights: Weights,
    *,
    split: str = "train",
    num_crops: int = 1,
    flips: bool = True,
    dtype: str = "bfloat16",
    shard_size: int = 1024,
    seed: int = 0,
) -> tuple[CacheSpec, Records]:
    """Returns the specification of a cache, and the records that it is made from.

    Args:
      config: data configuration of the images. Its size, crop and classes are used, its `flip` is not.
      weights: the tokenizer.
      split: "train" for random crops; "eval" for the evaluation crops, one per image, not mirrored.
      num_crops: random crops per image.
      flips: whether to encode every crop mirrored too.
      dtype: dtype of the latents, "bfloat16" or "float16".
      shard_size: images per shard.
      seed: seed of the random crops.

    Returns:
      The specification, and a sequence of {"image", "label"} records.

    Raises:
      ValueError: an argument is out of range, the data source is a cache itself, or the sizes do not fit.
    """
    if config.source == "latents":
        raise ValueError("source='latents' is already a cache; use the data configuration of its images.")
    if split not in _SPLITS or dtype not in DTYPES:
        raise ValueError(f"split={split!r} and dtype={dtype!r} must be among {_SPLITS} and {tuple(DTYPES)}.")
    if num_crops < 1 or shard_size < 1:
        raise ValueError(f"num_crops={num_crops} and shard_size={shard_size} must be at least 1.")
    tokenizer, train = weights.modules["tokenizer"], split == "train"
    tokenizer.check_images((1, config.height, config.width, 3))
    source = datasets.make_source(config, train)
    records = source if train else datasets.eval_dataset(config, source)
    spec = CacheSpec(
        encoder_fingerprint=encoder_fingerprint(weights.params["tokenizer"]),
        encoder_fields=encoder_fields(tokenizer),
        data={name: list(value) if isinstance(value, tuple) else value for name, value in config.items()},
        split=split,
        num_images=len(records),
        class_names=tuple(source.class_names),
        num_crops=num_crops if train else 1,
        flips=flips and train,
        shape=(config.width // tokenizer.column_width, tokenizer.embed_dim),
        dtype=dtype,
        shard_size=shard_size,
        seed=seed,
    )
    return spec, records


def build_cache(
    output: str | os.PathLike[str],
    config: Config,
    weights: Weights,
    *,
    split: str = "train",
    num_crops: int = 1,
    flips: bool = True,
    dtype: str = "bfloat16",
    shard_size: int = 1024,
    seed: int = 0,
    batch_size: int = 64,
    process_index: int = 0,
    process_count: int = 1,
    wait: bool = False,
    precision: Any = "highest",
    between_calls: Callable[[], None] = lambda: None,
) -> bool:
    """Makes this process's shards of a cache, and the manifest if no shard is missing afterwards.

    Args:
      output: folder of the cache, shared by all processes.
      config: data configuration of the images. Its size, crop and classes are used, its `flip` is not.
      weights: the tokenizer.
      split: "train" for random crops; "eval" for the evaluation crops, one per image, not mirrored.
      num_crops: random crops per image.
      flips: whether to encode every crop mirrored too.
      dtype: dtype of the latents, "bfloat16" or "float16".
      shard_size: images per shard.
      seed: seed of the random crops.
      batch_size: images per call of the encoder, counting every crop and flip; rounded up to a multiple of the devices.
      process_index: this process, in [0, process_count).
      process_count: number of processes.
      wait: whether to wait until the other processes' shards are complete too.
      precision: of the encoder's products of float32 numbers, "highest" (float32), "tf32" or "bfloat16".
      between_calls: called before each call of the encoder; what it raises ends the work between two images.

    Returns:
      Whether the cache is complete; without `wait`, False while other processes' shards are missing.

    Raises:
      CacheError: the folder holds a cache with another specification.
      ValueError: an argument is out of range, the data source is a cache itself, or the sizes do not fit.
    """
    if not 0 <= process_index < process_count or batch_size < 1:
        raise ValueError(
            f"process_index={process_index} must be in [0, process_count={process_count}), and "
            f"batch_size={batch_size} must be at least 1."
        )
    with announced("Reading the list of images", patience=2.0):
        spec, records = make_spec(
            config,
            weights,
            split=split,
            num_crops=num_crops,
            flips=flips,
            dtype=dtype,
            shard_size=shard_size,
            seed=seed,
        )
    writer = CacheWriter(os.fspath(output), spec)
    writer.open()
    # A call takes as many whole images as fit; an image with more variants than that takes several calls.
    images_per_call = max(1, batch_size // spec.num_variants)
    encoder = MeanEncoder(weights, DTYPES[dtype], min(batch_size, images_per_call * spec.num_variants), precision)

    def encode(images: UInt8[np.ndarray, "N H W 3"]) -> Sequence[AnyArray]:
        between_calls()
        return encoder(images)

    read = functools.partial(_image_variants, spec, records, config)
    shards = _shards_to_make(writer, spec, process_index, process_count)
    with futures.ThreadPoolExecutor(max(1, config.num_threads)) as pool:
        for done, shard in enumerate(shards, start=1):
            if not writer.is_complete(shard):  # Another process may have made it in the meantime.
                images = spec.image_range(shard)
                progress = ProgressLogger(f"images of shard {shard}", len(images))
                writer.write_shard(shard, _encode(images, read, encode, images_per_call, pool, progress))
            logging.info("Shard %d is complete; this process has %d more to make.", shard, len(shards) - done)
    noise = noise_mean_square(weights.modules["tokenizer"].posterior_std)
    while not writer.write_manifest(noise):
        if not wait:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _shards_to_make(writer: CacheWriter, spec: CacheSpec, process_index: int, process_count: int) -> list[int]:
    """Returns the missing shards that are this process's, and logs how many there are."""
    missing = [shard for shard in range(spec.num_shards) if not writer.is_complete(shard)]
    mine = [shard for shard in missing if shard % process_count == process_index]
    counts = (len(missing), spec.num_shards, len(mine))
    logging.info("%s: %d of %d shards are missing; this process makes %d.", writer.root, *counts)
    if not missing:
        logging.info("Nothing is left to do: all shards are complete.")
    return mine


def _encode(
    indices: Sequence[int],
    read: Callable[[int], Variants],
    encoder: Callable[[UInt8[np.ndarray, "N H W 3"]], Sequence[AnyArray]],
    images_per_call: int,
    pool: futures.Executor,
    progress: ProgressLogger,
) -> Iterator[tuple[Float[np.ndarray, "L D"], int]]:
    """Yields (latents, label) of every variant of some images; the next images are read while the encoder works."""
    batches = [indices[i : i + images_per_call] for i in range(0, len(indices), images_per_call)]
    reading = [pool.submit(read, index) for index in batches[0]]
    for next_batch in [*batches[1:], ()]:
        images, labels = zip(*(future.result() for future in reading), strict=True)
        encoding = encoder(np.concatenate(images))
        reading = [pool.submit(read, index) for index in next_batch]
        latents = np.concatenate([np.asarray(part) for part in encoding])
        for i, label in enumerate(np.repeat(labels, [len(variants) for variants in images])):
            yield latents[i], int(label)
        progress.update(len(images))


def _image_variants(spec: CacheSpec, records: Records, config: Config, index: int) -> Variants:
    """Returns all variants of one image, and its label."""
    record: Any = records[index]
    label = int(record["label"])
    if spec.split == "eval":
        return record["image"][None], label
    crop, variants = datasets.random_crop(config), []
    for number in range(spec.num_crops):
        image = crop(record, np.random.default_rng((spec.seed, index, number)))["image"]
        variants += [image, image[:, ::-1]] if spec.flips else [image]
    return np.stack(variants), label
