"""Measures how fast this machine samples, decodes and trains, and compares with its peak."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import resource
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray
import numpy as np

from eqjax import pretrained, sharding
from eqjax.generator import LOGICAL_AXES, Generator
from eqjax.latent_cache.encode import LatentEncoder
from eqjax.model import Model
from eqjax.perf import flops
from eqjax.perf.benchmark_models import (
    build_modules,
    make_model,
    names_weights,
    random_network,
    random_params,
    read_config,
)
from eqjax.perf.sampling_cost import Cost, sampling_cost
from eqjax.progress import announced
from eqjax.published import LATENT_SCALE
from eqjax.sampling import sampler
from eqjax.sampling.class_schedule import Blend
from eqjax.sampling.latents import sample_latents
from eqjax.sampling.options import SamplingOptions
from eqjax.tables import markdown_table
from eqjax.tokenizer import Tokenizer
from eqjax.training import loop
from eqjax.training.generator import GeneratorStep
from eqjax.training.state import TrainState
from eqjax.training.tokenizer.step import TokenizerStep
from eqjax.training.trainer import Rules, Step
from eqjax.typing import Config, Params, Tree

KINDS = ("sampling", "decoding", "training", "floor")
_PATIENCE = 2.0  # Seconds after which work that may be quick is announced.
_SAMPLING = SamplingOptions(guidance_scale=7.0)  # Any scale but 1 takes the same time.


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """The model, batch and sampling options of a benchmark.

    Attributes:
      config: a published size ("S", "B", "L", "H"), a config file with ":variant", or a model with weights.
      batch_size: images per call.
      num_columns: columns of an image.
      dtype: compute dtype of tokenizer and generator.
      sampling: the sampling options.
      repeats: number of timed calls, whose median is reported.
    """

    config: str = "S"
    batch_size: int = 1
    num_columns: int = 16
    dtype: str = "float32"
    sampling: SamplingOptions = _SAMPLING
    repeats: int = 3


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of a compiled function.

    Attributes:
      seconds: median duration of its calls.
      compile_seconds: duration of tracing and compiling.
      temporary_bytes: memory that the program needs beside its arguments and results.
    """

    seconds: float
    compile_seconds: float
    temporary_bytes: int


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One part of the work.

    Attributes:
      part: its name.
      flops: FLOPs of its matrix products.
      bytes: bytes that slow memory must deliver; None: not counted.
      timing: its times; None if nothing ran.
    """

    part: str
    flops: float
    bytes: float | None
    timing: Timing | None


def run_benchmark(kind: str, options: BenchmarkOptions) -> dict[str, Any]:
    """Measures one kind of work.

    Args:
      kind: "sampling" (with the decoder), "decoding", "training", or "floor" (FLOPs and bytes; runs nothing).
      options: the model, the batch and the sampling options.

    Returns:
      The options, the machine, and "rows", one per part, as JSON values.

    Raises:
      ValueError: the kind or the config is unknown.
      FileNotFoundError: there are no such weights.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not one of {KINDS}.")
    if kind == "training":
        measured = list(measure_training(options))
    elif kind == "floor":
        measured = list(floor(options))
    else:
        with announced(f"Making the model {options.config}", patience=_PATIENCE):
            model = make_model(options.config, options.dtype)
        measured = list(measure_sampling(options, model)) if kind == "sampling" else []
        measured.append(measure_decoding(options, model))
    peak = None if kind == "floor" else matmul_peak(options.dtype)
    return {
        "kind": kind,
        "device": jax.devices()[0].device_kind,
        "dtype": options.dtype,
        "config": options.config,
        "batch_size": options.batch_size,
        "num_columns": options.num_columns,
        **options.sampling.to_dict(),
        "peak_tflops": peak and peak / 1e12,
        "peak_memory_megabytes": peak_memory() / 1e6,
        "jax": jax.__version__,
        "rows": [_to_row(measurement, options, peak) for measurement in measured],
    }


