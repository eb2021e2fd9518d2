"""Sampling the images that a generator is judged by: the same ones however often the run is cut off.

Image i has class i mod num_classes and noise that follows from (seed, i) alone, so it is the same in every
batch, on any number of devices, and in a longer run. Images are written in order, batch after batch:

    folder/settings.json              what decides the images; a run with others refuses to go on here
    folder/shards/00000000-00000063.npy   uint8 [n, H, W, 3], each whole or not at all
    folder/png/00000000_0000.png      where wanted: number, class
    folder/samples.npz                where wanted: ADM's format, shuffled, labels inside

A run that was killed goes on after the last shard.
"""

import dataclasses
import hashlib
import json
import os
import re

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import pixels, pretrained, sharding
from eqjax.evaluation.feature_metrics import SHUFFLE_SEED
from eqjax.evaluation.image_sets import ImageSet, write_npz
from eqjax.evaluation.parallel import BatchedShardMap, ProgressLogger
from eqjax.io import atomic_write
from eqjax.sampling.sampler import sample_latents
from eqjax.tokenizer.tiling import decode_images


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the images, besides the weights.

    Attributes:
      num_columns: width, in columns.
      guidance_scale, guidance_schedule, num_flow_steps, solver, time_grid, temperature, max_position: as
        `eqjax.sample_latents`; a time grid by its name.
      seed: of all noise.
    """

    num_columns: int
    guidance_scale: float = 1.0
    guidance_schedule: str = "linear"
    num_flow_steps: int = 100
    solver: str = "euler"
    time_grid: str = "uniform"
    temperature: float = 1.0
    max_position: int | None = None
    seed: int = 0


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings) if field.name != "num_columns"}


def labels_of(num_images, num_classes):
    """Labels i mod num_classes, int32 [num_images]: equally many per class where the numbers divide."""
    return np.arange(num_images, dtype=np.int32) % num_classes


def check(model, settings, num_images):
    """Refuses what `generate` could not draw, before anything is written or compiled.

    Args:
      model: an `eqjax.Model`; its arrays may be jax.ShapeDtypeStruct.
      settings, num_images: as `generate`.

    Raises:
      ValueError: a half is missing; settings out of their range, as `eqjax.sample_latents` refuses them.
    """
    if num_images < 1:
        raise ValueError(f"num_images={num_images} must be at least 1.")
    model.require("tokenizer"), model.require("generator")
    labels, key = jax.ShapeDtypeStruct((1,), jnp.int32), jax.random.key(0)
    jax.eval_shape(
        lambda model, labels: _sample(model, settings, labels, settings.guidance_scale, key=key), model, labels
    )


def generate(model, settings, num_images, folder, *, mesh=None, rows_per_device=16):
    """Draws images 0 … num_images − 1 into shards; goes on where a run before was cut off.

    Args:
      model: an `eqjax.Model` with both halves.
      settings: `Settings`.
      num_images: N. Where it does not divide by the classes, the first N mod classes get one more each.
      folder: of this set of images, on a disk that all processes see.
      mesh: None: all devices.
      rows_per_device: images that a device draws at a time.

    Returns:
      `Samples`.

    Raises:
      ValueError: the folder holds images of other settings or weights; bad arguments of `sample_latents`.
      FloatingPointError: images that are not finite; they are named.
    """
    check(model, settings, num_images)
    num_classes = model.generator.num_classes
    if num_images % num_classes:
        logging.warning(
            "%d images do not divide by %d classes: classes 0 … %d get %d each, the others %d.",
            num_images,
            num_classes,
            num_images % num_classes - 1,
            num_images // num_classes + 1,
            num_images // num_classes,
        )
    _check_settings(folder, {**dataclasses.asdict(settings), "weights": fingerprint(model)})
    samples = Samples(folder, num_images, num_classes)
    done = min(samples.available(), num_images)
    if done == num_images:
        return samples
    # Seed and guidance are arguments of the compiled program, so that a sweep finds it in the cache.
    params = model, jax.random.key_data(jax.random.key(settings.seed)), np.float32(settings.guidance_scale)
    draw = BatchedShardMap(_draw(settings), params, mesh or sharding.make_mesh(), rows_per_device)
    if done:
        logging.info("%s holds images 0 … %d; going on from there.", folder, done - 1)
    countdown = ProgressLogger("images", num_images, done)
    labels = labels_of(num_images, num_classes)
    for first in range(done, num_images, draw.batch_size):
        indices = np.arange(first, min(first + draw.batch_size, num_images))
        images, finite = draw(indices.astype(np.uint32), labels[indices])
        if not finite.all():
            raise FloatingPointError(
                f"images {indices[~finite].tolist()} have values that are not finite; nothing of this batch was "
                "written. Are the weights sound, and is the guidance not too strong?"
            )
        samples.write(first, images)
        countdown.update(len(indices))
    return samples


def _draw(settings):
    """What `BatchedShardMap` maps: ((model, a key's data, guidance), indices, labels) → (uint8 images, finite [b])."""
    guided = settings.guidance_scale != 1

    def draw(params, indices, labels):
        model, key_data, scale = params
        key = jax.random.wrap_key_data(key_data)
        shape = settings.num_columns, model.generator.latent_dim
        noise = jax.vmap(lambda index: jax.random.normal(jax.random.fold_in(key, index), shape))(indices)
        latents = _sample(model, settings, labels, scale if guided else 1.0, noise=noise)
        images = decode_images(model.tokenizer, model.tokenizer_params, latents / model.latent_scale)
        return pixels.to_uint8(images), jnp.isfinite(images).all(axis=(1, 2, 3))

    return draw


def _sample(model, settings, labels, guidance_scale, **source):
    """Latents under `settings`, with noise or key as their source."""
    return sample_latents(
        model.generator,
        model.generator_params,
        labels,
        num_columns=settings.num_columns,
        guidance_scale=guidance_scale,
        guidance_schedule=settings.guidance_schedule,
        num_flow_steps=settings.num_flow_steps,
        solver=settings.solver,
        time_grid=settings.time_grid,
        temperature=settings.temperature,
        max_position=settings.max_position,
        **source,
    )


class Samples:
    """The images of a folder that `generate` fills.

    Attributes:
      folder: it.
      count: images wanted; `available` says how many there are.
      labels: int32 [count].
    """

    def __init__(self, folder, count, num_classes):
        self.folder, self.count = os.fspath(folder), count
        self.labels = labels_of(count, num_classes)
        self._shards = os.path.join(self.folder, "shards")

    def write(self, first, images):
        """Writes images `first` … as one shard, whole or not at all; on process 0."""
        if jax.process_index() == 0:
            name = f"{first:08d}-{first + len(images) - 1:08d}.npy"
            with atomic_write(os.path.join(self._shards, name)) as temporary, open(temporary, "wb") as file:
                np.save(file, images)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(f"shard {first}")

    def available(self):
        """How many images there are: 0 … available − 1."""
        ranges = self._ranges()
        return ranges[-1][1] if ranges else 0

    def _ranges(self):
        """[(first, last + 1, path)] of the shards, in order.

        Raises:
          ValueError: shards that overlap or leave a gap.
        """
        names = sorted(os.listdir(self._shards)) if os.path.isdir(self._shards) else []
        found, expected = [], 0
        for name in names:
            match = re.fullmatch(r"(\d+)-(\d+)\.npy", name)
            if not match:
                continue  # A temporary file of a run that was killed.
            first, last = int(match[1]), int(match[2])
            if first != expected or last < first:
                raise ValueError(
                    f"shards under {self._shards} do not follow each other: {name} where image {expected} should be "
                    "next. Remove it and all later ones; they will be drawn again."
                )
            found.append((first, last + 1, os.path.join(self._shards, name)))
            expected = last + 1
        return found

    def batches(self):
        """Yields the images in order, uint8 [n, H, W, 3], a shard at a time."""
        for first, stop, path in self._ranges():
            if first < self.count:
                yield _shard(path, stop - first)[: self.count - first]

    def image_set(self):
        """As an `ImageSet`."""
        return ImageSet(self.count, self.folder, self.batches)

    def write_png(self):
        """Writes png/<number>_<class>.png, those that are not there yet."""
        if jax.process_index():
            return
        number = 0
        for images in self.batches():
            for image in images:
                path = os.path.join(self.folder, "png", f"{number:08d}_{self.labels[number]:04d}.png")
                if not os.path.exists(path):
                    pixels.save_png(path, image)
                number += 1

    def write_npz(self):
        """Writes samples.npz in ADM's format, shuffled as its Inception Score needs, and gives its path."""
        path = os.path.join(self.folder, "samples.npz")
        if jax.process_index() == 0:
            order = np.random.RandomState(SHUFFLE_SEED).permutation(self.count)
            ranges = self._ranges()
            starts = np.array([first for first, _, _ in ranges])

            def row(place):
                shard = np.searchsorted(starts, order[place], side="right") - 1
                first, stop, file = ranges[shard]
                return _shard(file, stop - first)[order[place] - first]

            write_npz(path, self.count, row, self.labels[order])
        return path


def _shard(path, count):
    """A shard, mapped, not loaded."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it and all later shards, and run again.") from error
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != count:
        raise ValueError(f"{path} holds {images.dtype} {images.shape}, expected {count} uint8 images; remove it.")
    return images


def fingerprint(model):
    """Sixteen hexadecimal digits that change with any weight and any field of the modules."""
    modules = [pretrained.module_to_dict(module) for module in (model.tokenizer, model.generator) if module is not None]
    digest = hashlib.sha256(json.dumps([modules, model.latent_scale], sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _check_settings(folder, settings):
    """Writes what decides the images beside them, or compares with what is there."""
    path = os.path.join(folder, "settings.json")
    settings = json.loads(json.dumps(settings))
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            there = json.load(file)
        # Solver, time grid and last position once stood in a field of their own, and only those given.
        there = {**_DEFAULTS, **there.pop("more", {}), **there}
        names = sorted(settings.keys() | there.keys())
        lines = [
            f"  {name}: there {there.get(name)!r}, now {settings.get(name)!r}"
            for name in names
            if there.get(name) != settings.get(name)
        ]
        if lines:
            raise ValueError(
                f"{folder} holds images of another run; give another folder, or the same settings.\n" + "\n".join(lines)
            )
    elif jax.process_index() == 0:
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(settings, file, indent=2)
