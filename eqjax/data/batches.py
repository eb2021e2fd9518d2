"""Batches for training and evaluation: deterministic, sharded by process, resumable on any number of processes.

The records of training are numbered once for all processes: record n (its image, crop and flip) is a function of the
seed and n alone. Batch k holds records k·B … k·B + B − 1; process p of P takes every P-th of them, starting at p. The
state is the number of the next record, so it means the same on every process and may be restored on another number of
processes, workers or threads, and even with another batch size.
"""

from collections.abc import Iterator
from concurrent import futures
import os
from typing import TypeAlias

from absl import flags, logging
import grain
import jax
from jaxtyping import Int
import numpy as np

from eqjax.arguments import check_arguments
from eqjax.config_fields import CONFIG
from eqjax.data import datasets, workers
from eqjax.data.image_source import ImageSource
from eqjax.rules import Boolean, Integer
from eqjax.typing import Config

Batch: TypeAlias = dict[str, np.ndarray]


class BatchIterator(Iterator[Batch]):
    """Endless batches of one process: {"image": uint8 [b, H, W, 3], "label": int32 [b]}, b = batch size / processes.

    A latent cache gives "latents" [b, L, D] for "image". Close the iterator, or use it in a `with` statement, to end
    its threads and worker processes.

    Attributes:
      source: the source of the images; `source.class_names` are the names of the labels.
    """

    source: datasets.Source

    def __init__(
        self,
        dataset: grain.MapDataset,
        source: datasets.Source,
        *,
        batch_size: int,
        seed: int,
        shard: grain.sharding.ShardOptions,
        num_threads: int,
        num_workers: int,
    ) -> None:
        """Starts reading; call `make_iterator` for an iterator of a configuration.

        Args:
          dataset: endless data set of single records.
          source: the source that the data set reads.
          batch_size: global batch size, of all processes together.
          seed: the seed of the data set.
          shard: the process's shard of every batch.
          num_threads: reading threads.
          num_workers: worker processes.
        """
        self.source = source
        self._num_workers = num_workers
        self._identity = {"seed": seed, "num_records": len(source)}
        # Grain reads whole batches ahead here; its default of 500 would fill the memory.
        read_options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
        processes = None
        if num_workers:
            processes = grain.MultiprocessingOptions(num_workers=num_workers)
            if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which notebooks and tests never parse.
                flags.FLAGS.mark_as_parsed()
        self._iterator = grain.experimental.ElasticIterator(
            dataset, batch_size, shard, read_options=read_options, multiprocessing_options=processes
        )

    @property
    def num_corrupt(self) -> int | None:
        """Corrupt images met so far; None if worker processes count them, or for a source without files."""
        return None if self._num_workers else getattr(self.source, "num_corrupt", None)

    def __next__(self) -> Batch:
        return next(self._open_iterator())

    def _open_iterator(self) -> grain.experimental.ElasticIterator:
        if self._iterator is None:
            raise ValueError("This iterator is closed; make a new one and restore the state.")
        return self._iterator

    def get_state(self) -> dict[str, int]:
        """Returns the position in the stream of records, the same on every process after the same number of batches."""
        return {**self._open_iterator().get_state(), **self._identity}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position that `get_state` returned, on any number of processes, workers or threads.

        Raises:
          ValueError: the state belongs to another seed or another number of records, and so to another stream.
        """
        for name, value in self._identity.items():
            if state[name] != value:
                raise ValueError(
                    f"The saved data state has {name}={state[name]}, this iterator {name}={value}: "
                    "it would continue another stream of records. "
                    "Use the same data and seed, or start anew: a run in another workdir."
                )
        self._open_iterator().set_state({name: value for name, value in state.items() if name not in self._identity})

    def close(self) -> None:
        """Ends the threads and worker processes; has no effect on a closed iterator."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None  # Grain warns about iterators that are collected when the interpreter exits.

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@check_arguments(
    config=CONFIG,
    batch_size=Integer(least=1),
    seed=Integer(least=0, most=2**32 - 1),
    process_index=Integer(least=0, optional=True, none_means="asks JAX"),
    process_count=Integer(least=1, optional=True, none_means="asks JAX"),
    train=Boolean(),
)
def make_iterator(
    config: Config,
    *,
    batch_size: int,
    seed: int,
    process_index: int | None = None,
    process_count: int | None = None,
    train: bool = True,
) -> BatchIterator:
    """Returns this process's endless training batches: shuffled random crops and flips.

    Args:
      config: data configuration, see `default_config`.
      batch_size: global batch size, of all processes together.
      seed: seed of the order, the crops and the flips, in [0, 2**32).
      process_index: this process, in [0, process_count); None asks JAX.
      process_count: number of processes; None asks JAX.
      train: False draws such batches from the images kept for evaluation.

    Raises:
      ValueError: the configuration is invalid, the batch is not divisible by the number of processes, or the seed is
        out of range.

    Example:
      >>> from eqjax import data
      >>> with data.make_iterator(data.default_config(), batch_size=8, seed=0) as batches:
      ...   next(batches)["image"].shape
      (8, 64, 64, 3)
    """
    shard = _process_shard(batch_size, process_index, process_count)
    source = datasets.make_source(config, train=train)
    return BatchIterator(
        datasets.train_dataset(config, source, seed),
        source,
        batch_size=batch_size,
        seed=seed,
        shard=shard,
        num_threads=config.num_threads,
        num_workers=_num_workers(config, source),
    )


