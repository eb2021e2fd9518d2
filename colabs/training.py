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
# # Training, at tiny size
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/eqjax/eqjax/blob/main/colabs/training.ipynb)
#
# Both stages, tokenizer and generator, with the functions that also train at full size. The models are so small that
# everything takes a minute on a CPU; do not expect images. What can be seen is how a run is set up, what it leaves
# behind, and how it goes on.
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
# With models this small the compiler takes most of the time. So it is told not to optimize (leave that away for
# anything larger) and to keep what it compiled, for the run that goes on below.

# %%
import os

import jax

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
jax.config.update("jax_compilation_cache_dir", jax.config.jax_compilation_cache_dir or "programs")

# %% [markdown]
# Configurations are Python files under `configs/`, beside the package. Variants follow by name: `tiny` is a few steps
# of a very small model. On the command line the same is `--config=configs/photos_tokenizer.py:tiny`.

# %%
import eqjax

sys.path.append(str(pathlib.Path(eqjax.__file__).parents[1]))  # The clone: configs/ lies beside eqjax/.
from configs import photos_generator, photos_tokenizer

config = photos_tokenizer.get_config("tiny")
config.tokenizer

# %% [markdown]
# Fields are set by name; an unknown one is refused when the run starts. Reading goes on in this process: no worker
# processes in a notebook. AdamW instead of Muon, as its step is a smaller program, and at a constant rate, so that it
# is the same program however many steps there are.

# %%
config.data.num_workers = config.data.num_threads = 0
config.total_steps, config.log_every = 40, 10
config.optimizer.update(name="adamw", learning_rate=2e-3, grad_clip_norm=None, schedule="constant")

# %% [markdown]
# Libraries underneath ask for command-line flags, which a notebook does not have. Of the log, the lines of the run
# itself should appear here.

# %%
from absl import flags, logging

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
logging.set_verbosity(logging.INFO)
logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)

# %% [markdown]
# **The tokenizer.** A run is a function of a configuration and a folder. Most of the time goes into compiling.

# %%
import tempfile

from eqjax.training import generator, tokenizer

runs = pathlib.Path(tempfile.mkdtemp())
state = tokenizer.train_and_evaluate(config, str(runs / "tokenizer"))

# %% [markdown]
# The folder holds checkpoints, logs for people and for TensorBoard, images, and the averaged weights.

# %%
sorted(path.name for path in (runs / "tokenizer").iterdir())

# %% [markdown]
# `metrics.jsonl` has one line per report. The loss falls; forty steps are not many.

# %%
import json

from eqjax.evaluation import plots


def curve(run, name):
    lines = [json.loads(line) for line in (runs / run / "metrics.jsonl").read_text().splitlines()]
    steps, values = zip(*[(line["step"], line[name]) for line in lines if name in line], strict=True)
    return steps, values, None


plots.lines("loss.png", {"tokenizer": curve("tokenizer", "loss")}, title="Loss", x_label="step", y_label="loss")
Image.open("loss.png")

# %% [markdown]
# Each image above its reconstruction, at the last step; the images are 16 pixels high.

# %%
show(Image.open(max((runs / "tokenizer" / "images").iterdir())).convert("RGB"), scale=4)

# %% [markdown]
# **Going on.** The same call on the same folder continues from the newest checkpoint, data position included. More
# steps, and it goes further instead of starting over.

# %%
config.total_steps = 60
state = tokenizer.train_and_evaluate(config, str(runs / "tokenizer"))
int(state.step)

# %% [markdown]
# **The generator** is trained on the tokenizer's latents; it takes the other run's folder for its weights.

# %%
config = photos_generator.get_config("tiny")
config.tokenizer_weights = str(runs / "tokenizer")
config.data.num_workers = config.data.num_threads = 0
state = generator.train_and_evaluate(config, str(runs / "generator"))

# %% [markdown]
# **The result** is a model like any other. It has learnt next to nothing, but it has classes, columns and seeds.

# %%
model = eqjax.load_pretrained(str(runs / "generator"))
images = model.sample(model.class_names, num_columns=16, num_flow_steps=8, seed=0)
show(pixels.grid(images, columns=2))

# %% [markdown]
# For a model that draws something, leave `tiny` away; `make train-demo` does so in minutes, and `configs/` has the
# sizes above.
