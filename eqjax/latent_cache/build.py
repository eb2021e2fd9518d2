"""Making a cache of latents: images → crops and flips → encoder → shards, by many processes, killed at any moment.

The shard is the unit of everything: process p of P makes the shards p, p + P, …; a shard is written under a temporary
name of its writer's own, renamed when it is whole, and counted as finished once its statistics lie beside it. A process
that starts makes what is missing; two that make the same shard only lose time. Crops are drawn from the seed, the
image's number and the crop's, so it does not matter who makes a shard, or how often. The process that finds all
shards finished writes the manifest.
"""

from concurrent import futures
import contextlib
import os
import re
import time

from absl import logging
from array_record.python import array_record_module
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import pixels, sharding
from eqjax.data import pipeline
from eqjax.io import atomic_write
from eqjax.latent_cache.check import encoding_fields, noise_mean_square, tokenizer_hash
from eqjax.latent_cache.format import DTYPES, CacheError, Plan, encode_record, read_json, write_json

_SPLITS = ("train", "eval")
_POLL_SECONDS = 2.0
_WITHOUT_EFFECT = ("num_threads", "num_workers", "flip")  # Of the data configuration, on a cache.


def make_plan(config, weights, *, split="train", num_crops=1, flips=True, dtype="bfloat16", shard_size=1024, seed=0):
    """The `Plan` of a cache, and the records that it is made from.

    Args:
      config: data configuration; its crop and size are used, its `flip` is not.
      weights: the tokenizer's `Weights`.
      split: "train" for random crops; "eval" for the evaluation crops, one each, not mirrored.
      num_crops: random crops per image.
      flips: whether to encode every crop mirrored too.
      dtype: "bfloat16" or "float16".
      shard_size: images per shard.
      seed: of the crops.

    Returns:
      The plan, and a sequence of {"image", "label"} records.

    Raises:
      ValueError: an argument out of range, a data source that is a cache itself, sizes that do not fit.
    """
    if config.source == "latents":
        raise ValueError("source='latents' is a cache already; give the configuration of its images.")
    if split not in _SPLITS or dtype not in DTYPES:
        raise ValueError(f"split={split!r} and dtype={dtype!r} must be among {_SPLITS} and {tuple(DTYPES)}.")
    if num_crops < 1 or shard_size < 1:
        raise ValueError(f"num_crops={num_crops} and shard_size={shard_size} must be at least 1.")
    tokenizer, train = weights.modules["tokenizer"], split == "train"
    tokenizer.check_images((1, config.height, config.width, 3))
    source = pipeline.make_source(config, train)
    records = source if train else pipeline.eval_dataset(config, source)
    plan = Plan(
        tokenizer_hash=tokenizer_hash(weights.params["tokenizer"]),
        tokenizer=encoding_fields(tokenizer),
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
    return plan, records


def build_cache(output, config, weights, *, batch_size=64, process_index=0, process_count=1, wait=False, **options):
    """Makes this process's shards of a cache, and the manifest if it is the last.

    Args:
      output: folder of the cache, seen by all processes.
      config: data configuration of the images.
      weights: the tokenizer's `Weights`.
      batch_size: images per call of the encoder, every crop and flip counted; rounded up to whole devices.
      process_index, process_count: which shards are this process's.
      wait: stay until the other processes' shards are finished too.
      **options: as `make_plan`.

    Returns:
      Whether the cache is finished: False, unless told to wait, while other processes' shards are missing.

    Raises:
      CacheError: the folder holds a cache of another plan; both sides are named.
      ValueError: as `make_plan`, or process numbers that make no sense.
    """
    if not 0 <= process_index < process_count or batch_size < 1:
        raise ValueError(
            f"process_index={process_index} must lie in [0, process_count={process_count}), batch_size={batch_size} be "
            "at least 1."
        )
    plan, records = make_plan(config, weights, **options)
    _claim(output, plan)
    missing = [shard for shard in range(plan.num_shards) if not _finished(output, plan, shard)]
    mine = [shard for shard in missing if shard % process_count == process_index]
    logging.info("%s: %d of %d shards are missing, %d made here.", output, len(missing), plan.num_shards, len(mine))
    # As many whole images as a call takes; those of more variants than that are taken in several calls.
    at_once = max(1, batch_size // plan.variants)
    encode = _make_encoder(weights, plan, min(batch_size, at_once * plan.variants))
    with futures.ThreadPoolExecutor(max(1, config.num_threads)) as pool:
        for number, shard in enumerate(mine):
            if not _finished(output, plan, shard):  # Another process may have made it meanwhile.
                _write_shard(output, plan, shard, _encoded(plan, records, shard, encode, at_once, pool, config))
            logging.info("Shard %d is finished; %d more here.", shard, len(mine) - number - 1)
    while not _finish(output, plan, weights):
        if not wait:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _claim(output, plan):
    """Writes the plan into a new folder, or compares it with the one that is there."""
    path = os.path.join(output, "plan.json")
    os.makedirs(output, exist_ok=True)
    if not os.path.exists(path):
        write_json(path, plan.to_json())
        return
    have, want = read_json(path), plan.to_json()
    for side in (have, want):
        side["data"] = {k: v for k, v in side.get("data", {}).items() if k not in _WITHOUT_EFFECT}
    differing = [
        f"{k}: there {_short(have.get(k))}, now {_short(want.get(k))}"
        for k in sorted(have | want)
        if have.get(k) != want.get(k)
    ]
    if differing:
        raise CacheError(f"{output} holds a cache of another plan: {'; '.join(differing)}. Give another folder.")


def _short(value):
    text = re.sub(r"\s+", " ", str(value))
    return text if len(text) < 200 else f"{text[:200]}…"


def _statistics_path(output, plan, shard):
    return os.path.join(output, f"{plan.shard_name(shard)}.json")


def _finished(output, plan, shard):
    path = os.path.join(output, f"{plan.shard_name(shard)}.array_record")
    statistics = _statistics_path(output, plan, shard)
    if not os.path.isfile(path) or not os.path.isfile(statistics):
        return False
    return os.path.getsize(path) == read_json(statistics)["bytes"]


def _make_encoder(weights, plan, batch_size):
    """uint8 images [n, H, W, 3] → posterior means, at most `batch_size` per call of all this process's devices.

    Returns:
      A function of the images, which starts the work and returns a list of arrays.
    """
    tokenizer = weights.modules["tokenizer"]
    mesh = sharding.make_mesh(jax.local_devices())
    data = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.BATCH_AXES))
    params = jax.device_put(weights.params["tokenizer"], sharding.replicated(mesh))
    size = -(-batch_size // mesh.size) * mesh.size

    @jax.jit
    def encode(params, images):
        mean = tokenizer.apply({"params": params}, pixels.from_uint8(images), method="encode").mode()
        return mean.astype(jnp.dtype(plan.dtype))

    def start(images):
        # One shape for all calls: the last is filled up.
        missing = -len(images) % size
        filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
        return [encode(params, jax.device_put(filled[i : i + size], data)) for i in range(0, len(filled), size)]

    return start


def _variants(plan, records, config, picture):
    """All variants of one image: uint8 [variants, H, W, 3], and its label."""
    record = records[picture]
    if plan.split == "eval":
        return record["image"][None], record["label"]
    crop, images = pipeline.random_crop(config), []
    for number in range(plan.num_crops):
        image = crop(record, np.random.default_rng((plan.seed, picture, number)))["image"]
        images += [image, image[:, ::-1]] if plan.flips else [image]
    return np.stack(images), record["label"]


def _encoded(plan, records, shard, encode, at_once, pool, config):
    """Yields (latents [L, D], label) of a shard's records; `at_once` images are read while the encoder works."""
    numbers = plan.images(shard)
    batches = [numbers[i : i + at_once] for i in range(0, len(numbers), at_once)]

    def read(batch):
        return [pool.submit(_variants, plan, records, config, picture) for picture in batch]

    reading = read(batches[0])
    for following in [*batches[1:], None]:
        images, labels = zip(*(future.result() for future in reading), strict=True)
        started = encode(np.concatenate(images))
        reading = read(following) if following is not None else []
        latents = np.concatenate([np.asarray(part) for part in started])
        for i, label in enumerate(np.repeat(labels, plan.variants)):
            yield latents[i], int(label)


def _write_shard(output, plan, shard, records):
    """Writes a shard and then its statistics; a shard without them is made again."""
    path = os.path.join(output, f"{plan.shard_name(shard)}.array_record")
    count, squares = 0, 0.0
    try:
        with atomic_write(path) as temporary:
            # Compressed shards would be a fifth smaller and read at little more than half the rate.
            writer = array_record_module.ArrayRecordWriter(temporary, "group_size:1,uncompressed")
            try:
                for latents, label in records:
                    values = np.asarray(latents, np.float64)
                    if not np.isfinite(values).all():
                        raise CacheError(
                            f"latents of record {count} of {path} are not finite in {plan.dtype}; try bfloat16."
                        )
                    writer.write(encode_record(latents, label))
                    count, squares = count + 1, squares + float(np.mean(np.square(values)))
            finally:
                writer.close()
    except FileNotFoundError:
        # Others made this shard too, finished the cache, and cleared away what is not part of it.
        if not _finished(output, plan, shard):
            raise
        return
    statistics = {"records": count, "bytes": os.path.getsize(path), "mean_square": squares / count}
    write_json(_statistics_path(output, plan, shard), statistics)


def _finish(output, plan, weights):
    """Writes the manifest when all shards are finished; the latent scale counts the posterior's noise in."""
    if not all(_finished(output, plan, shard) for shard in range(plan.num_shards)):
        return False
    shards = {plan.shard_name(i): read_json(_statistics_path(output, plan, i)) for i in range(plan.num_shards)}
    records = sum(shard["records"] for shard in shards.values())
    if records != plan.num_images * plan.variants:
        raise CacheError(f"{output} holds {records} records, expected {plan.num_images} × {plan.variants}.")
    mean_square = sum(shard["records"] * shard["mean_square"] for shard in shards.values()) / records
    noise = noise_mean_square(weights.modules["tokenizer"].posterior_std)
    manifest = {"num_records": records, "latent_scale": (mean_square + noise) ** -0.5, "shards": shards}
    write_json(os.path.join(output, "manifest.json"), {**plan.to_json(), **manifest})
    for name in os.listdir(output):
        if ".array_record." in name and name.endswith(".tmp"):  # Of processes that were killed.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(output, name))
    logging.info("%s is finished: %d records of %d images.", output, records, plan.num_images)
    return True
