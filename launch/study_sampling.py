r"""The measurements of eqjax/sampling/README.md, to be repeated with other weights.

python -m launch.study_sampling solvers      # error over evaluations, per solver and grid; images side by side
python -m launch.study_sampling positions    # drift over 1000 columns, with and without bounded positions
python -m launch.study_sampling streaming    # what decoding as it comes changes
python -m launch.study_sampling length       # time per column and memory, each length in a process of its own
"""

import json
import os
import resource
import subprocess
import sys
import time

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from eqjax import flow, load_pretrained, panorama, pixels
from eqjax.cli import runner
from eqjax.data import photos
from eqjax.sampling import sampler
from eqjax.sampling.class_schedule import Blend
from eqjax.sampling.options import SamplingOptions
from eqjax.sampling.sampler import sample_latents
from eqjax.sampling.streaming import StreamDecoder
from eqjax.tokenizer.tiling import decode_images

STUDIES = ("solvers", "positions", "streaming", "length")
_WEIGHTS = flags.DEFINE_list("weights", ["photos"], "A shipped model's name, or weights files and workdirs, in order.")
_OUTPUT = flags.DEFINE_string("output", os.path.join("outputs", "study"), "Folder for images.")
_LENGTHS = flags.DEFINE_list("lengths", ["64", "256", "1024"], "Of the length study, columns.")
_COLUMNS = flags.DEFINE_integer("columns", 1000, "Of the position study.")
_TRAINED = flags.DEFINE_integer("trained_columns", 8, "Columns of the training crops, for bounded positions.")


