r"""Repeats the measurements of eqjax/sampling/README.md, with the shipped weights or others.

    python -m launch.study_sampling solvers      # error over evaluations, per solver and grid; images side by side
    python -m launch.study_sampling positions    # drift over 1000 columns, with and without bounded positions
    python -m launch.study_sampling streaming    # difference between streaming and decoding the whole image
    python -m launch.study_sampling length       # time per column and memory, each length in its own process

It is a script of the repository and no command of the package, as it uses the sampler's inner functions.
"""

from collections.abc import Callable, Iterator, Sequence
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from eqjax import Generator, Model, Tokenizer, flow, load_pretrained, panorama, pixels
from eqjax.cli import runner
from eqjax.data import photos
from eqjax.evaluation import roughness
from eqjax.image_output import save_image
from eqjax.module_fields import SOLVERS, TIME_GRIDS
from eqjax.sampling import sampler
from eqjax.sampling.class_schedule import Blend
from eqjax.sampling.latents import sample_latents
from eqjax.sampling.options import SamplingOptions
from eqjax.sampling.streaming import StreamDecoder
from eqjax.tables import markdown_table
from eqjax.tokenizer.tiling import decode_images
from eqjax.typing import Params

STUDIES = ("solvers", "positions", "streaming", "length")
_WEIGHTS = flags.DEFINE_list("weights", ["photos"], "A shipped model's name, or weights files and workdirs.")
_OUTPUT = flags.DEFINE_string("output", os.path.join("outputs", "study"), "Folder of the images.")
_LENGTHS = flags.DEFINE_list("lengths", ["64", "256", "1024"], "Lengths of the length study, columns.")
_NUM_COLUMNS = flags.DEFINE_integer("num_columns", 1000, "Columns of the position study.")
_TRAINED = flags.DEFINE_integer("num_trained_columns", 8, "Columns of the training crops, for bounded positions.")


def print_table(header: list[Any], rows: list[list[Any]]) -> None:
    """Prints a table in Markdown."""
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    print(markdown_table([str(name) for name in header], cells))


def solvers(model: Model) -> None:
    """Measures the relative error of latents, |z − z*| / |z*|, against 1000 Adams–Bashforth steps on the same noise."""
    generator, params = model.require("generator"), model.generator_params
    labels, columns = np.arange(generator.num_classes), 8
    noise = jax.random.normal(jax.random.key(0), (len(labels), columns, generator.latent_dim))

    def sample(guidance: float, solver: str, grid: str, evaluations: int) -> jax.Array:
        return sample_latents(
            generator, params, labels, num_columns=columns, guidance_scale=guidance, guidance_schedule="constant",
            num_flow_steps=evaluations // (2 if solver == "heun" else 1), solver=solver, time_grid=grid, noise=noise,
        )  # fmt: skip

    counts = (8, 16, 32, 64, 100)
    rows = []
    for guidance in (1.0, 3.0, 7.0):
        exact = sample(guidance, "adams_bashforth", "uniform", 1000)
        norm = jnp.linalg.norm(exact)
        for solver in SOLVERS:
            for grid in TIME_GRIDS:
                errors = [float(jnp.linalg.norm(sample(guidance, solver, grid, n) - exact) / norm) for n in counts]
                rows.append([guidance, solver, grid, *errors])
    print_table(["guidance", "solver", "grid", *counts], rows)
    shown = (("euler", 100), ("euler", 16), ("heun", 16), ("adams_bashforth", 16), ("adams_bashforth", 1000))
    images = [model.decode(sample(3.0, solver, "uniform", n)) for solver, n in shown]
    grid = pixels.grid(np.stack(images, 1).reshape(-1, *images[0].shape[1:]), columns=len(images))
    save_image(os.path.join(_OUTPUT.value, "solvers.png"), grid)


