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
# An image is easier to model if every part of the sequence is the same task. For that, the tokens should move with the
# image, and the generator's columns should agree on the weights. This notebook measures both, on the model that comes
# with eqjax and on crops of its photographs. A GPU is used if there is one; none is needed.
#
# The first cell installs eqjax if it is missing.

# %%
import importlib.util

if importlib.util.find_spec("eqjax") is None:
    raise ModuleNotFoundError("eqjax is missing: in your copy of its code, pip install '.[analysis,photos]'")

# %% [markdown]
# The model, and random crops of its nine photographs. The crops are wider than needed, so that they can be shifted.

# %%
import numpy as np

import eqjax
from eqjax import data, pixels
from eqjax.equivariance import crop_shift_errors, model_codec
from eqjax.evaluation import plots, tasks
from eqjax.notebook import show

model = eqjax.load_pretrained("photos")
config = data.default_config()
config.update(height=128, width=160, min_scale=0.5, num_threads=0)
config.classes = model.class_names
with data.make_iterator(config, batch_size=64, seed=0, process_index=0, process_count=1) as batches:
    crops = next(batches)
images, labels = crops["image"], crops["label"]
show(pixels.grid(images[:8], columns=2))

# %% [markdown]
# **A shift by one column.** We encode a wide strip of five crops, and the same strip shifted by one column. Token k + 1
# of the first should be token k of the second.

# %%
COLUMN = model.tokenizer.column_width  # Pixels.
strip = np.concatenate(images[:5], axis=1)[None]
still, shifted = model.encode(strip[:, :, :-COLUMN]), model.encode(strip[:, :, COLUMN:])
difference = np.abs(np.asarray(still[0, 1:] - shifted[0, :-1])).max(-1)

# %% [markdown]
# The largest difference of each token, as a power of ten. This tokenizer is strictly equivariant. Differences remain
# only at the borders, where the image ends in one strip and continues in the other; in the middle there is rounding.

# %%
print(f"columns that a token sees on either side: {model.tokenizer.halo_columns}")
series = {"shifted by a column": (np.arange(len(difference)), np.log10(difference + 1e-9), None)}
plots.plot_lines("shifted.png", series, title="Largest difference", x_label="column", y_label="log10")
show("shifted.png", scale=1)

# %% [markdown]
# **Any shift.** Now we shift crops of eight columns by 1 to 32 pixels. Between whole columns there is no token to
# compare with, so we interpolate linearly between two neighbors; even a perfect tokenizer need not follow that line. In
# crops this short all columns are near a border, where new content enters.

# %%
found = crop_shift_errors(model_codec(model), pixels.from_uint8(images[:8]), range(1, 33), width=128)
inner = found.errors[:, 1:4].mean(axis=1)
print(f"PSNR {found.psnr:.1f} dB")

# %% [markdown]
# The error over the shift dips at whole columns, 16 and 32 pixels. "Unrelated" is the error between different images.
# Read the error together with the reconstruction quality (PSNR, above): tokens that ignore the image never move.

# %%
series = {"inner columns": (found.shifts, inner, None)}
series["unrelated images"] = (found.shifts, np.full(len(inner), found.unrelated), None)
texts = dict(title="Tokens of shifted images", x_label="shift, pixels", y_label="error over RMS")
plots.plot_lines("shifts.png", series, **texts)
show("shifts.png", scale=1)

# %% [markdown]
# **The generator, column by column.** We encode the same crops, in batches; error bars are over batches.

# %%
import jax

latents = np.asarray(model.encode(images[:, :, :128]))
batches = [(latents[i : i + 16], labels[i : i + 16]) for i in range(0, 64, 16)]

# %% [markdown]
# The loss of each column. The first column has no context. As soon as the window is full, all columns have the same
# amount of context.

# %%
loss = tasks.column_losses(model.generator, model.generator_params, batches, jax.random.key(0))
columns = np.arange(len(loss.mean))
texts = dict(title="Loss per column", x_label="column", y_label="loss")
plots.plot_lines("losses.png", {"loss": (columns, loss.mean, loss.stderr)}, **texts)
show("losses.png", scale=1)

# %% [markdown]
# **Gradient conflict.** Do two columns ask for the same change of the weights? The cosine between their gradients is 1
# if they do, and 0 if they are unrelated. A finite batch is noisy, so there is a ceiling: the cosine of *one* column
# between two batches.

# %%
conflict, ceiling = tasks.gradient_cosines(model.generator, model.generator_params, batches, jax.random.key(1))
print(f"different columns, one batch:  {tasks.off_diagonal_mean(conflict.mean):.3f}")
print(f"one column, different batches: {np.diag(ceiling.mean).mean():.3f}")

# %% [markdown]
# All pairs; the left panel omits the diagonal, which is 1. The gradients of a trained model are mostly noise and all
# cosines are small, so compare the two panels with each other.

# %%
pairs = np.where(np.eye(len(columns), dtype=bool), np.nan, conflict.mean)
panels = {"one batch": pairs, "two batches": ceiling.mean}
texts = dict(title="Cosine between gradients", x_label="column", y_label="column")
plots.plot_heatmaps("cosines.png", panels, scale_label="cosine (blue: conflict)", diverging=True, **texts)
show("cosines.png", scale=1)

# %% [markdown]
# **Transfer.** If all columns are one task, training on some columns teaches the others. We train two small generators:
# one with the loss of all columns, one with the loss of the left half only.

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
# The second one was never trained on columns 4 to 7. The models are small, the steps few, there is one seed, and the
# images are the training images: this shows how to measure transfer, not how much to expect in general.

# %%
trained = {"all columns trained": whole, "columns 0 to 3 trained": half}
series = {}
for name, params in trained.items():
    found = tasks.column_losses(small, params, batches, jax.random.key(2))
    series[name] = (columns, found.mean, found.stderr)
plots.plot_lines("transfer.png", series, title="Transfer", x_label="column", y_label="loss")
show("transfer.png", scale=1)

# %% [markdown]
# `eqjax analyze comparison` does all of this for several kinds of models, with several seeds each.
