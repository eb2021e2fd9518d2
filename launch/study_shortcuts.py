r"""Measures what the shortcuts of sampling change and save, with the shipped weights or others.

    python -m launch.study_shortcuts modulations   # error of interpolated modulations, by their number of times
    python -m launch.study_shortcuts parallel      # sweeps and error of steps at once, by window and tolerance
    python -m launch.study_shortcuts time          # CPU time per column, exact and interpolated in turn

Errors are measured against the sequential solver with exact modulations: of modulations those of whole images, column
after column; of steps at once those of each column alone, after the same columns.
"""

import statistics
import time
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import Model, load_pretrained
from eqjax.cli import runner
from eqjax.published import GENERATOR_SIZES
from eqjax.sampling import sampler
from eqjax.sampling.class_schedule import Blend
from eqjax.sampling.latents import sample_latents
from eqjax.sampling.options import SamplingOptions
from eqjax.sampling.sampler import SamplerInputs
from eqjax.tables import markdown_table

_WEIGHTS = flags.DEFINE_list("weights", ["photos"], "A shipped model's name, or weights files and workdirs.")
_COLUMNS = flags.DEFINE_integer("num_columns", 4, "Columns of every image.", 1)
_CLASSES = flags.DEFINE_integer("num_classes", 8, "Images, one of each class.", 1)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Pairs of timed calls.", 1)
_SCALES = (1.0, 3.0, 7.0)


def print_table(header: list[Any], rows: list[list[Any]]) -> None:
    """Prints a table in Markdown."""
    cells = [[f"{cell:.2g}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    print(markdown_table([str(name) for name in header], cells), flush=True)


def make_noise(model: Model) -> jax.Array:
    """Returns the initial noise of all images [B, L, D]."""
    rows = min(_CLASSES.value, model.require("generator").num_classes)
    return jax.random.normal(jax.random.key(0), (rows, _COLUMNS.value, model.require("generator").latent_dim))


def sample(model: Model, guidance_scale: float, **options: Any) -> np.ndarray:
    """Returns sampled latents of the first classes, under constant guidance."""
    noise = make_noise(model)
    return np.asarray(
        sample_latents(
            model.require("generator"), model.generator_params, np.arange(len(noise)), num_columns=_COLUMNS.value,
            guidance_scale=guidance_scale, guidance_schedule="constant", noise=noise, precision=model.precision,
            **options,
        )
    )  # fmt: skip


def modulations(model: Model) -> None:
    """Prints |z − z*| / |z*| for numbers of times, and beside it the error of 100 Euler steps themselves."""
    counts, rows = (6, 8, 12, 16, 24), []
    for scale in _SCALES:
        exact = sample(model, scale)
        fine = sample(model, scale, solver="adams_bashforth", num_flow_steps=400)
        found = [sample(model, scale, modulation_times=count) for count in counts]
        errors = [float(np.linalg.norm(z - exact) / np.linalg.norm(exact)) for z in found]
        rows.append([scale, *errors, float(np.linalg.norm(exact - fine) / np.linalg.norm(fine))])
    print_table(["guidance", *(f"{count} times" for count in counts), "100 Euler steps"], rows)


def parallel(model: Model) -> None:
    """Prints sweeps, the mean over columns, and the largest root mean square error of a column's latents."""
    rows = []
    for scale in _SCALES:
        exact, _ = columns(model, scale, None)
        for steps in (10, 20, 50):
            for tolerance in (1e-2, 1e-3, 1e-4):
                options: dict[str, Any] = dict(parallel_steps=steps, parallel_tolerance=tolerance)
                found, sweeps = columns(model, scale, exact, **options)
                error = float(np.sqrt(np.square(found - exact).mean(-1)).max())
                rows.append([scale, steps, tolerance, f"{sweeps.mean():.1f}", error])
    print_table(["guidance", "steps at once", "tolerance", "sweeps, of 100 evaluations", "error"], rows)


def columns(
    model: Model, guidance_scale: float, given: np.ndarray | None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents [L, B, D], and how many evaluations waited for each other [L].

    Args:
      model: the model.
      guidance_scale: the scale at every column.
      given: latents [L, B, D] that later columns see in place of those found here; None: these.
      **options: sampling options.
    """
    noise = jnp.moveaxis(make_noise(model), 1, 0)
    found = SamplingOptions(guidance_scale=guidance_scale, **options)
    labels = np.arange(noise.shape[1])[:, None]
    inputs = SamplerInputs.create(model.require("generator"), model.generator_params, labels, found)
    with model.with_precision():
        latents, counts = _columns(inputs, noise, given, guidance_scale)
    return np.asarray(latents), np.asarray(counts)


@jax.jit
def _columns(inputs: SamplerInputs, noise: jax.Array, given: Any, guidance_scale: Any) -> tuple[jax.Array, jax.Array]:
    made = sampler.make_sampler(inputs)
    state = sampler.init_state(made, Blend(0, 0.0), noise.shape[0])

    def step(state: sampler.SamplerState, column: Any) -> Any:
        noise, seen = column
        latent, count = sampler.integrate_column(made, state.context, noise, guidance_scale)
        seen = latent if seen is None else seen
        return sampler.decode_step(made, state, seen, Blend(0, 0.0)), (latent, jnp.asarray(count))

    return jax.lax.scan(step, state, (noise, given))[1]


def times() -> None:
    """Prints CPU seconds per column of size S at batch 1, exact modulations and 12 times in turn."""
    from eqjax import Generator

    generator = Generator(**GENERATOR_SIZES["S"])
    params = generator.init_params(jax.random.key(0))

    def seconds(**options: Any) -> float:
        start = time.process_time()
        latents = sample_latents(
            generator, params, [0], num_columns=1, guidance_scale=7.0, key=jax.random.key(1), **options
        )
        jax.block_until_ready(latents)
        return time.process_time() - start

    for options in ({}, {"modulation_times": 12}):  # Compiles.
        seconds(**options)
    pairs = [(seconds(), seconds(modulation_times=12)) for _ in range(_REPEATS.value)]
    ratio = statistics.median(b / a for a, b in pairs)
    exact, interpolated = (statistics.median(column) for column in zip(*pairs, strict=True))
    print_table(["exact, s", "12 times, s", "ratio, median of pairs"], [[exact, interpolated, ratio]])


def run(words: list[str]) -> None:
    """Runs the study that the only word names.

    Raises:
      ValueError: there is no such study.
    """
    if words == ["time"]:
        times()
    elif words in (["modulations"], ["parallel"]):
        {"modulations": modulations, "parallel": parallel}[words[0]](load_pretrained(*_WEIGHTS.value))
    else:
        raise ValueError(f"name one study, modulations, parallel or time; got {words}.")


if __name__ == "__main__":
    app.run(lambda argv: runner.finish(lambda: run(argv[1:])))
