"""The parts of a benchmark: the transformer, the flow head, sampling, the decoder, training steps; and their floor."""

from collections.abc import Callable
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import numpy as np

from eqjax import pretrained, sharding
from eqjax.generator import LOGICAL_AXES, Generator
from eqjax.latent_cache.encode import LatentEncoder
from eqjax.model import Model
from eqjax.perf import flops
from eqjax.perf.benchmark_models import build_modules, random_network, random_params, read_config
from eqjax.perf.benchmark_options import BenchmarkOptions
from eqjax.perf.sampling_cost import Cost, sampling_cost
from eqjax.perf.timing import Timing, measure, time_calls
from eqjax.precision import computing_in
from eqjax.progress import announced
from eqjax.published import LATENT_SCALE
from eqjax.sampling import sampler
from eqjax.sampling.class_schedule import Blend
from eqjax.sampling.latents import sample_latents
from eqjax.tokenizer import Tokenizer
from eqjax.training import loop
from eqjax.training.generator import GeneratorStep
from eqjax.training.state import TrainState
from eqjax.training.tokenizer.step import TokenizerStep
from eqjax.training.trainer import Rules, Step
from eqjax.typing import Config, Params, Tree


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


def measure_part(options: BenchmarkOptions, part: str, model: Model | None) -> Measurement:
    """Measures one part.

    Args:
      options: the model, the batch and the sampling options.
      part: one of `options.part_names()`.
      model: the model of sampling and decoding, see `needs_model`.

    Raises:
      ValueError: the model cannot do this work.
    """
    if options.kind == "training":
        return measure_training(options, part)
    if options.kind == "floor":
        return floor(options, part, model)
    assert model is not None
    return measure_decoding(options, model) if part == "decoder" else measure_sampling(options, part, model)


def _measure(options: BenchmarkOptions, function: Callable[..., Any], *args: Any) -> Timing:
    @functools.wraps(function)
    def computed(*args: Any) -> Any:
        with computing_in(options.precision):
            return function(*args)

    return measure(computed, *args, repeats=options.repeats, num_kernels=options.num_kernels)


# ── Sampling ────────────────────────────────────────────────────────────────────────────────────


def _sampling_costs(generator: Generator, options: BenchmarkOptions) -> dict[str, Cost]:
    return sampling_cost(
        generator,
        batch_size=options.batch_size,
        num_columns=options.num_columns,
        num_evaluations=options.sampling.solver_table().times.size,
        guided=options.sampling.is_guided,
    )


def measure_sampling(options: BenchmarkOptions, part: str, model: Model) -> Measurement:
    """Measures the transformer, the flow head, or both together as `sample_latents` runs them ("sampling")."""
    generator, params = model.require("generator"), model.generator_params
    costs = _sampling_costs(generator, options)
    body, head = costs["condition"] + costs["transformer"], costs["flow head"]
    cost = {"transformer": body, "flow head": head, "sampling": body + head}[part]
    make = {"transformer": _transformer, "flow head": _flow_head, "sampling": _sample}[part]
    function, arguments = make(options, generator)
    return Measurement(part, cost.flops, cost.bytes, _measure(options, function, params, *arguments))


def _labels(options: BenchmarkOptions, generator: Generator) -> Any:
    return jnp.arange(options.batch_size, dtype=jnp.int32) % generator.num_classes


def _latents(options: BenchmarkOptions, generator: Generator) -> Any:
    shape = options.num_columns, options.batch_size, generator.latent_dim
    return jax.random.normal(jax.random.key(0), shape, jnp.float32)


def _bind(options: BenchmarkOptions, generator: Generator, params: Params) -> sampler.Sampler:
    labels = _labels(options, generator)
    return sampler.make_sampler(sampler.SamplerInputs.create(generator, params, labels[:, None], options.sampling))


