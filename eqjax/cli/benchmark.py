r"""How fast this machine samples, decodes and trains, beside what it could: a table, and JSON.

python -m eqjax.cli.benchmark sampling --config=S --batch=1 --columns=16 --dtype=float32 --json=outputs/bench.json
python -m eqjax.cli.benchmark decoding --config=L --batch=64 --dtype=bfloat16
python -m eqjax.cli.benchmark training --config=L --batch=64 --dtype=bfloat16    # from cached latents, and from images
python -m eqjax.cli.benchmark training --config=configs/photos_tokenizer.py --batch=16 --columns=4
python -m eqjax.cli.benchmark floor --config=L    # operations and bytes; runs nothing

`--config` is a published size (S, B, L, H), a configuration file, or a model ("photos", a weights file).
"""

import json
import resource
import statistics
import sys
import time

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import flow, pretrained, published, sharding
from eqjax.cli import runner
from eqjax.generator import LOGICAL_AXES
from eqjax.io import atomic_write
from eqjax.latent_cache.check import make_encode
from eqjax.perf import flops, models, sampling_cost
from eqjax.sampling import sampler
from eqjax.sampling.class_schedule import Blend
from eqjax.training import generator as generator_training
from eqjax.training import loop, optim
from eqjax.training import tokenizer as tokenizer_training
from eqjax.training.state import TrainState

KINDS = ("sampling", "decoding", "training", "floor")


def define_flags(values=flags.FLAGS):
    """Defines the command's flags."""
    flags.DEFINE_string("config", "S", "Published size, configuration file, or model.", flag_values=values)
    flags.DEFINE_integer("batch", 1, "Images at once.", 1, flag_values=values)
    flags.DEFINE_integer("columns", 16, "Columns of an image.", 1, flag_values=values)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.", flag_values=values)
    flags.DEFINE_float("guidance", 7.0, "Guidance scale; 1 takes half the work.", 0.0, flag_values=values)
    flags.DEFINE_integer("num_flow_steps", 100, "Solver steps per column.", 1, flag_values=values)
    flags.DEFINE_enum("solver", "euler", flow.SOLVERS, "Of the flow.", flag_values=values)
    flags.DEFINE_integer("repeats", 3, "Timed calls; the median counts.", 1, flag_values=values)
    flags.DEFINE_string("json", None, "File to write the results to.", flag_values=values)


def seconds(function, *args, repeats=3):
    """(median seconds of a call, seconds of compiling, temporary bytes) of a function."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compiling = time.perf_counter() - start
    memory = compiled.memory_analysis()
    jax.block_until_ready(compiled(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    return statistics.median(times), compiling, getattr(memory, "temp_size_in_bytes", 0)


def matmul_peak(dtype):
    """Operations per second of a large matrix product, measured now."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((n, n), dtype)
    return 2 * n**3 / seconds(jnp.matmul, a, a, repeats=5)[0]


