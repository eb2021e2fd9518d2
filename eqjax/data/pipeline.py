"""From a configuration to batches: deterministic, sharded by process, resumable on any number of processes and workers.

A stream of records is numbered once for all processes: record n of the stream (its image, crop and flip) is a
function of the seed and n alone. Batch k holds records k·B … k·B + B − 1; process p of P takes every P-th of them,
starting at p. The state is the number of the next record, so it means the same on every process and may be restored
on another number of processes, workers or threads, and even with another batch size.

Images stay uint8 until they are on the device: bytes are a quarter of the float32 transfer, and the division belongs
in the jitted step (images / 127.5 − 1).
"""

from collections.abc import Iterator

from absl import flags, logging
import grain
import ml_collections
import numpy as np

from eqjax.data import config as data_config
from eqjax.data import folder, image_source, photos, tfds, transforms
from eqjax.latent_cache.format import LatentSource, PickVariant

Batch = dict[str, np.ndarray]
Source = photos.PhotoSource | image_source.ImageSource | LatentSource


def make_source(config: ml_collections.ConfigDict, train: bool = True) -> Source:
    """Makes the source of whole images that a configuration names.

    Args:
        config: Data configuration, see `default_config`.
        train: True for the training images; False for the photographs' held-out parts, or for the images under
            `eval_root`.

    Returns:
        A Grain random-access source of {"image": [H, W, 3] uint8, "label": int}, with `class_names`; images of files
        have their shorter side resized already. From cached latents {"latents": [L, D], "label": int}.

    Raises:
        ValueError: If the configuration, or what it points to, is not as it should be.
        FileNotFoundError: If the folder does not exist.
    """
    data_config.check_config(config)
    if config.source == "photos":
        return photos.PhotoSource(train=train, holdout=config.holdout, classes=data_config.class_names(config))
    if not train and not config.eval_root and config.source != "tfds":
        logging.info("eval_root is not set: evaluating on the training data under %s.", config.root)
    root = config.root if train else config.eval_root or config.root
    if config.source == "latents":
        return LatentSource(root)
    classes = folder.read_class_file(config.class_file) if config.class_file else data_config.class_names(config)
    fit = transforms.ResizeShorterSide(config.resize, config.height, config.width)
    # Evaluation decodes in full: its numbers are compared with those of other programs.
    options = dict(
        classes=classes, max_corrupt_fraction=config.max_corrupt_fraction, fit=fit, draft=config.draft and train
    )
    if config.source == "tfds":
        return tfds.TfdsSource(root, config.split if train else config.eval_split, **options)
    return folder.FolderSource(root, **options)


def _int32_label(record: transforms.Record) -> transforms.Record:
    return {**record, "label": np.int32(record["label"])}


def random_crop(config: ml_collections.ConfigDict) -> transforms.RandomScaleCrop | transforms.RandomCrop:
    """Returns the random crop of training images, (record, rng) → record of height × width pixels."""
    if config.source == "photos":
        return transforms.RandomScaleCrop(config.height, config.width, config.min_scale, config.max_scale)
    return transforms.RandomCrop(config.height, config.width)


def _train_dataset(config: ml_collections.ConfigDict, source: Source, seed: int) -> grain.MapDataset:
    """Shuffled, randomly cropped and flipped records, endlessly, every epoch in another order with other crops."""
    if config.source == "latents":
        # Numbers of images: which of an image's records is read, chance decides.
        dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle()
        dataset = dataset.random_map(PickVariant(source, config.flip))
    else:
        dataset = grain.MapDataset.source(source).seed(seed).shuffle().random_map(random_crop(config))
        if config.flip:
            dataset = dataset.random_map(transforms.RandomFlip())
    return dataset.map(_int32_label).repeat(None)


def eval_dataset(config: ml_collections.ConfigDict, source: Source) -> grain.MapDataset:
    """Makes the finite data set of evaluation records, in order, without randomness.

    Args:
        config: Data configuration, see `default_config`.
        source: The source of `make_source(config, train=False)`.

    Returns:
        A data set of {"image": [height, width, 3] uint8, "label": int32}: the grid of photograph crops, or center
        crops of images; from cached latents {"latents": [L, D], "label": int32}, first variants.
    """
    if config.source == "photos":
        grid = photos.PhotoGrid(source, config.height, config.width, config.min_scale, config.max_scale)
        dataset = grain.MapDataset.source(grid)
    elif config.source == "latents":
        dataset = grain.MapDataset.source(source)
    else:
        dataset = grain.MapDataset.source(source).map(transforms.CenterCrop(config.height, config.width))
    return dataset.map(_int32_label)