def _transformer(options: BenchmarkOptions, generator: Generator) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    num_columns = options.num_columns

    def transformer(params: Params, latents: Float[Array, "L B D"]) -> Float[Array, "R E"]:
        bound = _bind(options, generator, params)
        state = sampler.init_state(bound, Blend(0, 0.0), num_columns)
        after = Blend(jnp.zeros(num_columns, jnp.int32), jnp.zeros(num_columns))
        return sampler.prefill(bound, state, latents, after).context

    return transformer, (_latents(options, generator),)


def _flow_head(options: BenchmarkOptions, generator: Generator) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    rows = options.batch_size * (2 if options.sampling.is_guided else 1)
    context = jax.random.normal(jax.random.key(1), (rows, generator.width), jnp.float32).astype(generator.dtype)

    def flow_head(params: Params, latents: Float[Array, "L B D"], context: Float[Array, "R E"]) -> Float[Array, "R E"]:
        bound = _bind(options, generator, params)  # The compiler removes the conditions, which are unused here.

        def column(context: Float[Array, "R E"], noise: Float[Array, "B D"]) -> tuple[Float[Array, "R E"], None]:
            latent = sampler.sample_column(bound, context, noise, 2.0)
            return context + jnp.mean(latent).astype(context.dtype), None

        return jax.lax.scan(column, context, latents)[0]

    return flow_head, (_latents(options, generator), context)


def _sample(options: BenchmarkOptions, generator: Generator) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    labels = _labels(options, generator)
    keywords: dict[str, Any] = {**options.sampling.to_dict(), "precision": options.precision}

    def sample(params: Params, key: PRNGKeyArray) -> Float[Array, "B L D"]:
        return sample_latents(generator, params, labels, num_columns=options.num_columns, key=key, **keywords)

    return sample, (jax.random.key(0),)


def measure_decoding(options: BenchmarkOptions, model: Model) -> Measurement:
    """Measures the decoder."""
    tokenizer = model.require("tokenizer")
    shape = (options.batch_size, options.num_columns, tokenizer.embed_dim)
    arguments = model.tokenizer_params, jax.random.normal(jax.random.key(0), shape, jnp.float32)
    decode = _decode(tokenizer)
    return Measurement("decoder", flops.count(decode, *arguments), None, _measure(options, decode, *arguments))


def _decode(tokenizer: Tokenizer) -> Callable[[Params, Float[Array, "B L D"]], Float[Array, "B H W 3"]]:
    def decode(params: Params, latents: Float[Array, "B L D"]) -> Float[Array, "B H W 3"]:
        decoded: Any = tokenizer.apply({"params": params}, latents, method="decode")
        return decoded.images

    return decode


def floor(options: BenchmarkOptions, part: str, model: Model | None) -> Measurement:
    """Counts FLOPs and bytes of a part by closed forms, or FLOPs of the decoder from its traced program.

    Args:
      options: the model, the batch and the sampling options.
      part: the part.
      model: a model with weights, of which shapes alone count; None: the modules of the config.
    """
    if model is not None:
        tokenizer, generator = model.require("tokenizer"), model.require("generator")
    else:
        tokenizer, generator = build_modules(options.config, options.dtype, options.fields)
    if part != "decoder":
        cost = _sampling_costs(generator, options)[part]
        return Measurement(part, cost.flops, cost.bytes, None)
    latents = jax.ShapeDtypeStruct((options.batch_size, options.num_columns, tokenizer.embed_dim), jnp.float32)
    counted = flops.count(_decode(tokenizer), pretrained.abstract_params(tokenizer), latents)
    return Measurement(part, counted, None, None)


# ── Training ────────────────────────────────────────────────────────────────────────────────────


def measure_training(options: BenchmarkOptions, part: str) -> Measurement:
    """Measures a training step on one device: a generator's from cached latents or from images, or a tokenizer's.

    Raises:
      ValueError: the tokenizer's latents do not fit the generator.
    """
    config = read_config(options.config, options.fields)
    config.batch_size, config.precision = options.batch_size, options.precision
    config[config.trainer].dtype = options.dtype
    if config.trainer == "tokenizer":
        return _measure_tokenizer_step(config, options)
    return _measure_generator_step(config, options, part)