def peak_memory():
    """Bytes: of the device where it counts them, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def sampling_rows(args, model):
    """Rows of the table: transformer, flow head, decoder, and all of sampling."""
    batch, columns, guided = args.batch, args.columns, args.guidance != 1
    generator, params = model.generator, model.generator_params
    labels = jnp.arange(batch, dtype=jnp.int32) % generator.num_classes
    latents = jax.random.normal(jax.random.key(0), (columns, batch, generator.latent_dim))

    def make_sampler(params):
        plan = flow.solver_table(args.solver, args.num_flow_steps)
        return sampler.make_sampler(generator, guided, params, labels[:, None], plan, 1.0, 2**31 - 1)

    def transformer(params, latents):
        run = make_sampler(params)
        state = sampler.start(run, Blend(0, 0.0), columns)
        after = Blend(jnp.zeros(columns, jnp.int32), jnp.zeros(columns))
        return sampler.prefill(run, state, latents, after).context

    def head(params, latents, context):
        run = make_sampler(params)  # Without its conditions: the compiler leaves out what nothing uses.

        def column(context, noise):
            latent = sampler.sample_column(run, context, noise, 2.0)
            return context + jnp.mean(latent).astype(context.dtype), None

        return jax.lax.scan(column, context, latents)[0]

    context = jax.random.normal(jax.random.key(1), (batch * (1 + guided), generator.width)).astype(generator.dtype)

    def everything(params, key):
        return sampler.sample_latents(
            generator, params, labels, num_columns=columns, guidance_scale=args.guidance,
            num_flow_steps=args.num_flow_steps, solver=args.solver, key=key,
        )  # fmt: skip

    evaluations = flow.solver_table(args.solver, args.num_flow_steps).times.size
    costs = sampling_cost.sampling_cost(
        generator, batch=batch, num_columns=columns, evaluations=evaluations, guided=guided
    )
    body = costs["condition"] + costs["transformer"]
    yield "transformer", body, seconds(transformer, params, latents, repeats=args.repeats)
    yield "flow head", costs["flow head"], seconds(head, params, latents, context, repeats=args.repeats)
    yield "sampling", body + costs["flow head"], seconds(everything, params, jax.random.key(0), repeats=args.repeats)


def decoding_rows(args, model):
    """The row of the decoder."""
    latents = jax.random.normal(jax.random.key(0), (args.batch, args.columns, model.tokenizer.embed_dim))

    def decode(params, latents):
        return model.tokenizer.apply({"params": params}, latents, method="decode").images

    count = sampling_cost.compiled_cost(decode, model.tokenizer_params, latents)
    yield "decoder", count, seconds(decode, model.tokenizer_params, latents, repeats=args.repeats)


def training_rows(args):
    """Rows of steps as the loop runs them: a generator's from cached latents and from images, or a tokenizer's."""
    config = models.read_config(args.config)
    config.batch_size, config[config.trainer].dtype = args.batch, args.dtype
    random, key = np.random.default_rng(0), jax.random.key(0)
    if config.trainer == "tokenizer":
        tokenizer = pretrained.build_module("tokenizer", dict(config.tokenizer))
    else:
        tokenizer, generator = models.modules(args.config, args.dtype)
    shape = (args.batch, tokenizer.resolution, args.columns * tokenizer.column_width, 3)
    config.data.update(height=shape[1], width=shape[2])
    label = np.zeros(args.batch, np.int32)
    pictures = {"image": random.integers(0, 256, shape, np.uint8), "label": label}
    if config.trainer == "tokenizer":
        stage = tokenizer_training.make_stage(config)
        state = jax.jit(stage.init)(key)
        yield "step", *step_seconds(stage.step, stage.step, stage.rules, state, pictures, args.repeats)
        return

    optimizer, _ = optim.make_optimizer(config.optimizer, config.total_steps)
    encode = make_encode(tokenizer, published.LATENT_SCALE)
    steps = generator_training.make_steps(generator, optimizer, encode, config)
    step, plain_step = (jax.tree_util.Partial(step, models.random_params(tokenizer)) for step in steps)
    means = random.standard_normal((args.batch, args.columns, generator.latent_dim), np.float32)
    for name, batch in (("from cached latents", {"latents": means, "label": label}), ("from images", pictures)):
        params, ema_params = models.random_params(generator), models.random_params(generator)
        state = TrainState(jnp.zeros((), jnp.int32), params, ema_params, jax.jit(optimizer.init)(params))
        yield f"step {name}", *step_seconds(step, plain_step, LOGICAL_AXES, state, batch, args.repeats)


def step_seconds(step, plain_step, rules, state, batch, repeats):
    """(`Cost` without bytes, what `seconds` returns) of training steps on one device.

    Args:
      step: (state, batch, key) → (state, metrics).
      plain_step: the same without rematerialization, whose FLOPs count.
      rules: how the state is split, as `loop.compile_step` takes them.
      state: the state before the first step.
      batch: a batch, numpy.
      repeats: steps to measure.
    """
    mesh, key = sharding.make_mesh(jax.devices()[:1]), jax.random.key(0)
    state = sharding.put(state, sharding.state_shardings(state, mesh, rules))
    batch = sharding.shard_batch(batch, mesh)
    count = sampling_cost.Cost(flops.count(plain_step, state, batch, key), None)
    run = loop.compile_step(step, rules, mesh, state, key)

    start = time.perf_counter()
    compiled = run.lower(state, batch).compile()
    compiling = time.perf_counter() - start
    memory = getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)
    times = []
    for _ in range(repeats + 1):  # The state is given away at every step; the first call is not counted.
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(run.step, state, batch))
        times.append(time.perf_counter() - start)
    return count, (statistics.median(times[1:]), compiling, memory)


def floor_rows(args):
    """Operations and bytes of every part, by closed forms, and of the decoder by its compiled program."""
    if models.is_weights(args.config):
        model = models.make_model(args.config, args.dtype)
        tokenizer, generator = model.tokenizer, model.generator
    else:
        tokenizer, generator = models.modules(args.config, args.dtype)
    evaluations = flow.solver_table(args.solver, args.num_flow_steps).times.size
    costs = sampling_cost.sampling_cost(
        generator, batch=args.batch, num_columns=args.columns, evaluations=evaluations, guided=args.guidance != 1
    )
    for name, count in costs.items():
        yield name, count, None
    latents = jax.ShapeDtypeStruct((args.batch, args.columns, tokenizer.embed_dim), jnp.float32)
    decode = lambda p, x: tokenizer.apply({"params": p}, x, method="decode").images  # noqa: E731
    yield (
        "decoder",
        sampling_cost.compiled_cost(decode, jax.eval_shape(tokenizer.init_params, jax.random.key(0)), latents),
        None,
    )


def benchmark(kind, args):
    """Runs one kind: {device …, rows: [{part, seconds, …}]}.

    Raises:
      ValueError: an unknown kind or configuration.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not one of {KINDS}.")
    if kind in ("sampling", "decoding"):
        model = models.make_model(args.config, args.dtype)
        measured = sampling_rows(args, model) if kind == "sampling" else decoding_rows(args, model)
    else:
        measured = training_rows(args) if kind == "training" else floor_rows(args)
    if kind == "sampling":
        measured = [*measured, *decoding_rows(args, model)]
    peak = None if kind == "floor" else matmul_peak(args.dtype)
    rows = []
    for part, count, timing in measured:
        row = dict(part=part)
        if count:
            row.update(gflop=count.flops / 1e9)
        if count and count.bytes is not None:
            row.update(gigabytes=count.bytes / 1e9)
        if timing:
            row.update(seconds_per_column=timing[0] / args.columns, images_per_second=args.batch / timing[0])
            row.update(compile_seconds=timing[1], temporary_megabytes=timing[2] / 1e6)
        if count and timing:
            row.update(tflops=count.flops / timing[0] / 1e12, share_of_peak=count.flops / timing[0] / peak)
        rows.append(row)
    device = jax.devices()[0]
    return dict(
        kind=kind, device=device.device_kind, dtype=args.dtype, config=args.config, batch=args.batch,
        columns=args.columns, solver=args.solver, num_flow_steps=args.num_flow_steps, guidance=args.guidance,
        peak_tflops=peak and peak / 1e12, peak_memory_megabytes=peak_memory() / 1e6, jax=jax.__version__, rows=rows,
    )  # fmt: skip


def table(results):
    """The results as text: a line of what was run, and a table of parts."""
    about = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in results.items() if k != "rows")
    names = ["part", *dict.fromkeys(name for row in results["rows"] for name in row if name != "part")]
    cells = [names] + [
        [f"{row[n]:.4g}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names]
        for row in results["rows"]
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([about, *lines])


def main(argv):
    """Measures, prints the table, writes JSON."""
    runner.set_up()
    try:
        if len(argv) != 2:
            raise ValueError(f"say what to measure: one of {KINDS}; got {argv[1:]}.")
        results = benchmark(argv[1], flags.FLAGS)
    except (ValueError, FileNotFoundError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error
    print(table(results))
    if flags.FLAGS.json:
        with atomic_write(flags.FLAGS.json) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    sys.stdout.flush()


if __name__ == "__main__":
    define_flags()
    app.run(main)