def _to_row(measurement: Measurement, options: BenchmarkOptions, peak: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"part": measurement.part, "gflop": measurement.flops / 1e9}
    if measurement.bytes is not None:
        row["gigabytes"] = measurement.bytes / 1e9
    timing = measurement.timing
    if timing is not None:
        row["seconds_per_column"] = timing.seconds / options.num_columns
        row["images_per_second"] = options.batch_size / timing.seconds
        row["compile_seconds"] = timing.compile_seconds
        row["temporary_megabytes"] = timing.temporary_bytes / 1e6
        row["tflops"] = measurement.flops / timing.seconds / 1e12
        if peak is not None:
            row["fraction_of_peak"] = measurement.flops / timing.seconds / peak
    return row


def format_results(results: dict[str, Any]) -> str:
    """Formats results as text: a line with the options and the machine, and a table of the parts."""
    described = " ".join(f"{name}={_format(value)}" for name, value in results.items() if name != "rows")
    names = list(dict.fromkeys(name for row in results["rows"] for name in row))
    rows = [[_format(row.get(name, "")) for name in names] for row in results["rows"]]
    return f"{described}\n\n{markdown_table(names, rows)}"


def _format(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ── Measuring ───────────────────────────────────────────────────────────────────────────────────


def measure(function: Callable[..., Any], *args: Any, repeats: int = 3) -> Timing:
    """Compiles a function, calls it once, and times `repeats` further calls."""
    name, start = function.__name__.replace("_", " "), time.perf_counter()
    with announced(f"Compiling {name}", patience=_PATIENCE):
        compiled = jax.jit(function).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    times = []
    with announced(f"Timing {repeats} calls of {name}, after a first one", patience=_PATIENCE):
        jax.block_until_ready(compiled(*args))
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*args))
            times.append(time.perf_counter() - start)
    return Timing(statistics.median(times), compile_seconds, _temporary_bytes(compiled))


def _temporary_bytes(compiled: jax.stages.Compiled) -> int:
    return getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)  # Not every backend has an analysis.