def process_share(batch_size: int, process_index: int | None, process_count: int | None) -> grain.sharding.ShardOptions:
    """Returns which share of every global batch is this process's; asks JAX where the caller does not say.

    Args:
        batch_size: Global batch size, all processes together.
        process_index: This process, in [0, process_count); from JAX when None.
        process_count: Number of processes; from JAX when None.

    Raises:
        ValueError: If the batch does not divide among the processes, or the numbers make no sense.
    """
    if (process_index is None) != (process_count is None):
        raise ValueError(f"Give both or neither of process_index={process_index} and process_count={process_count}.")
    if process_index is None:
        import jax  # Only here: worker processes and users of the sources alone need no JAX.

        process_index, process_count = jax.process_index(), jax.process_count()
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must lie in [0, process_count={process_count}).")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"The global batch_size={batch_size} must be a positive multiple of the number of processes, "
            f"process_count={process_count}."
        )
    return grain.sharding.ShardOptions(shard_index=process_index, shard_count=process_count)


class BatchIterator(Iterator[Batch]):
    """Endless batches {"image": [b, H, W, 3] uint8, "label": [b] int32} of one process, b = global batch / processes.

    From cached latents, "latents" [b, L, D] stands in the place of "image".

    Close it when done (threads and worker processes end), or use it in a `with` statement.

    Attributes:
        source: The source read from; `source.class_names` are the names of the labels.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        shard: grain.sharding.ShardOptions,
        num_threads: int,
        num_workers: int,
    ):
        """Use `make_iterator`. Takes an endless unbatched data set, the global batch size and this process's share."""
        self.source = source
        self._num_workers = num_workers
        self._identity = {"seed": seed, "num_records": len(source)}
        # The elements that Grain reads ahead are whole batches here; its default of 500 would fill the memory.
        read_options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
        workers = None
        if num_workers:
            workers = grain.MultiprocessingOptions(num_workers=num_workers)
            if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which notebooks and tests never parse.
                flags.FLAGS.mark_as_parsed()
        self._iterator = grain.experimental.ElasticIterator(
            dataset, batch_size, shard, read_options=read_options, multiprocessing_options=workers
        )

    @property
    def num_corrupt(self) -> int | None:
        """Number of undecodable images met so far; None where worker processes count theirs, or without files."""
        return None if self._num_workers else getattr(self.source, "num_corrupt", None)

    def __next__(self) -> Batch:
        return next(self._open_iterator())

    def _open_iterator(self) -> grain.experimental.ElasticIterator:
        if self._iterator is None:
            raise ValueError("This iterator was closed; make a new one and hand it the state.")
        return self._iterator

    def get_state(self) -> dict[str, int]:
        """Returns the position in the stream: plain integers, the same on every process after as many batches."""
        return {**self._open_iterator().get_state(), **self._identity}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position that `get_state` returned, on any number of processes, workers or threads.

        Raises:
            ValueError: If the state belongs to another seed or another number of records, whose stream is a different
                one.
        """
        for name, value in self._identity.items():
            if state[name] != value:
                raise ValueError(
                    f"The saved data state has {name}={state[name]}, this iterator {name}={value}: "
                    "it would continue a different stream. "
                    "Restore the same data and seed, or start the data anew without the saved state."
                )
        self._open_iterator().set_state({name: value for name, value in state.items() if name not in self._identity})

    def close(self) -> None:
        """Ends the threads and worker processes; may be called twice."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None  # Grain's iterators complain when they are collected only as the interpreter exits.

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def make_iterator(
    config: ml_collections.ConfigDict,
    *,
    batch_size: int,
    seed: int,
    train: bool = True,
    process_index: int | None = None,
    process_count: int | None = None,
) -> BatchIterator:
    """Makes this process's endless iterator of batches.

    Args:
        config: Data configuration, see `default_config`.
        batch_size: Global batch size, all processes together.
        seed: In [0, 2**32); with `config` it fixes every batch. Without effect when `train` is False.
        train: True for shuffled random crops; False for the evaluation crops, in order, again and again.
        process_index: This process, in [0, process_count); from JAX when None.
        process_count: Number of processes; from JAX when None.

    Raises:
        ValueError: If the configuration is bad, the batch does not divide among the processes, or the seed is out of
            range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} must lie in [0, 2**32).")
    shard = process_share(batch_size, process_index, process_count)
    source = make_source(config, train)
    dataset = _train_dataset(config, source, seed) if train else eval_dataset(config, source).repeat(None)
    return BatchIterator(
        dataset,
        source,
        batch_size=batch_size,
        seed=seed,
        shard=shard,
        num_threads=config.num_threads,
        num_workers=config.num_workers,
    )
