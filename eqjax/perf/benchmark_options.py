"""What a benchmark measures: kinds of work, their parts, and the set of `eqjax benchmark --quick`."""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools

from eqjax.perf.benchmark_models import names_weights, read_config
from eqjax.sampling.options import SamplingOptions

_SAMPLING = SamplingOptions(guidance_scale=7.0)  # Any scale but 1 takes the same time.
# Parts of every kind of work; those of training are of a generator's step, or of a tokenizer's.
_STEPS = ("step from cached latents", "step from images")
_PARTS = {
    "sampling": ("transformer", "flow head", "sampling", "decoder"),
    "decoding": ("decoder",),
    "training": (*_STEPS, "step"),
    "floor": ("condition", "transformer", "flow head", "decoder"),
}
KINDS = tuple(_PARTS)
# Fields of a configuration that options of the benchmark set.
_OWN_FIELDS = {
    "batch_size": "--batch_size",
    "precision": "--precision",
    "generator.dtype": "--dtype",
    "tokenizer.dtype": "--dtype",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """One model at one batch size: the work, and the options of sampling.

    Attributes:
      kind: "sampling" (with the decoder), "decoding", "training", or "floor" (FLOPs and bytes; runs nothing).
      config: a published size ("S", "B", "L", "H"), a config file with ":variant", or a model with weights.
      fields: fields of the config to set, as "NAME=VALUE".
      batch_size: images per call.
      num_columns: columns of an image.
      dtype: compute dtype of tokenizer and generator.
      precision: of products of float32 numbers, see `eqjax.precision.computing_in`.
      sampling: the sampling options.
      repeats: number of timed calls, whose median is reported.
      num_kernels: kernels to list of a profile of one more call, the longest; 0: no profile.
      parts: parts to measure; empty: all of the kind.
    """

    kind: str = "sampling"
    config: str = "S"
    fields: tuple[str, ...] = ()
    batch_size: int = 1
    num_columns: int = 16
    dtype: str = "float32"
    precision: str = "highest"
    sampling: SamplingOptions = _SAMPLING
    repeats: int = 3
    num_kernels: int = 0
    parts: tuple[str, ...] = ()

    def part_names(self) -> tuple[str, ...]:
        """Returns the parts to measure, in their order.

        Raises:
          ValueError: the kind, the config, a field or a part is unknown.
          FileNotFoundError: there is no such config file.
        """
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is not one of {KINDS}.")
        for name in (text.partition("=")[0] for text in self.fields):
            if name in _OWN_FIELDS:
                raise ValueError(f"--config.{name} is set by {_OWN_FIELDS[name]} here; give that.")
        known = _PARTS[self.kind]
        if self.kind == "training":
            config = read_config(self.config, self.fields)
            known = known[2:] if config.trainer == "tokenizer" else _STEPS
        elif not names_weights(self.config):
            read_config(self.config, self.fields)
        if unknown := [part for part in self.parts if part not in known]:
            raise ValueError(
                f"--parts={','.join(self.parts)}: {self.kind} of {self.config} has the parts {', '.join(known)}, and "
                f"no {unknown[0]!r}."
            )
        return tuple(part for part in known if not self.parts or part in self.parts)


def combinations(
    kinds: Sequence[str],
    configs: Sequence[str],
    dtypes: Sequence[str],
    batch_sizes: Sequence[int],
    options: BenchmarkOptions,
) -> list[BenchmarkOptions]:
    """Returns options for all combinations; those that share a model follow each other.

    Args:
      kinds: kinds of work.
      configs: sizes, config files or models with weights.
      dtypes: compute dtypes.
      batch_sizes: images per call.
      options: all other options.
    """
    return [
        dataclasses.replace(options, kind=kind, config=config, dtype=dtype, batch_size=batch_size)
        for config, dtype, kind, batch_size in itertools.product(configs, dtypes, kinds, batch_sizes)
    ]


# After this many seconds --quick starts nothing more; what it has started may take another two minutes.
QUICK_SECONDS = 360.0


def quick(platform: str) -> list[BenchmarkOptions]:
    """Returns what `--quick` measures, the most useful first.

    On an accelerator: size L in bfloat16, sampled at batches of 64, 256 and 1 with the published 100 steps; decoded
    at 64; a training step of 256 images from cached latents; the same sampling in float32 at 64; and a step of the
    published tokenizer's stage 1, of 12 images. On a CPU, the small shipped model.

    Args:
      platform: JAX's name of the backend.
    """
    return list(_quick_on_cpu() if platform == "cpu" else _quick_on_accelerator())


def _quick_on_accelerator() -> Iterator[BenchmarkOptions]:
    large = BenchmarkOptions(config="L", dtype="bfloat16", repeats=2)
    sampling = dataclasses.replace(large, parts=("sampling",))
    yield dataclasses.replace(large, batch_size=64, parts=("sampling", "decoder"))
    yield dataclasses.replace(sampling, batch_size=256)
    yield dataclasses.replace(sampling, batch_size=1)
    yield dataclasses.replace(large, kind="training", batch_size=256, parts=_STEPS[:1])
    yield dataclasses.replace(sampling, batch_size=64, dtype="float32")
    yield dataclasses.replace(large, kind="training", config="imagenet_tokenizer", batch_size=12)


def _quick_on_cpu() -> Iterator[BenchmarkOptions]:
    small = BenchmarkOptions(config="photos", repeats=1)
    yield dataclasses.replace(small, batch_size=1, parts=("sampling", "decoder"))
    yield dataclasses.replace(small, batch_size=8, parts=("sampling", "decoder"))
    yield dataclasses.replace(small, kind="training", config="photos_generator", batch_size=8, parts=_STEPS[:1])
