"""Evaluation batches: a finite list of them, the same in every run."""

from collections.abc import Iterator
from concurrent import futures

import grain
import ml_collections
import numpy as np

from eqjax.data import pipeline


class EvalBatches:
    """The evaluation crops as a finite list of batches, the same in every run and for every number of processes.

    Batch k is {"image": [b, H, W, 3] uint8, "label": [b] int32, "mask": [b] bool}, or with "latents"
    [b, L, D] in the place of "image" from a cache. All batches have the full size, so
    that one compiled step serves them and every process counts the same number of them: the last is filled up with
    its last record, under a mask of False. Batches are made when asked for.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        indices: np.ndarray,
        *,
        batch_size: int,
        shard: grain.sharding.ShardOptions,
        num_threads: int,
    ):
        """Use `eval_batches`. Takes the unbatched data set and the numbers of the records wanted."""
        self.num_images = len(indices)  # Of all processes together.
        self._dataset = dataset
        self._indices = indices
        self._batch_size = batch_size
        self._shard = shard
        self._num_threads = num_threads

    def __len__(self) -> int:
        return -(-self.num_images // self._batch_size)

    def __getitem__(self, number: int) -> pipeline.Batch:
        if not 0 <= number < len(self):
            raise IndexError(f"Batch {number} of {len(self)} evaluation batches.")
        first = number * self._batch_size + self._shard.shard_index
        places = np.arange(first, (number + 1) * self._batch_size, self._shard.shard_count)
        indices = self._indices[np.minimum(places, self.num_images - 1)].tolist()
        with futures.ThreadPoolExecutor(
            max(1, self._num_threads)
        ) as pool:  # Pillow decodes and resizes without the GIL.
            records = list(pool.map(self._dataset.__getitem__, indices))
        batch = {name: np.stack([record[name] for record in records]) for name in records[0]}
        return {**batch, "mask": places < self.num_images}

    def __iter__(self) -> Iterator[pipeline.Batch]:
        return (self[number] for number in range(len(self)))


def eval_batches(
    config: ml_collections.ConfigDict,
    *,
    batch_size: int,
    num_images: int | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> EvalBatches:
    """Makes this process's evaluation batches: held-out or center crops, or what a cache of latents holds.

    Args:
        config: Data configuration, see `default_config`.
        batch_size: Global batch size, all processes together.
        num_images: Takes this many records, spread evenly over all; all (also where there are fewer) when None.
        process_index: This process, in [0, process_count); from JAX when None.
        process_count: Number of processes; from JAX when None.

    Raises:
        ValueError: If the configuration is bad, the batch does not divide among the processes, or `num_images` is
            below 1.
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images={num_images} must be at least 1, or None for all.")
    shard = pipeline.process_share(batch_size, process_index, process_count)
    dataset = pipeline.eval_dataset(config, pipeline.make_source(config, train=False))
    count = len(dataset) if num_images is None else min(num_images, len(dataset))
    indices = np.arange(count) * len(dataset) // count
    return EvalBatches(dataset, indices, batch_size=batch_size, shard=shard, num_threads=config.num_threads)