def positions(model: Model) -> None:
    """Measures mean and variance of latents and the flow's loss, over stretches of a long image of every class."""
    generator, params, columns = model.require("generator"), model.generator_params, _NUM_COLUMNS.value
    labels = jnp.arange(generator.num_classes)
    bound = _TRAINED.value + generator.max_rope_shift - 3
    edges = [0, 10, 50, 100, *range(250, columns + 1, 250)]
    rows = []
    for name, limit in (("as published", None), (f"at most {bound}", bound)):
        latents = sample_latents(
            generator, params, labels, num_columns=columns, guidance_scale=2.0, guidance_schedule="constant",
            num_flow_steps=25, solver="adams_bashforth", max_position=limit, key=jax.random.key(0),
        )  # fmt: skip
        losses = column_losses(generator, params, labels, latents, 2**31 - 1 if limit is None else limit)
        for a, b in itertools.pairwise(edges):
            part = latents[:, a:b]
            rows.append([name, f"{a} … {b - 1}", float(part.mean()), float(part.var()), float(losses[a:b].mean())])
        path = os.path.join(_OUTPUT.value, f"positions_{'published' if limit is None else 'bounded'}.png")
        save_image(path, pixels.grid(model.decode(latents[:, -64:]), columns=1))
    print_table(["positions", "columns", "mean", "variance", "loss"], rows)


def column_losses(
    generator: Generator, params: Params, labels: jax.Array, latents: jax.Array, limit: int, draws: int = 8
) -> jax.Array:
    """Returns the mean squared error of the velocity per column [L], at fixed times and noise, as the sampler runs."""

    @jax.jit
    def losses(params, latents):
        options = SamplingOptions(max_position=limit)
        run = sampler.make_sampler(sampler.SamplerInputs.create(generator, params, labels[:, None], options))
        times = (jnp.arange(draws) + 0.5) / draws

        def column(state, latent):
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), state.column), (draws, *latent.shape))
            time = jnp.broadcast_to(times[:, None], (draws, latent.shape[0]))
            v = run.apply(flow.interpolate(latent, noise, time), time, state.context[None], method="velocity")
            loss = jnp.mean(jnp.square(v - flow.velocity_target(latent, noise)))
            return sampler.decode_step(run, state, latent, Blend(0, 0.0)), loss

        state = sampler.init_state(run, Blend(0, 0.0), latents.shape[1])
        return jax.lax.scan(column, state, jnp.moveaxis(latents, 1, 0))[1]

    return losses(params, latents)


def streaming(model: Model) -> None:
    """Compares streaming with decoding the whole image, and looks for seams between strips, columns and inside columns.

    Differences are in gray levels. Roughness is the difference of the two pixels at a place over that of all pixels
    that are neither at a border nor at the middle of a column, so 1 means that the place cannot be seen. The images are
    bands of the built-in photographs, as they are and reconstructed, and long samples of every class if the model has a
    generator.
    """
    tokenizer = model.require("tokenizer")
    width = tokenizer.column_width
    header = ["images", "class", "mean difference", "max difference", "strip borders", "column borders", "middles"]
    rows: list[list[Any]] = []
    for name, band in _bands(tokenizer):
        rows.append(["real", name, "", "", *_roughness(band, width, ())])
        latents = np.asarray(model.encode(band[None]))[0]
        rows.append(["reconstructed", name, *_compare_streaming(model, latents)])
    for name, latents in () if model.generator is None else _samples(model):
        rows.append(["sampled", name, *_compare_streaming(model, latents)])
    for kind in dict.fromkeys(row[0] for row in rows):
        columns = list(zip(*(row[2:] for row in rows if row[0] == kind), strict=True))
        rows.append([kind, "mean", *("" if "" in column else float(np.mean(column)) for column in columns)])
    print_table(header, rows)


