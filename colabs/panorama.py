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
# # Panoramas without end
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/eqjax/eqjax/blob/main/colabs/panorama.ipynb)
#
# The generator sees a few columns back, and no column is special to it, so an image never has to stop. Here are strips
# without end, classes that change on the way, a panorama that is put aside and taken up again, and a photograph that
# goes on.
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
# The model, and settings that trade a little accuracy for speed.

# %%
import itertools

import eqjax

model = eqjax.load_pretrained("photos")
FAST = dict(solver="adams_bashforth", time_grid="cosine", num_flow_steps=16, guidance_scale=2.0)

# %% [markdown]
# `eqjax.panorama` gives strips, one after another, as long as somebody asks. The first eight:

# %%
flowers = eqjax.panorama(model, "flower", seed=0, **FAST)
strips = list(itertools.islice(flowers, 8))
meadow = np.concatenate(strips, axis=1)
meadow.shape

# %% [markdown]
# A long strip is easier to look at in lines, read like a page.


# %%
def page(strip, width=1024):
    lines = [strip[:, left : left + width] for left in range(0, strip.shape[1] - width + 1, width)]
    return show(pixels.grid(np.stack(lines), columns=1), scale=1)


page(meadow)

# %% [markdown]
# It goes on where it was. Memory does not grow: the past is a ring of the last few columns.

# %%
more = np.concatenate(list(itertools.islice(flowers, 8)), axis=1)
print(flowers.emitted, "columns so far")
page(more)

# %% [markdown]
# As an animation, a window that moves over the strip:

# %%
import io

from IPython.display import Image as Animation

frames = [show(meadow[:, left : left + 256]) for left in range(0, meadow.shape[1] - 256, 16)]
file = io.BytesIO()
frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=80, loop=0)
Animation(data=file.getvalue(), format="gif")

# %% [markdown]
# **Classes along the way.** A list says how many columns each class has; the last may have `None`: to the end. The
# class changes from one column to the next here, while the columns that the generator still sees are of the old one.

# %%
WAY = [("flower", 24), ("tissue", 24), ("retina", 16)]
page(model.sample(WAY, num_columns=64, seed=2, guidance_schedule="constant", **FAST)[0])

# %% [markdown]
# With a transition, the first columns of each class see a blend of the old class and the new one. What lies between two
# distant classes is up to the model; it has never seen one.

# %%
page(model.sample(WAY, num_columns=64, seed=2, transition=8, guidance_schedule="constant", **FAST)[0])

# %% [markdown]
# **Put aside.** The state of a panorama is a small file. We draw two strips, save, and draw two more …

# %%
first = eqjax.panorama(model, "coffee", seed=5, **FAST)
list(itertools.islice(first, 2))
first.save("table.npz")
expected = list(itertools.islice(first, 2))

# %% [markdown]
# … and take it up from the file, perhaps tomorrow: the same pixels.

# %%
resumed = list(itertools.islice(eqjax.panorama(model, state="table.npz"), 2))
print(pathlib.Path("table.npz").stat().st_size // 1024, "KB; the same:", np.array_equal(resumed, expected))
show(np.concatenate(resumed, axis=1))

# %% [markdown]
# **A photograph goes on.** A crop of a photograph, encoded, is as good a beginning as any. First the crop:

# %%
from eqjax.data.photos import load_photo
from eqjax.sampling.outpainting import fit_image

photograph = fit_image(load_photo("tissue")[100:300, 100:400], model.tokenizer)
show(photograph)

# %% [markdown]
# Then twelve columns more on both sides. The middle is the photograph itself, so it is sharper than what is drawn.

# %%
options = dict(guidance_schedule="constant", **FAST)
show(eqjax.outpaint(model, photograph, "tissue", left=12, right=12, seed=0, **options))
