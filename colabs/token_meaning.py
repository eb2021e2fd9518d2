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
# The tokenizer turns an image into a row of tokens, one vector per column of 16 pixels. This notebook asks what one
# token determines, and where. It replaces random tokens by those of a photograph, one by one, and then measures which
# pixels a token changes. A GPU is used if there is one; none is needed.
#
# The first cell installs eqjax if it is missing.

# %%
import importlib.util

if importlib.util.find_spec("eqjax") is None:
    raise ModuleNotFoundError("eqjax is missing: in your copy of its code, pip install '.[analysis,photos]'")

# %% [markdown]
# The model, and crops of four photographs. The tokenizer was trained on these photographs: this notebook is about where
# tokens act, not about how well they represent images that the tokenizer has never seen.

# %%
import numpy as np

import eqjax
from eqjax import pixels
from eqjax.data.photos import load_photo
from eqjax.notebook import animate, show
from eqjax.sampling.outpainting import fit_image

model = eqjax.load_pretrained("photos")


def crop(name, top, width):
    return fit_image(load_photo(name)[top : top + width // 3, :width], model.tokenizer)


crops = [crop("coffee", 90, 480), crop("flower", 120, 510), crop("cat", 60, 360), crop("rocket", 200, 510)]
photographs = np.stack(crops)
show(pixels.grid(photographs, columns=2))

# %% [markdown]
# **Encode and decode.** An image becomes twelve tokens. Decoding them restores it, except for the finest detail.

# %%
tokens = model.encode(photographs)
print("images, tokens, channels:", tokens.shape)
show(pixels.grid(model.decode(tokens), columns=2))

# %% [markdown]
# **Random tokens.** Tokens are scaled to about unit variance, so standard normal noise has their scale but no content.
# The generator's flow starts from such noise at every column.

# %%
noise = np.random.default_rng(0).standard_normal(tokens.shape).astype(np.float32)
show(pixels.grid(model.decode(noise), columns=2))

# %% [markdown]
# **From left to right,** replace the random tokens by those of the photographs. Frame k has k true tokens.

# %%
count = tokens.shape[1]
frames = []
for k in range(count + 1):
    mixed = np.where(np.arange(count)[:, None] < k, tokens, noise)
    frames.append(show(pixels.grid(model.decode(mixed), columns=2)))

# %% [markdown]
# As an animation: a true token shows its own strip of the image at once. Afterwards only the seam to the next strip
# still changes. So a token is not a layer of detail over the whole image; it is a place.

# %%
animate(frames, milliseconds=[800, *[350] * (count - 1), 2000])

# %% [markdown]
# **In any order.** One photograph, with 2, 5 and 8 true tokens at random places, and with all of them. A token shows
# the same content whatever its neighbors are.

# %%
order = np.random.default_rng(1).permutation(count)
rows = [np.where(np.isin(np.arange(count), order[:k])[:, None], tokens, noise)[1] for k in (2, 5, 8, count)]
show(pixels.grid(model.decode(np.stack(rows)), columns=2))

# %% [markdown]
# **Exchange.** The middle third of each image gets the tokens of the next image. The strips keep their content, and the
# decoder joins them.

# %%
exchanged = np.array(tokens)
third = slice(count // 3, 2 * count // 3)
exchanged[:, third] = np.roll(exchanged[:, third], 1, axis=0)
show(pixels.grid(model.decode(exchanged), columns=2))

# %% [markdown]
# **Footprints.** Exchange a single token, decode, and see which pixels change. The map is for one token in the middle.
# It shows the fraction of the change at each pixel, as a power of ten.

# %%
from eqjax.equivariance import decoder_footprints, footprint_fractions, model_codec
from eqjax.evaluation import plots

maps = decoder_footprints(model_codec(model), pixels.from_uint8(photographs))  # Tokens, height, width.
panel = {f"token {count // 2}": np.log10(maps[count // 2] + 1e-9)}
texts = dict(scale_label="fraction of the change, log10", x_step=model.tokenizer.column_width, x_label="pixel")
plots.plot_heatmaps("footprint.png", panel, title="Footprint", y_label="pixel", **texts)
show("footprint.png", scale=1)

# %% [markdown]
# All tokens at once, summed over the height. Most of the change is on the diagonal (the colors are powers of ten). Away
# from the borders, every row looks like the one above it, shifted by a column. That is what makes all columns one task
# for the generator.

# %%
panel = {"all tokens": np.log10(maps.sum(1) + 1e-9)}
plots.plot_heatmaps("footprints.png", panel, title="Footprints", y_label="token", **texts)
show("footprints.png", scale=1)

# %% [markdown]
# The fraction of a token's effect within its own 16 pixels, and with one or two neighbors on either side:

# %%
footprint_fractions(maps, model.tokenizer.column_width)