def print_table(rows):
    """Rows of a table in Markdown; the first one is its head."""
    for i, row in enumerate(rows):
        print("| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
        if not i:
            print("|" + " --- |" * len(row))


def solvers(model):
    """Relative error of latents, |z − z*| / |z*|, against 1000 steps of Adams–Bashforth, the same noise."""
    generator, params = model.generator, model.generator_params
    labels, columns = np.arange(generator.num_classes), 8
    noise = jax.random.normal(jax.random.key(0), (len(labels), columns, generator.latent_dim))

    def draw(guidance, solver, grid, evaluations):
        return sample_latents(
            generator, params, labels, num_columns=columns, guidance_scale=guidance, guidance_schedule="constant",
            num_flow_steps=evaluations // (2 if solver == "heun" else 1), solver=solver, time_grid=grid, noise=noise,
        )  # fmt: skip

    counts = (8, 16, 32, 64, 100)
    rows = [["guidance", "solver", "grid", *counts]]
    for guidance in (1.0, 3.0, 7.0):
        exact = draw(guidance, "adams_bashforth", "uniform", 1000)
        norm = jnp.linalg.norm(exact)
        for solver in flow.SOLVERS:
            for grid in flow.TIME_GRIDS:
                errors = [float(jnp.linalg.norm(draw(guidance, solver, grid, n) - exact) / norm) for n in counts]
                rows.append([guidance, solver, grid, *errors])
    print_table(rows)
    settings = (("euler", 100), ("euler", 16), ("heun", 16), ("adams_bashforth", 16), ("adams_bashforth", 1000))
    pictures = [model.decode(draw(3.0, solver, "uniform", n)) for solver, n in settings]
    picture = pixels.grid(np.stack(pictures, 1).reshape(-1, *pictures[0].shape[1:]), columns=len(pictures))
    pixels.save_png(os.path.join(_OUTPUT.value, "solvers.png"), picture)


def positions(model):
    """Mean and variance of latents and the flow's loss, over stretches of a long image of every class."""
    generator, params, columns = model.generator, model.generator_params, _COLUMNS.value
    labels = jnp.arange(generator.num_classes)
    bound = _TRAINED.value + generator.max_rope_shift - 3
    edges = [0, 10, 50, 100, *range(250, columns + 1, 250)]
    rows = [["positions", "columns", "mean", "variance", "loss"]]
    for name, limit in (("as published", None), (f"at most {bound}", bound)):
        latents = sample_latents(
            generator, params, labels, num_columns=columns, guidance_scale=2.0, guidance_schedule="constant",
            num_flow_steps=25, solver="adams_bashforth", max_position=limit, key=jax.random.key(0),
        )  # fmt: skip
        losses = column_losses(generator, params, labels, latents, 2**31 - 1 if limit is None else limit)
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            part = latents[:, a:b]
            rows.append([name, f"{a} … {b - 1}", float(part.mean()), float(part.var()), float(losses[a:b].mean())])
        path = os.path.join(_OUTPUT.value, f"positions_{'published' if limit is None else 'bounded'}.png")
        pixels.save_png(path, pixels.grid(model.decode(latents[:, -64:]), columns=1))
    print_table(rows)


def column_losses(generator, params, labels, latents, limit, draws=8):
    """Mean squared error of the velocity at fixed times and noise, per column [L], under the sampler's contexts."""

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


def streaming(model):
    """Differences to decoding the whole, in gray levels of 255, and gradients at borders and elsewhere.

    Of long samples of every class, or of bands of photographs where there is a tokenizer alone.
    """
    tokenizer = model.tokenizer
    rows = [["class", "mean difference", "max difference", "gradient at borders", "gradient elsewhere"]]
    for name, row in (_bands if model.generator is None else _samples)(model):
        scaled = row[None] / model.latent_scale
        whole = decode_images(tokenizer, model.tokenizer_params, scaled, tile_columns=len(row))[0]
        decoder = StreamDecoder(tokenizer, model.tokenizer_params, model.latent_scale, min(16, len(row) // 4))
        strips = decoder.push(row, last=True)
        image = np.concatenate(strips, axis=1).astype(np.float32)
        borders = np.cumsum([strip.shape[1] for strip in strips])[:-1]
        gradient = np.abs(np.diff(image, axis=1)).mean((0, 2))
        # Neighbours of a border between columns that lie inside a window, for comparison.
        inside = [x for x in range(tokenizer.column_width, image.shape[1], tokenizer.column_width) if x not in borders]
        off = np.abs(image - (np.clip(np.asarray(whole), -1, 1) + 1) * 127.5)
        # Not a number where the image is one strip.
        at, elsewhere = (
            float(gradient[np.asarray(where, int) - 1].sum() / (len(where) or np.nan)) for where in (borders, inside)
        )
        rows.append([name, float(off.mean()), float(off.max()), at, elsewhere])
    rows.append(["mean", *(float(np.mean(column)) for column in list(zip(*rows[1:], strict=True))[1:])])
    print_table(rows)


def _samples(model):
    """(class, scaled latents [128, D]) of every class."""
    latents = sample_latents(
        model.generator, model.generator_params, jnp.arange(model.generator.num_classes), num_columns=128,
        guidance_scale=2.0, num_flow_steps=25, key=jax.random.key(0),
    )  # fmt: skip
    names = model.class_names or range(model.generator.num_classes)
    return zip(names, np.asarray(latents), strict=True)


def _bands(model):
    """(name, scaled latents [L, D]) of a band across the middle of every built-in photograph at half its size."""
    height, width = model.tokenizer.resolution, model.tokenizer.column_width
    for name in photos.PHOTOS:
        picture = Image.fromarray(photos.load_photo(name)).reduce(2)
        top = (picture.height - height) // 2
        band = np.asarray(picture)[None, top : top + height, : picture.width // width * width]
        yield name, np.asarray(model.encode(band))[0]


def length():
    """Seconds per column and the process's peak memory, a process for each length."""
    rows = [["columns", "ms per column", "peak memory, MB"]]
    for columns in _LENGTHS.value:
        command = [sys.executable, "-m", "launch.study_sampling", "one", f"--lengths={columns}"]
        command.append("--weights=" + ",".join(_WEIGHTS.value))
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append([int(columns), *json.loads(out.splitlines()[-1])])
    print_table(rows)


def one(model):
    """One length: milliseconds per column as a panorama comes, after the first strips, and the peak in MB."""
    total, warm = int(_LENGTHS.value[0]), 32
    strips = panorama(model, 0, guidance_scale=2.0, num_flow_steps=25)
    while strips.emitted < warm:
        next(strips)
    before, start = strips.emitted, time.process_time()
    while strips.emitted < before + total:
        next(strips)
    per_column = (time.process_time() - start) / total
    print(json.dumps([per_column * 1e3, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main(argv):
    """Runs one study."""
    runner.set_up()
    if len(argv) != 2 or argv[1] not in (*STUDIES, "one"):
        logging.error("Say which study: one of %s; got %s.", STUDIES, argv[1:])
        raise SystemExit(1)
    if argv[1] == "length":
        length()
    else:
        studies = dict(solvers=solvers, positions=positions, streaming=streaming, one=one)
        studies[argv[1]](load_pretrained(*_WEIGHTS.value))


if __name__ == "__main__":
    app.run(main)
