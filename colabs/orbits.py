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
# # Following an image along its orbit
#
# Shift an image, flip it, stretch it: do its tokens do the same? This notebook measures it for the model that comes
# with eqjax, and it works in the same way for any pair of functions that encodes and decodes images as columns. A GPU
# is used if there is one; none is needed.
#
# The first cell installs eqjax if it is missing.

# %%
import importlib.util

if importlib.util.find_spec("eqjax") is None:
    raise ModuleNotFoundError("eqjax is missing: in your copy of its code, pip install '.[analysis,photos]'")

# %% [markdown]
# The model, and random crops of its photographs. A *codec* is the pair of functions, with the width of its columns.

# %%
import jax
import numpy as np

import eqjax
from eqjax import data, equivariance, pixels
from eqjax.notebook import show

model = eqjax.load_pretrained("photos")
codec = equivariance.model_codec(model)
config = data.default_config()
config.update(height=128, width=128, min_scale=0.5, num_threads=0)
config.classes = model.class_names
with data.make_iterator(config, batch_size=64, seed=0, process_index=0, process_count=1) as batches:
    crops = next(batches)
images, classes = np.asarray(pixels.from_uint8(crops["image"])), crops["label"]
print(codec.geometry)
show(pixels.grid(crops["image"][:6], columns=2))

# %% [markdown]
# **One element, two actions.** A transform acts on the image and on the tokens. Here the image is shifted by one column
# and flipped, and so are its tokens: decoding the moved tokens gives the moved image.

# %%
two = images[[list(classes).index(label) for label in np.asarray(model.labels(["cat", "coffee"]))]]
element = equivariance.make_action(shift=16, flip=True)
moved, valid = equivariance.act_image(codec.geometry, element, two)
tokens, _ = equivariance.act_columns(codec.geometry, element, codec.encode(two))
pairs = np.concatenate([moved, codec.decode(tokens)])
print("columns of pixels without content of their own:", int((~valid).sum()))
show(pixels.grid(pixels.to_uint8(pairs), columns=2))

# %% [markdown]
# Above the moved images, below the decoded tokens. The columns are at their new places, but within a column each token
# draws what it drew before: nothing has taught it to mirror that. Let us put numbers on both.
#
# **Orbits.** For every shift from −32 to 32 pixels we compare the tokens of the moved image with the moved tokens. The
# error is relative, √2 if nothing agrees. PSNR is always in the result: tokens that ignore the image never move.

# %%
few, names = images[:12], [model.class_names[label] for label in classes[:12]]
orbit = equivariance.measure_orbit(codec, few, equivariance.shifts(32, step=4))
print(orbit.summary())

# %% [markdown]
# The mean curve. At whole columns, 16 and 32 pixels, tokens follow; between them they do not.

# %%
from eqjax.equivariance.orbit_plots import plot_orbit

plot_orbit(".", "shift", orbit, names)
show("shift_mean.png", scale=1)

# %% [markdown]
# Every image has a curve of its own: fine texture suffers most from half a column.

# %%
show("shift_images.png", scale=1)

# %% [markdown]
# Each curve as a point, by the two directions in which curves differ most.

# %%
show("shift_scatter.png", scale=1)

# %% [markdown]
# **Other groups.** Flips, and smooth warps, which stretch one place and squeeze another. Neither was asked of this
# tokenizer in training, and it shows. "consensus" needs no reference: it is the distance from the orbit's own mean.

# %%
groups = {"flip": equivariance.flips(), "warp": equivariance.warps(width=128)}
for name, group in groups.items():
    found = equivariance.measure_orbit(codec, few, group).summary()
    print(name, {key: round(value, 2) for key, value in found._asdict().items()})

# %% [markdown]
# **A real shift.** The two cameras of a stereo pair see the same surface at different places, and for this pair the
# true distance is known everywhere. Tokens of windows that are moved by it agree; those at the same place do not.

# %%
pair = equivariance.load_stereo_pair(2)
report = equivariance.stereo_report(codec, pair)
print(f"moved {report.aligned.mean():.2f}, at the same place {report.unaligned.mean():.2f}, PSNR {report.psnr:.1f} dB")
show(pixels.grid(np.stack([pair.left, pair.right]), columns=2), scale=1)

# %% [markdown]
# **The generator.** Move all columns k places along a panorama. A generator that is equivariant to that returns the
# same contexts. The published one does not quite, because its cross-attention knows absolute positions;
# `Generator(cross_rope=False)` does, to rounding.

# %%
latents = np.asarray(codec.encode(few))
arguments = model.generator, model.generator_params, latents, classes[:12], [1, 4, 16, 64, 256]
shifted = equivariance.index_shift_errors(*arguments, key=jax.random.key(0))
for k, error in zip(shifted.shifts, shifted.context.mean(axis=1), strict=True):
    print(f"index + {k:3}: contexts move by {error:.1%}")

# %% [markdown]
# `eqjax analyze equivariance` does all of this for a model and images of yours, with footprints and scalings too, and
# writes figures and a table.
