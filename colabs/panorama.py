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
# # Endless panoramas
#
# The generator attends to a few columns back, and no column is special to it, so an image never has to end. This
# notebook samples endless strips, changes the class on the way, saves a panorama and resumes it, and outpaints a
# photograph. A GPU is used if there is one; none is needed.
#
# The first cell installs eqjax if it is missing.

# %%
import importlib.util

if importlib.util.find_spec("eqjax") is None:
    raise ModuleNotFoundError("eqjax is missing: in your copy of its code, pip install '.[analysis,photos]'")

# %% [markdown]
# The model, and sampling options that trade a little accuracy for speed.

# %%
import itertools

import numpy as np

import eqjax
from eqjax import pixels
from eqjax.notebook import animate, show

model = eqjax.load_pretrained("photos")
FAST = dict(solver="adams_bashforth", time_grid="cosine", num_flow_steps=16, guidance_scale=2.0)
FAST |= dict(guidance_schedule="constant")

# %% [markdown]
# `eqjax.panorama` is an endless iterator of strips. The first eight, joined:

# %%
flowers = eqjax.panorama(model, "flower", seed=0, **FAST)
meadow = np.concatenate(list(itertools.islice(flowers, 8)), axis=1)
meadow.shape

# %% [markdown]
# A long strip is easier to look at as a page, in lines from top to bottom.


# %%
def page(strip, width=1024):
    lines = [strip[:, left : left + width] for left in range(0, strip.shape[1] - width + 1, width)]
    return show(pixels.grid(np.stack(lines), columns=1), scale=1)


page(meadow)

# %% [markdown]
# The iterator continues where it stopped. Memory does not grow: the KV cache holds the last few columns only.

# %%
more = np.concatenate(list(itertools.islice(flowers, 8)), axis=1)
print(flowers.emitted, "columns so far")
page(more)

# %% [markdown]
# As an animation, a window that moves along the strip:

# %%
animate([show(meadow[:, left : left + 256]) for left in range(0, meadow.shape[1] - 256, 16)])

# %% [markdown]
# **A list of classes** gives the number of columns of each class; the last one may have `None`, which means to the end.
# Here the class changes from one column to the next, while the generator still sees columns of the old class.

# %%
CLASSES = [("flower", 24), ("tissue", 24), ("brick", 16)]
page(model.sample(CLASSES, num_columns=64, seed=2, **FAST)[0])

# %% [markdown]
# With a transition, the first columns of each class are conditioned on a blend of the old class and the new one. The
# model has never seen such a blend, so its samples may look like neither class.

# %%
page(model.sample(CLASSES, num_columns=64, seed=2, transition=8, **FAST)[0])

# %% [markdown]
# **Save and resume.** The state of a panorama is a small file. We take two strips, save, and take two more …

# %%
first = eqjax.panorama(model, "coffee", seed=5, **FAST)
list(itertools.islice(first, 2))
first.save("coffee.npz")
expected = list(itertools.islice(first, 2))

# %% [markdown]
# … and resume from the file, perhaps tomorrow. The pixels are the same.

# %%
import pathlib

resumed = list(itertools.islice(eqjax.panorama(model, state="coffee.npz"), 2))
print(pathlib.Path("coffee.npz").stat().st_size // 1024, "KB; the same:", np.array_equal(resumed, expected))
show(np.concatenate(resumed, axis=1))

# %% [markdown]
# **Outpainting.** A panorama can also continue an encoded photograph. First a crop:

# %%
from eqjax.data.photos import load_photo
from eqjax.sampling.outpainting import fit_image

photograph = fit_image(load_photo("tissue")[100:300, 100:400], model.tokenizer)
show(photograph)

# %% [markdown]
# Then twelve more columns on both sides. The middle is the photograph itself, so it is sharper than the new columns.

# %%
show(eqjax.outpaint(model, photograph, "tissue", left=12, right=12, seed=0, **FAST))
