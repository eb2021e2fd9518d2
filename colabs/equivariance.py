# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Are all columns one task?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/eqjax/eqjax/blob/main/colabs/equivariance.ipynb)
#
# The argument behind the model: an image is easier to model when every part of the sequence is the same task. So the
# tokenizer should move with the image, and the generator's columns should ask for the same weights. Both can be
# measured, here on the model that comes with eqjax and on crops of its photographs.
#
# On Colab this cell fetches eqjax; where it is installed already it does nothing.

# %%
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("eqjax") is None:
    source = pathlib.Path("eqjax-source")
    if not source.exists():
        address = "https://github.com/eqjax/eqjax"
        subprocess.run(["git", "clone", "--quiet", "--depth=1", address, str(source)], check=True)
    # These stay as they are: another JAX may not fit the machine's accelerator.
    kept = [f"{name}=={importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "numpy")]
    pins = source / "pins.txt"
    pins.write_text("\n".join(kept))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(pins)]
    subprocess.run([*install, "--requirement", str(source / "requirements.txt")], check=True)
    sys.path.insert(0, str(source.resolve()))

# %% [markdown]
# The model's images are 64 pixels high; `show` enlarges them for the screen.

# %%
import numpy as np
from PIL import Image

from eqjax import pixels


def show(image, scale=2):
    image = Image.fromarray(np.asarray(image))
    return image.resize((scale * image.width, scale * image.height), Image.Resampling.BICUBIC)


# %% [markdown]
# The model, and random crops of its eight photographs, wider than needed so that they can be moved.

# %%
import eqjax
from eqjax import data
from eqjax.evaluation import equivariance, plots, tasks

model = eqjax.load_pretrained("photos")
config = data.default_config()
config.update(height=64, width=160, min_scale=0.5, num_threads=0)
config.classes = model.class_names
with data.make_iterator(config, batch_size=64, seed=0, process_index=0, process_count=1) as batches:
    crops = next(batches)
images, labels = crops["image"], crops["label"]
show(pixels.grid(images[:8], columns=2))

# %% [markdown]
# **The tokenizer, moved.** A wide strip of five crops, and the same strip moved by one column: token k + 1 of the first
# should be token k of the second.

# %%
COLUMN = model.tokenizer.column_width  # Pixels.
strip = np.concatenate(images[:5], axis=1)[None]
still, moved = model.encode(strip[:, :, :-COLUMN]), model.encode(strip[:, :, COLUMN:])
difference = np.abs(np.asarray(still[0, 1:] - moved[0, :-1])).max(-1)

# %% [markdown]
# The largest difference of each token, as a power of ten. This tokenizer is strictly equivariant: all that is left sits
# at the borders, where the image ends in one case and goes on in the other; in the middle there is rounding.

# %%
print(f"columns that a token sees on either side: {model.tokenizer.halo_columns}")
series = {"moved by a column": (np.arange(len(difference)), np.log10(difference + 1e-9), None)}
plots.plot_lines("moved.png", series, title="Largest difference", x_label="column", y_label="log10")
Image.open("moved.png")

# %% [markdown]
# **Any shift.** Now crops of eight columns, moved by 1 to 32 pixels. Between whole columns there is no token to compare
# with, so the straight line between two neighbors stands in; even a perfect tokenizer need not follow it. In crops
# this short all columns are near a border, where new content enters.

# %%
found = equivariance.shift_errors(model, images[:8], range(1, 33), width=128)
inner = found.errors[:, 1:4].mean(axis=1)
print(f"PSNR {found.psnr:.1f} dB")

# %% [markdown]
# Plotted over the shift: look for the dips at whole columns, 16 and 32 pixels. "Unrelated" is the error between
# different images. An error under shifts says nothing without the quality of reconstruction (PSNR, above): tokens
# that ignore the image never move.

# %%
series = {"inner columns": (found.shifts, inner, None)}
series["unrelated images"] = (found.shifts, np.full(len(inner), found.unrelated), None)
texts = dict(title="Tokens of moved images", x_label="shift, pixels", y_label="error over RMS")
plots.plot_lines("shifts.png", series, **texts)
Image.open("shifts.png")

# %% [markdown]
# **The generator, column by column.** Latents of the same crops, in batches: error bars are over batches.

# %%
import jax

latents = np.asarray(model.encode(images[:, :, :128]))
batches = [(latents[i : i + 16], labels[i : i + 16]) for i in range(0, 64, 16)]

# %% [markdown]
# The loss of each column. The first has nothing before it to go by; from where the window is full, all have the same to
# go by.

# %%
loss = tasks.column_losses(model.generator, model.generator_params, batches, jax.random.key(0))
columns = np.arange(len(loss.mean))
texts = dict(title="Loss per column", x_label="column", y_label="loss")
plots.plot_lines("losses.png", {"loss": (columns, loss.mean, loss.stderr)}, **texts)
Image.open("losses.png")

# %% [markdown]
# **Conflict.** Do two columns ask for the same change of the weights? The cosine between their gradients says so: 1 for
# the same, 0 for unrelated. A finite batch is noisy, so there is a ceiling: the cosine of *one* column between two
# batches.

# %%
conflict, ceiling = tasks.gradient_cosines(model.generator, model.generator_params, batches, jax.random.key(1))
print(f"different columns, one batch:  {tasks.off_diagonal_mean(conflict.mean):.3f}")
print(f"one column, different batches: {np.diag(ceiling.mean).mean():.3f}")

# %% [markdown]
# All pairs; in the left panel the diagonal, which is 1, is left out. Where a model has been trained, gradients are
# mostly noise and all cosines are small, so compare the two panels rather than read one alone.

# %%
pairs = np.where(np.eye(len(columns), dtype=bool), np.nan, conflict.mean)
panels = {"one batch": pairs, "two batches": ceiling.mean}
limits = (0, max(np.nanmax(pairs), ceiling.mean.max()))
plots.plot_heatmaps("cosines.png", panels, title="Cosine between gradients", x_label="column", y_label="column", limits=limits)
Image.open("cosines.png")

# %% [markdown]
# **Transfer.** If all columns are one task, training on some of them teaches the others. Two small generators: one
# trained with the loss of all columns, one with that of the left half alone.

# %%
small = eqjax.Generator(
    width=48,
    depth=1,
    num_heads=4,
    latent_dim=latents.shape[-1],
    num_classes=len(model.class_names),
    num_cond_tokens=2,
    window_size=3,
    max_rope_shift=8,
    flow_width=64,
    flow_depth=1,
    dropout_rate=0.0,
)
options = dict(steps=200, batch_size=16, learning_rate=3e-3)
whole = tasks.train(small, latents, labels, **options)
half = tasks.train(small, latents, labels, columns=range(4), **options)

# %% [markdown]
# The second has never been trained on columns 4 to 7. Small models, few steps, one seed and the training images
# themselves: this shows how to measure, not what holds in general.

# %%
after = {"all trained": whole, "0 to 3 trained": half}
series = {}
for name, params in after.items():
    estimate = tasks.column_losses(small, params, batches, jax.random.key(2))
    series[name] = (columns, estimate.mean, estimate.stderr)
plots.plot_lines("transfer.png", series, title="Transfer", x_label="column", y_label="loss")
Image.open("transfer.png")

# %% [markdown]
# `python -m eqjax.cli.analyze --compare` does all of this for four kinds of models and several seeds.
