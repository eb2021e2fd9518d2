"""Writes the files of a latent cache so that a process may be killed at any moment.

A shard is written under a temporary name, renamed when it is whole, and complete once its statistics are written.
Several processes may write to one folder: two that write the same shard write the same records.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import os
from typing import Any

from absl import logging
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]  # Compiled.
import numpy as np

from eqjax.addresses import local_path
from eqjax.differences import check_equal
from eqjax.io import atomic_write, make_folder, remove_leftovers
from eqjax.latent_cache.format import CacheError, CacheSpec, encode_record, read_cache_json, write_cache_json

_NOT_COMPARED = ("num_threads", "num_workers", "flip")  # Fields of the data configuration that no record depends on.
_FILES = r"spec\.json|manifest\.json|latents-\d+-of-\d+\.(?:array_record|json)"  # Names of a cache's files.


@contextlib.contextmanager
def _open_records(path: str) -> Iterator[Callable[[bytes], None]]:
    """Yields the function that appends a record to a new file.

    Raises:
      OSError: a record could not be written, such as on a full disk.
    """
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1,uncompressed")

    def checked(function: Callable[..., object], *args: Any) -> None:
        try:
            function(*args)
        except RuntimeError as error:  # Whatever the file system reports.
            raise OSError(f"the cache could not be written: {error}") from error

    try:
        yield lambda record: checked(writer.write, record)
    except BaseException:
        with contextlib.suppress(RuntimeError):
            writer.close()
        raise
    checked(writer.close)


@dataclasses.dataclass(frozen=True)
class CacheWriter:
    """Writes shards and the manifest of one cache.

    Attributes:
      root: folder of the cache.
      spec: specification of the cache.
    """

    root: str
    spec: CacheSpec

    def open(self) -> None:
        """Writes the specification into a new folder, or compares it with the folder's; removes leftovers first.

        Raises:
          CacheError: the folder holds a cache with another specification.
        """
        path = os.path.join(local_path(self.root, "the cache"), "spec.json")
        make_folder(self.root, "output")
        remove_leftovers(self.root, _FILES)
        if not os.path.exists(path):
            write_cache_json(path, self.spec.to_dict())
            return
        found, expected = read_cache_json(path), self.spec.to_dict()
        for side in (found, expected):
            side["data"] = {k: v for k, v in side.get("data", {}).items() if k not in _NOT_COMPARED}
        check_equal(
            found,
            expected,
            f"{self.root} holds a cache with other options. Choose another folder, or repeat the cache's options:",
            found_name="cache",
            expected_name="this command",
            error=CacheError,
        )

    def is_complete(self, shard: int) -> bool:
        """Returns whether a shard and its statistics exist and agree."""
        path, statistics = self._shard_path(shard), self._statistics_path(shard)
        if not os.path.isfile(path) or not os.path.isfile(statistics):
            return False
        return os.path.getsize(path) == read_cache_json(statistics).get("bytes")

    def write_shard(self, shard: int, records: Iterable[tuple[np.ndarray, int]]) -> None:
        """Writes a shard and then its statistics.

        Args:
          shard: index of the shard.
          records: (latents [L, D], label) of the shard's records, in order.

        Raises:
          CacheError: a latent is NaN or infinite.
          OSError: the disk is full.
        """
        path = self._shard_path(shard)
        count, sum_of_squares = 0, 0.0
        try:
            # Compression saves a fifth of the space and nearly halves the speed of reading.
            with atomic_write(path) as temporary, _open_records(temporary) as write:
                for latents, label in records:
                    values = np.asarray(latents, np.float64)
                    if not np.isfinite(values).all():
                        raise CacheError(
                            f"The latents of record {count} of {path} are not finite in {self.spec.dtype}; "
                            "try bfloat16."
                        )
                    write(encode_record(latents, label))
                    count, sum_of_squares = count + 1, sum_of_squares + float(np.mean(np.square(values)))
        except FileNotFoundError:
            # Another process wrote this shard too, completed the cache, and removed the temporary files.
            if not self.is_complete(shard):
                raise
            return
        statistics = {"records": count, "bytes": os.path.getsize(path), "mean_square": sum_of_squares / count}
        write_cache_json(self._statistics_path(shard), statistics)

    def write_manifest(self, noise_mean_square: float) -> bool:
        """Writes the manifest if all shards are complete, and removes temporary files of killed processes.

        Args:
          noise_mean_square: mean square of the posterior's noise, which the latent scale includes.

        Returns:
          Whether all shards are complete.

        Raises:
          CacheError: the shards hold another number of records than the specification asks for.
        """
        spec = self.spec
        if not all(self.is_complete(shard) for shard in range(spec.num_shards)):
            return False
        shards = {spec.shard_name(i): read_cache_json(self._statistics_path(i)) for i in range(spec.num_shards)}
        num_records = sum(shard["records"] for shard in shards.values())
        if num_records != spec.num_images * spec.num_variants:
            raise CacheError(
                f"{self.root} holds {num_records} records, expected {spec.num_images} × {spec.num_variants}. Make the "
                "cache again in another folder."
            )
        mean_square = sum(shard["records"] * shard["mean_square"] for shard in shards.values()) / num_records
        latent_scale = (mean_square + noise_mean_square) ** -0.5
        manifest = {"num_records": num_records, "latent_scale": latent_scale, "shards": shards}
        write_cache_json(os.path.join(self.root, "manifest.json"), {**spec.to_dict(), **manifest})
        for name in os.listdir(self.root):
            if ".array_record." in name and name.endswith(".tmp"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.root, name))
        logging.info("%s is complete: %d records of %d images.", self.root, num_records, spec.num_images)
        return True

    def _shard_path(self, shard: int) -> str:
        return os.path.join(self.root, f"{self.spec.shard_name(shard)}.array_record")

    def _statistics_path(self, shard: int) -> str:
        return os.path.join(self.root, f"{self.spec.shard_name(shard)}.json")