def _compare_streaming(model: Model, latents: np.ndarray) -> list[Any]:
    """Returns mean and largest difference of a streamed image [L, D] from the whole one, and its roughness."""
    tokenizer = model.require("tokenizer")
    whole = decode_images(
        tokenizer, model.tokenizer_params, latents[None] / model.latent_scale, tile_columns=len(latents)
    )
    decoder = StreamDecoder(tokenizer, model.tokenizer_params, model.latent_scale, min(16, len(latents) // 4))
    strips = decoder.push(latents, last=True)
    image = np.concatenate(strips, axis=1).astype(np.float32)
    off = np.abs(image - (np.clip(np.asarray(whole[0]), -1, 1) + 1) * 127.5)
    borders = np.cumsum([strip.shape[1] for strip in strips])[:-1]
    return [float(off.mean()), float(off.max()), *_roughness(image, tokenizer.column_width, borders)]


def _roughness(image: np.ndarray, width: int, borders: Sequence[int] | np.ndarray) -> list[Any]:
    """Returns the roughness at borders of strips (if there are any), at other borders of columns, and at middles."""
    differences = roughness.neighbor_differences(image[None])  # Entry x - 1 is the difference at x.
    places = np.arange(1, image.shape[1])
    at_strips = np.isin(places, borders)
    at_columns, at_middles = (places % width == 0) & ~at_strips, places % width == width // 2
    elsewhere = differences[(places % width != 0) & ~at_middles].mean()
    found = [float(differences[where].mean() / elsewhere) for where in (at_columns, at_middles)]
    return [float(differences[at_strips].mean() / elsewhere) if at_strips.any() else "", *found]


def _samples(model: Model) -> Iterator[tuple[Any, np.ndarray]]:
    """Returns (class, scaled latents [128, D]) of every class."""
    generator = model.require("generator")
    latents = sample_latents(
        generator, model.generator_params, jnp.arange(generator.num_classes), num_columns=128,
        guidance_scale=2.0, num_flow_steps=25, key=jax.random.key(0),
    )  # fmt: skip
    names = model.class_names or range(generator.num_classes)
    return zip(names, np.asarray(latents), strict=True)


def _bands(tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, uint8 [H, W, 3]) of a band across the middle of every built-in photograph, at half size."""
    height, width = tokenizer.resolution, tokenizer.column_width
    for name in photos.PHOTOS:
        image = Image.fromarray(photos.load_photo(name)).reduce(2)
        top = (image.height - height) // 2
        yield name, np.asarray(image)[top : top + height, : image.width // width * width]


def length() -> None:
    """Measures milliseconds per column and the process's peak memory, in one process per length."""
    rows = []
    for columns in _LENGTHS.value:
        command = [sys.executable, "-m", "launch.study_sampling", "one", f"--lengths={columns}"]
        command.append("--weights=" + ",".join(_WEIGHTS.value))
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append([int(columns), *json.loads(out.splitlines()[-1])])
    print_table(["columns", "ms per column", "peak memory, MB"], rows)


def one(model: Model) -> None:
    """Prints, for one length, milliseconds per column of a panorama after its first strips, and the peak in MB."""
    total, warm = int(_LENGTHS.value[0]), 32
    strips = panorama(model, 0, guidance_scale=2.0, num_flow_steps=25)
    while strips.emitted < warm:
        next(strips)
    before, start = strips.emitted, time.process_time()
    while strips.emitted < before + total:
        next(strips)
    per_column = (time.process_time() - start) / total
    print(json.dumps([per_column * 1e3, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main(argv: list[str]) -> None:
    """Runs one study."""
    runner.finish(lambda: run(argv[1:]))


def run(words: list[str]) -> None:
    """Runs the study that the only word names.

    Raises:
      ValueError: there is no such study.
    """
    if len(words) != 1 or words[0] not in (*STUDIES, "one"):
        raise ValueError(f"name one study of {STUDIES}; got {words}.")
    if words[0] == "length":
        length()
        return
    studies: dict[str, Callable[[Model], None]] = dict(
        solvers=solvers, positions=positions, streaming=streaming, one=one
    )
    studies[words[0]](load_pretrained(*_WEIGHTS.value))


if __name__ == "__main__":
    app.run(main)