def _num_workers(config: Config, source: datasets.Source) -> int:
    """Returns the worker processes of a configuration, by cores if it leaves them open."""
    if config.num_workers is not None:
        return config.num_workers
    if not isinstance(source, ImageSource):
        return 0  # Photographs are in memory, and cached latents need no decoder.
    count = workers.default_num_workers(len(source), workers.cores_of_process(workers.available_cores(), os.environ))
    if count:
        logging.info("%d worker processes decode images; data.num_workers sets another number.", count)
    return count


class EvalBatches:
    """The evaluation crops as a finite sequence of batches, the same in every run and for any number of processes.

    A batch is {"image": uint8 [b, H, W, 3], "label": int32 [b], "mask": bool [b]}; a latent cache gives "latents"
    [b, L, D] for "image". All batches have the full size, so that one compiled step fits all and every process counts
    the same number of batches. The last batch is filled with copies of the last record, whose mask is False. Batches
    are made when they are indexed.

    Attributes:
      num_images: records of all processes together, without the copies.
    """

    num_images: int

    def __init__(
        self,
        dataset: grain.MapDataset,
        indices: Int[np.ndarray, " N"],
        *,
        batch_size: int,
        shard: grain.sharding.ShardOptions,
        num_threads: int,
    ) -> None:
        """Stores how to make the batches; call `eval_batches` for those of a configuration.

        Args:
          dataset: data set of single records.
          indices: indices of the wanted records.
          batch_size: global batch size, of all processes together.
          shard: the process's shard of every batch.
          num_threads: reading threads.
        """
        self.num_images = len(indices)
        self._dataset = dataset
        self._indices = indices
        self._batch_size = batch_size
        self._shard = shard
        self._num_threads = num_threads

    def __len__(self) -> int:
        return -(-self.num_images // self._batch_size)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} does not exist; there are {len(self)} evaluation batches, counted from 0.")
        first = index * self._batch_size + self._shard.shard_index
        positions = np.arange(first, (index + 1) * self._batch_size, self._shard.shard_count)
        indices = self._indices[np.minimum(positions, self.num_images - 1)].tolist()
        # Threads help because Pillow decodes and resizes without the GIL.
        with futures.ThreadPoolExecutor(max(1, self._num_threads)) as pool:
            records = list(pool.map(self._dataset.__getitem__, indices))
        batch = {name: np.stack([record[name] for record in records]) for name in records[0]}
        return {**batch, "mask": positions < self.num_images}

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


@check_arguments(
    config=CONFIG,
    batch_size=Integer(least=1),
    num_images=Integer(least=1, optional=True, none_means="all"),
    process_index=Integer(least=0, optional=True, none_means="asks JAX"),
    process_count=Integer(least=1, optional=True, none_means="asks JAX"),
)
def eval_batches(
    config: Config,
    *,
    batch_size: int,
    num_images: int | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> EvalBatches:
    """Returns this process's evaluation batches: crops of held-out images, or the records of a latent cache.

    Args:
      config: data configuration, see `default_config`.
      batch_size: global batch size, of all processes together.
      num_images: number of records, spread evenly over all; None, or more than there are, takes all.
      process_index: this process, in [0, process_count); None asks JAX.
      process_count: number of processes; None asks JAX.

    Raises:
      ValueError: the configuration is invalid, the batch is not divisible by the number of processes, or `num_images`
        is below 1.

    Example:
      >>> from eqjax import data
      >>> len(data.eval_batches(data.default_config(), batch_size=16, num_images=40))
      3
    """
    shard = _process_shard(batch_size, process_index, process_count)
    dataset = datasets.eval_dataset(config, datasets.make_source(config, train=False))
    count = len(dataset) if num_images is None else min(num_images, len(dataset))
    indices = np.arange(count) * len(dataset) // count
    return EvalBatches(dataset, indices, batch_size=batch_size, shard=shard, num_threads=config.num_threads)


def _process_shard(
    batch_size: int, process_index: int | None, process_count: int | None
) -> grain.sharding.ShardOptions:
    """Returns the shard of every global batch that this process reads.

    Raises:
      ValueError: the batch is not divisible by the number of processes, or the process numbers are invalid.
    """
    if (process_index is None) != (process_count is None):
        raise ValueError(f"Set both or neither of process_index={process_index} and process_count={process_count}.")
    if process_index is None or process_count is None:
        process_index, process_count = jax.process_index(), jax.process_count()
    if process_index >= process_count:
        raise ValueError(f"process_index={process_index} must be below process_count={process_count}.")
    if batch_size % process_count:
        raise ValueError(
            f"The global batch_size={batch_size} must be a multiple of the number of processes, "
            f"process_count={process_count}."
        )
    return grain.sharding.ShardOptions(shard_index=process_index, shard_count=process_count)