def matmul_peak(dtype: DTypeLike) -> float:
    """Measures the FLOP/s of large matrix products.

    The numbers are random: chips draw less power for products of equal numbers, and an H200 multiplies ones a tenth
    faster. Ten products follow each other, as starting a single one takes a part of its time.
    """
    on_cpu = jax.default_backend() == "cpu"
    n, count = (2048, 1) if on_cpu else (8192, 10)
    a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n), np.float32) / np.sqrt(np.float32(n)), dtype)

    def products(a: Float[Array, "n n"], b: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return jax.lax.fori_loop(0, count, lambda _, c: c @ b, a)

    return count * 2 * n**3 / measure(products, a, a, repeats=5).seconds


def peak_memory() -> int:
    """Returns the peak memory in bytes: of the device if it reports it, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# ── Sampling ────────────────────────────────────────────────────────────────────────────────────


def _sampling_costs(generator: Generator, options: BenchmarkOptions) -> dict[str, Cost]:
    return sampling_cost(
        generator,
        batch_size=options.batch_size,
        num_columns=options.num_columns,
        num_evaluations=options.sampling.solver_table().times.size,
        guided=options.sampling.is_guided,
    )


def measure_sampling(options: BenchmarkOptions, model: Model) -> Iterator[Measurement]:
    """Measures the transformer, the flow head, and both together as `sample_latents` runs them."""
    generator, params = model.require("generator"), model.generator_params
    batch_size, num_columns, guided = options.batch_size, options.num_columns, options.sampling.is_guided
    labels = jnp.arange(batch_size, dtype=jnp.int32) % generator.num_classes
    latents = jax.random.normal(jax.random.key(0), (num_columns, batch_size, generator.latent_dim), jnp.float32)
    rows = batch_size * (2 if guided else 1)
    context = jax.random.normal(jax.random.key(1), (rows, generator.width), jnp.float32).astype(generator.dtype)

    def bind(params: Params) -> sampler.Sampler:
        inputs = sampler.SamplerInputs.create(generator, params, labels[:, None], options.sampling)
        return sampler.make_sampler(inputs)

    def transformer(params: Params, latents: Float[Array, "L B D"]) -> Float[Array, "R E"]:
        bound = bind(params)
        state = sampler.init_state(bound, Blend(0, 0.0), num_columns)
        after = Blend(jnp.zeros(num_columns, jnp.int32), jnp.zeros(num_columns))
        return sampler.prefill(bound, state, latents, after).context

    def flow_head(params: Params, latents: Float[Array, "L B D"], context: Float[Array, "R E"]) -> Float[Array, "R E"]:
        bound = bind(params)  # The compiler removes the conditions, which are unused here.

        def column(context: Float[Array, "R E"], noise: Float[Array, "B D"]) -> tuple[Float[Array, "R E"], None]:
            latent = sampler.sample_column(bound, context, noise, 2.0)
            return context + jnp.mean(latent).astype(context.dtype), None

        return jax.lax.scan(column, context, latents)[0]

    def sample(params: Params, key: PRNGKeyArray) -> Float[Array, "B L D"]:
        return sample_latents(generator, params, labels, num_columns=num_columns, key=key, **options.sampling.to_dict())

    costs = _sampling_costs(generator, options)
    body, head = costs["condition"] + costs["transformer"], costs["flow head"]
    timed = functools.partial(measure, repeats=options.repeats)
    yield Measurement("transformer", body.flops, body.bytes, timed(transformer, params, latents))
    yield Measurement("flow head", head.flops, head.bytes, timed(flow_head, params, latents, context))
    total = body + head
    yield Measurement("sampling", total.flops, total.bytes, timed(sample, params, jax.random.key(0)))


def measure_decoding(options: BenchmarkOptions, model: Model) -> Measurement:
    """Measures the decoder."""
    tokenizer = model.require("tokenizer")
    shape = (options.batch_size, options.num_columns, tokenizer.embed_dim)
    arguments = model.tokenizer_params, jax.random.normal(jax.random.key(0), shape, jnp.float32)
    decode = _decode(tokenizer)
    timing = measure(decode, *arguments, repeats=options.repeats)
    return Measurement("decoder", flops.count(decode, *arguments), None, timing)


def _decode(tokenizer: Tokenizer) -> Callable[[Params, Float[Array, "B L D"]], Float[Array, "B H W 3"]]:
    def decode(params: Params, latents: Float[Array, "B L D"]) -> Float[Array, "B H W 3"]:
        decoded: Any = tokenizer.apply({"params": params}, latents, method="decode")
        return decoded.images

    return decode


def floor(options: BenchmarkOptions) -> Iterator[Measurement]:
    """Counts FLOPs and bytes of all parts by closed forms, and FLOPs of the decoder from its traced program."""
    if names_weights(options.config):
        with announced(f"Making the model {options.config}", patience=_PATIENCE):
            model = make_model(options.config, options.dtype)
        tokenizer, generator = model.require("tokenizer"), model.require("generator")
    else:
        tokenizer, generator = build_modules(options.config, options.dtype)
    for part, cost in _sampling_costs(generator, options).items():
        yield Measurement(part, cost.flops, cost.bytes, None)
    latents = jax.ShapeDtypeStruct((options.batch_size, options.num_columns, tokenizer.embed_dim), jnp.float32)
    yield Measurement(
        "decoder", flops.count(_decode(tokenizer), pretrained.abstract_params(tokenizer), latents), None, None
    )


# ── Training ────────────────────────────────────────────────────────────────────────────────────


def measure_training(options: BenchmarkOptions) -> Iterator[Measurement]:
    """Measures training steps on one device: a generator's from cached latents and from images, or a tokenizer's."""
    config = read_config(options.config)
    config.batch_size, config[config.trainer].dtype = options.batch_size, options.dtype
    if config.trainer == "tokenizer":
        yield _measure_tokenizer_step(config, options)
    else:
        yield from _measure_generator_steps(config, options)


def _measure_tokenizer_step(config: Config, options: BenchmarkOptions) -> Measurement:
    images = _random_images(pretrained.build_module("tokenizer", dict(config.tokenizer)), options)
    _, config.data.height, config.data.width, _ = images["image"].shape
    tokenizer: Any = pretrained.build_module("tokenizer", dict(config.tokenizer))
    # Their weights do not matter to the time, and a machine that is measured need not have them.
    tokenizer_step, frozen = TokenizerStep.from_config(config, tokenizer, random_network)
    step = jax.tree_util.Partial(tokenizer_step, frozen)
    init = functools.partial(tokenizer_step.init_state, height=config.data.height, width=config.data.width)
    return _measure_step("step", step, step, (), jax.jit(init)(jax.random.key(0)), images, options.repeats)


def _measure_generator_steps(config: Config, options: BenchmarkOptions) -> Iterator[Measurement]:
    tokenizer, generator = build_modules(options.config, options.dtype)
    if tokenizer.embed_dim != generator.latent_dim:
        raise ValueError(
            f"--config={options.config}: the generator takes latents of {generator.latent_dim} channels, the tokenizer "
            f"has {tokenizer.embed_dim}; set tokenizer_weights in the config to the generator's own tokenizer."
        )
    images = _random_images(tokenizer, options)
    shape = (options.batch_size, options.num_columns, generator.latent_dim)
    means = np.random.default_rng(1).standard_normal(shape, np.float32)
    generator_step = GeneratorStep.from_config(config, generator, LatentEncoder(tokenizer, LATENT_SCALE))
    frozen = random_params(tokenizer)
    step, plain_step = (jax.tree_util.Partial(s, frozen) for s in (generator_step, generator_step.without_remat()))
    for part, batch in (
        ("step from cached latents", {"latents": means, "label": images["label"]}),
        ("step from images", images),
    ):
        params, ema_params = random_params(generator), random_params(generator)
        opt_state = jax.jit(generator_step.optimizer.init)(params)
        state = TrainState(jnp.zeros((), jnp.int32), params, ema_params, opt_state)
        yield _measure_step(part, step, plain_step, LOGICAL_AXES, state, batch, options.repeats)


def _random_images(tokenizer: Tokenizer, options: BenchmarkOptions) -> dict[str, np.ndarray]:
    shape = (options.batch_size, tokenizer.resolution, options.num_columns * tokenizer.column_width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return {"image": images, "label": np.zeros(options.batch_size, np.int32)}


def _measure_step(
    part: str, step: Step, plain_step: Step, rules: Rules, state: Tree, batch: Tree, repeats: int
) -> Measurement:
    """Measures a training step on one device.

    Args:
      part: name of the measurement.
      step: (state, batch, key) → (state, metrics).
      plain_step: the same without rematerialization, whose FLOPs count.
      rules: how the state is split, as `loop.compile_step` takes them.
      state: the state before the first step.
      batch: a batch of numpy arrays.
      repeats: timed steps.
    """
    mesh, key = sharding.make_mesh(jax.devices()[:1]), jax.random.key(0)
    state = sharding.put(state, sharding.state_shardings(state, mesh, rules))
    batch = sharding.shard_batch(batch, mesh)
    num_flops = flops.count(lambda step, *given: step(*given), plain_step, state, batch, key)
    run = loop.compile_step(step, rules, mesh, state, key)

    start = time.perf_counter()
    with announced(f"Compiling the {part}"):
        compiled = run.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    times = []
    with announced(f"Timing {repeats} steps, after a first one", patience=_PATIENCE):
        for _ in range(repeats + 1):  # Every step donates its state. The first one is not counted.
            start = time.perf_counter()
            state, _ = jax.block_until_ready(compiled(run.step, state, batch))
            times.append(time.perf_counter() - start)
    timing = Timing(statistics.median(times[1:]), compile_seconds, _temporary_bytes(compiled))
    return Measurement(part, num_flops, None, timing)
