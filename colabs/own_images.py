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
# # Your own images
#
# From a photograph of yours to a panorama that continues it, and from a folder of yours to a generator that has learned
# it. Without files of yours, the notebook runs on built-in photographs. A GPU is used if there is one; none is needed.
#
# The first cell installs eqjax if it is missing.

# %%
import importlib.util

if importlib.util.find_spec("eqjax") is None:
    raise ModuleNotFoundError("eqjax is missing: in your copy of its code, pip install '.[analysis,photos]'")

# %% [markdown]
# **Your photograph.** Set `PHOTOGRAPH` to its path. On Colab, `UPLOAD = True` asks for a file instead. Any size and
# orientation will do.

# %%
from PIL import Image

from eqjax.data.photos import load_photo
from eqjax.notebook import animate, show

UPLOAD = False
PHOTOGRAPH = None

if UPLOAD:
    from google.colab import files

    PHOTOGRAPH = next(iter(files.upload()))
if PHOTOGRAPH is None:
    PHOTOGRAPH = "flower.jpg"
    Image.fromarray(load_photo("flower")[40:340, 180:580]).save(PHOTOGRAPH)

# %% [markdown]
# The shipped model knows nine classes and images of 128 pixels in height. `fit_image` resizes a photograph to that
# height, and cuts it to whole columns.

# %%
import eqjax
from eqjax import image_files
from eqjax.sampling.outpainting import fit_image

model = eqjax.load_pretrained("photos")
photograph = fit_image(image_files.read(PHOTOGRAPH), model.tokenizer)
print(model.class_names)
show(photograph, scale=3)

# %% [markdown]
# First a check of how much of your photograph the tokenizer keeps: encoded, and decoded again. It was trained on twelve
# photographs, so it does best on what resembles them.

# %%
show(model.decode(model.encode(photograph[None]))[0], scale=3)

# %% [markdown]
# The generator continues the photograph on both sides, as the class that you name. The files have the format of their
# extension: here a JPEG, and an animated WebP in which a window moves along the image.

# %%
FAST = dict(solver="adams_bashforth", time_grid="cosine", num_flow_steps=16, guidance_scale=2.0)
FAST |= dict(guidance_schedule="constant")

longer = eqjax.outpaint(model, photograph, "flower", left=12, right=12, seed=0, **FAST)
eqjax.save_image("longer.jpg", longer)
print(eqjax.save_animation("longer.webp", longer))
show(longer)

# %% [markdown]
# **Your folder.** It holds a folder per class, with images of any size: `my_images/cat/1.jpg`, `my_images/dog/…`. Set
# `FOLDER` to its path. On Colab, `DRIVE = True` connects your Google Drive, whose files are below
# `/content/drive/MyDrive`. Without a folder of yours, we cut crops out of two built-in photographs.

# %%
import pathlib

import numpy as np

DRIVE = False
FOLDER = None

if DRIVE:
    from google.colab import drive

    drive.mount("/content/drive")
if FOLDER is None:
    FOLDER, rng = pathlib.Path("my_images"), np.random.default_rng(0)
    for name in ("coffee", "flower"):
        image = load_photo(name)
        for number in range(12):
            top, left = rng.integers(0, image.shape[0] - 200), rng.integers(0, image.shape[1] - 400)
            eqjax.save_image(FOLDER / name / f"{number}.jpg", image[top : top + 200, left : left + 400])

# %% [markdown]
# A configuration names the folder. The generator is trained on the latents of the shipped tokenizer. Twenty steps show
# that everything runs; for images, set `STEPS` to 2000, and take a few hundred images per class or more. That takes a
# few minutes on a GPU, and a quarter of an hour or more on a CPU. For images that look unlike the photographs of the
# shipped model, train a tokenizer of your own first, see the notebook on training.

# %%
from eqjax import config_files, data

STEPS = 20

config = config_files.load("photos_generator")
config.data.update(source="folder", root=str(FOLDER), resize=128, height=128, width=128, num_threads=2)
config.update(total_steps=STEPS, batch_size=8, log_every=10, eval_every=STEPS, image_every=STEPS, eval_images=8)
config.checkpoint_every = STEPS
config.optimizer.warmup_steps = STEPS / 10
source = data.make_source(config.data)
config.generator.num_classes = len(source.class_names)
print(len(source), "images of", source.class_names)

# %% [markdown]
# What training sees: random crops, mirrored at random. If these look wrong, so will the samples.

# %%
from eqjax import pixels

with data.make_iterator(config.data, batch_size=8, seed=0) as batches:
    crops = next(batches)["image"]
show(pixels.grid(crops, columns=4))

# %% [markdown]
# The run writes checkpoints, and resumes from them if it is called again. Compiling takes most of the time of a run of
# twenty steps.

# %%
from absl import flags, logging

from eqjax.training import generator

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
logging.set_verbosity(logging.INFO)
logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
state = generator.train_and_evaluate(config, "my_generator")

# %% [markdown]
# The result is a model like the shipped one, with your classes. After twenty steps its columns have colors, and little
# else.

# %%
mine = eqjax.load_pretrained("my_generator")
print(mine.class_names)
show(pixels.grid(mine.sample(mine.class_names, num_columns=16, seed=0, **FAST), columns=1))

# %% [markdown]
# A panorama from your first class to your second, as an animation.

# %%
first, second = mine.class_names[:2]
way = mine.sample([(first, 24), (second, 24)], num_columns=48, transition=8, seed=1, **FAST)[0]
animate([show(way[:, left : left + 384], scale=1) for left in range(0, way.shape[1] - 384, 16)])
