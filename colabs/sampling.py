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
# # Sampling
#
# This notebook samples images from the model that comes with eqjax. It covers classes, seeds, classifier-free guidance,
# flow solvers, and images wider than those in training. A GPU is used if there is one; none is needed.
#
# The first cell installs eqjax if it is missing.

# %%
import importlib.util

if importlib.util.find_spec("eqjax") is None:
    raise ModuleNotFoundError("eqjax is missing: in your copy of its code, pip install '.[analysis,photos]'")

# %% [markdown]
# One object holds the tokenizer, the generator and their weights. The model knows nine classes, one photograph each.

# %%
import numpy as np

import eqjax
from eqjax import pixels
from eqjax.notebook import show

model = eqjax.load_pretrained("photos")
model.class_names

# %% [markdown]
# The generator samples an image column by column. A column is 16 pixels wide. Here are eight columns of every class;
# `show` enlarges images for the screen, as the model's are 128 pixels high.

# %%
FAST = dict(solver="adams_bashforth", time_grid="cosine", num_flow_steps=16, guidance_schedule="constant")

images = model.sample(model.class_names, num_columns=8, guidance_scale=2.0, seed=0, **FAST)
show(pixels.grid(images, columns=4))

# %% [markdown]
# **Seeds.** With `seeds`, an image depends only on its own seed and class, whatever else is in the batch. So you can
# sample an image that you like again. Eight seeds of one class:

# %%
images = model.sample(["flower"] * 8, num_columns=8, guidance_scale=2.0, seeds=range(8), **FAST)
show(pixels.grid(images, columns=4))

# %% [markdown]
# The third of them again, in another batch. The pixels are the same, up to rounding.

# %%
again = model.sample(["tissue"] * 7 + ["flower"], num_columns=8, guidance_scale=2.0, seeds=[9] * 7 + [2], **FAST)
int(np.abs(np.int32(again[7]) - np.int32(images[2])).max())  # Gray levels, of 255.

# %% [markdown]
# **Classifier-free guidance** pushes every column toward its class, and away from the prediction without a class. A
# scale of 1 disables it. Each row is one class, from the same noise, with scales 1, 2 and 5 from left to right.


# %%
def compare(*variants):
    """Shows images of all classes, one column of images per variant of the sampling options."""
    samples = [
        model.sample(model.class_names, num_columns=8, seeds=[3] * len(model.class_names), **options)
        for options in variants
    ]
    ordered = np.stack(samples, axis=1).reshape(-1, *samples[0].shape[1:])
    return show(pixels.grid(ordered, columns=len(variants)))


compare(*[dict(guidance_scale=scale, **FAST) for scale in (1.0, 2.0, 5.0)])

# %% [markdown]
# **Solvers.** A column starts as noise and follows a flow to a latent; the solver integrates that flow. From left to
# right: 4 Euler steps, 16 Euler steps, and 16 Adams–Bashforth steps on a time grid that is dense at both ends.

# %%
EULER = dict(solver="euler", guidance_scale=2.0, guidance_schedule="constant")
compare(EULER | dict(num_flow_steps=4), EULER | dict(num_flow_steps=16), dict(guidance_scale=2.0, **FAST))

# %% [markdown]
# **Width.** The generator attends to the last few columns only, so it can continue past the width of its training
# images. The time per column is constant.

# %%
wide = model.sample(["flower", "tissue", "brick"], num_columns=48, guidance_scale=2.0, seed=1, **FAST)
show(pixels.grid(wide, columns=1), scale=1)

# %% [markdown]
# **Latents.** `model.sample` calls a pure function that you can put into your own `jit`. It returns latents, one vector
# per column; `model.decode` turns them into pixels.

# %%
import jax

latents = eqjax.sample_latents(
    model.generator,
    model.generator_params,
    model.labels(model.class_names),
    num_columns=8,
    guidance_scale=2.0,
    key=jax.random.key(0),
    **FAST,
)
latents.shape  # Images, columns, channels.

# %% [markdown]
# The decoded images:

# %%
show(pixels.grid(model.decode(latents), columns=4))
