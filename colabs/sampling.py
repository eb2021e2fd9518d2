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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/eqjax/eqjax/blob/main/colabs/sampling.ipynb)
#
# Images from the model that comes with eqjax: classes, seeds, guidance, solvers, and images wider than those it was
# trained on. No GPU is needed.
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
# One object holds tokenizer, generator and weights. It knows eight classes: eight photographs, and nothing else.

# %%
import eqjax

model = eqjax.load_pretrained("photos")
model.class_names

# %% [markdown]
# An image is drawn column by column; a column is 16 pixels wide. Here are eight columns of every class.

# %%
FAST = dict(solver="adams_bashforth", time_grid="cosine", num_flow_steps=16, guidance_schedule="constant")

images = model.sample(model.class_names, num_columns=8, guidance_scale=2.0, seed=0, **FAST)
show(pixels.grid(images, columns=4))

# %% [markdown]
# **Seeds.** With `seeds`, an image depends on its own seed and class alone, so an image that you like can be drawn
# again in any company. Eight seeds of one class:

# %%
images = model.sample(["flower"] * 8, num_columns=8, guidance_scale=2.0, seeds=range(8), **FAST)
show(pixels.grid(images, columns=4))

# %% [markdown]
# The third of them again, in other company: the pixels are the same, up to rounding.

# %%
again = model.sample(["tissue"] * 7 + ["flower"], num_columns=8, guidance_scale=2.0, seeds=[9] * 7 + [2], **FAST)
int(np.abs(np.int32(again[7]) - np.int32(images[2])).max())  # Grey levels of 255.

# %% [markdown]
# **Guidance** pushes every column towards its class, away from what all classes share; 1 is off. One class per row,
# from the same noise, with guidance 1, 2 and 5 from left to right.


# %%
def side_by_side(settings):
    """Images of all classes, one column of them per setting."""
    drawn = [model.sample(model.class_names, num_columns=8, seeds=[3] * 8, **options) for options in settings]
    ordered = np.stack(drawn, axis=1).reshape(-1, *drawn[0].shape[1:])
    return show(pixels.grid(ordered, columns=len(settings)))


side_by_side([dict(guidance_scale=scale, **FAST) for scale in (1.0, 2.0, 5.0)])

# %% [markdown]
# **Solvers.** A column starts as noise and follows a flow; the solver says how that path is walked. From left to right:
# 4 Euler steps, 16 Euler steps, and 16 steps of Adams–Bashforth whose times are dense at both ends.

# %%
EULER = dict(solver="euler", guidance_scale=2.0, guidance_schedule="constant")
side_by_side([EULER | dict(num_flow_steps=4), EULER | dict(num_flow_steps=16), dict(guidance_scale=2.0, **FAST)])

# %% [markdown]
# **Width.** The generator sees only the last few columns, so nothing stops it where its training images ended. Time
# per column stays the same however far it goes.

# %%
wide = model.sample(["flower", "tissue", "brick"], num_columns=48, guidance_scale=2.0, seed=1, **FAST)
show(pixels.grid(wide, columns=1), scale=1)

# %% [markdown]
# **Latents.** Underneath is a pure function from noise to latents, one vector per column, which goes into a `jit` of
# your own. `model.decode` turns latents into pixels.

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
# Decoded:

# %%
show(pixels.grid(model.decode(latents), columns=4))
