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
# # What a token means
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/eqjax/eqjax/blob/main/colabs/token_meaning.ipynb)
#
# An image is a row of tokens, one vector per column of 16 pixels. What does one of them say, and where? We replace
# random tokens by a photograph's, one by one, and then measure which pixels a token governs.
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
# The model, and parts of four photographs that its tokenizer was trained on: this is about where tokens act, not about
# how well it renders images that it has never seen.

# %%
import eqjax
from eqjax.data.photos import load_photo
from eqjax.sampling.outpainting import fit_image

model = eqjax.load_pretrained("photos")


def part(name, top, width):
    return fit_image(load_photo(name)[top : top + width // 3, :width], model.tokenizer)


parts = [part("coffee", 90, 480), part("flower", 120, 510), part("cat", 60, 360), part("rocket", 200, 510)]
photographs = np.stack(parts)
show(pixels.grid(photographs, columns=2))

# %% [markdown]
# **Encode and decode.** Twelve tokens per image; decoding them gives the image back, but for its finest detail.

# %%
tokens = model.encode(photographs)
print("images, tokens, channels:", tokens.shape)
show(pixels.grid(model.decode(tokens), columns=2))

# %% [markdown]
# **Random tokens.** Scaled tokens have about unit size, so noise of unit size is what nothing looks like. This is where
# the generator's flow begins at every column.

# %%
noise = np.random.default_rng(0).standard_normal(tokens.shape).astype(np.float32)
show(pixels.grid(model.decode(noise), columns=2))

# %% [markdown]
# **From the left, one by one,** the random tokens give way to the photograph's. Frame k has k true tokens.

# %%
count = tokens.shape[1]
frames = []
for k in range(count + 1):
    mixed = np.where(np.arange(count)[:, None] < k, tokens, noise)
    frames.append(show(pixels.grid(model.decode(mixed), columns=2)))

# %% [markdown]
# As an animation: a true token shows its own strip of the image at once, and only the seam to the next strip still
# changes afterwards. A token is not a layer of detail over the whole image; it is a place.

# %%
import io

from IPython.display import Image as Animation

file = io.BytesIO()
durations = [800, *[350] * (count - 1), 2000]
frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
Animation(data=file.getvalue(), format="gif")

# %% [markdown]
# **In any order.** One photograph, with 2, 5 and 8 true tokens at random places, and with all of them. A token needs no
# neighbors to say what it says.

# %%
order = np.random.default_rng(1).permutation(count)
rows = [np.where(np.isin(np.arange(count), order[:k])[:, None], tokens, noise)[1] for k in (2, 5, 8, count)]
show(pixels.grid(model.decode(np.stack(rows)), columns=2))

# %% [markdown]
# **Exchange.** The middle third of each image gets the tokens of the next image. The strips keep their content and
# are joined by the decoder.

# %%
exchanged = np.array(tokens)
third = slice(count // 3, 2 * count // 3)
exchanged[:, third] = np.roll(exchanged[:, third], 1, axis=0)
show(pixels.grid(model.decode(exchanged), columns=2))

# %% [markdown]
# **Footprints.** Exchange a single token, decode, and see which pixels change. The map shows, for one token in the
# middle, the share of the change at each pixel, as a power of ten.

# %%
from eqjax.evaluation import equivariance, plots

maps = equivariance.footprints(model, photographs)  # Tokens, height, width.
texts = dict(x_label="pixel", y_label="pixel")
plots.plot_heatmaps("footprint.png", {f"token {count // 2}": np.log10(maps[count // 2] + 1e-9)}, title="Footprint", **texts)
Image.open("footprint.png")

# %% [markdown]
# All tokens at once, summed over the height. Most of the change lies on the diagonal (the colors are powers of ten),
# and away from the borders one row is much like another, moved by a column: that is what makes the columns one task for
# the generator.

# %%
texts = dict(x_label="pixel", y_label="token")
plots.plot_heatmaps("footprints.png", {"fraction, log10": np.log10(maps.sum(1) + 1e-9)}, title="Footprints", **texts)
Image.open("footprints.png")

# %% [markdown]
# How much of a token's effect lies within its own 16 pixels, and with one or two neighbors on either side?

# %%
equivariance.footprint_fractions(maps, model.tokenizer.column_width)