def _measure_tokenizer_step(config: Config, options: BenchmarkOptions) -> Measurement:
    tokenizer: Any = pretrained.build_module("tokenizer", dict(config.tokenizer))
    images = _random_images(tokenizer, options)
    _, config.data.height, config.data.width, _ = images["image"].shape
    # Their weights do not matter to the time, and a machine that is measured need not have them.
    tokenizer_step, frozen = TokenizerStep.from_config(config, tokenizer, random_network)
    step = jax.tree_util.Partial(tokenizer_step, frozen)
    init = functools.partial(tokenizer_step.init_state, height=config.data.height, width=config.data.width)
    return _measure_step(options, "step", step, step, (), jax.jit(init)(jax.random.key(0)), images)


def _measure_generator_step(config: Config, options: BenchmarkOptions, part: str) -> Measurement:
    tokenizer, generator = build_modules(options.config, options.dtype, options.fields)
    if tokenizer.embed_dim != generator.latent_dim:
        raise ValueError(
            f"--config={options.config}: the generator takes latents of {generator.latent_dim} channels, the tokenizer "
            f"has {tokenizer.embed_dim}; set tokenizer_weights in the config to the generator's own tokenizer."
        )
    batch, frozen = _random_images(tokenizer, options), {}
    if part == "step from cached latents":
        shape = (options.batch_size, options.num_columns, generator.latent_dim)
        means = np.random.default_rng(1).standard_normal(shape, np.float32)
        batch = {"latents": means, "label": batch["label"]}
    else:
        frozen = random_params(tokenizer)
    generator_step = GeneratorStep.from_config(config, generator, LatentEncoder(tokenizer, LATENT_SCALE))
    step, plain_step = (jax.tree_util.Partial(s, frozen) for s in (generator_step, generator_step.without_remat()))
    params = random_params(generator)
    opt_state = jax.jit(generator_step.optimizer.init)(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), opt_state)
    return _measure_step(options, part, step, plain_step, LOGICAL_AXES, state, batch)


def _random_images(tokenizer: Tokenizer, options: BenchmarkOptions) -> dict[str, np.ndarray]:
    shape = (options.batch_size, tokenizer.resolution, options.num_columns * tokenizer.column_width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return {"image": images, "label": np.zeros(options.batch_size, np.int32)}


def _measure_step(
    options: BenchmarkOptions, part: str, step: Step, plain_step: Step, rules: Rules, state: Tree, batch: Tree
) -> Measurement:
    """Measures a training step on one device.

    Args:
      options: precision, timed steps and profile.
      part: name of the measurement.
      step: (state, batch, key) → (state, metrics).
      plain_step: the same without rematerialization, whose FLOPs count.
      rules: how the state is split, as `loop.compile_step` takes them.
      state: the state before the first step.
      batch: a batch of numpy arrays.
    """
    mesh, key = sharding.make_mesh(jax.devices()[:1]), jax.random.key(0)
    states = [sharding.put(state, sharding.state_shardings(state, mesh, rules))]
    batch = sharding.shard_batch(batch, mesh)
    num_flops = flops.count(lambda step, *given: step(*given), plain_step, states[0], batch, key)
    run = loop.compile_step(step, rules, mesh, states[0], key, options.precision, profiled=options.num_kernels > 0)
    start = time.perf_counter()
    with announced(f"Compiling the {part}"):
        compiled = run.lower(states[0], batch).compile()
    compile_seconds = time.perf_counter() - start

    def call() -> Any:  # Every step donates its state.
        states[0], metrics = compiled(run.step, states[0], batch)
        return states[0], metrics

    timing = time_calls(part, call, compiled, compile_seconds, options.repeats, options.num_kernels)
    return Measurement(part, num_flops, None, timing)
