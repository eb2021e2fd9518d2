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
# # Training at tiny size
#
# This notebook trains both models, the tokenizer and the generator, with the functions that also train at full size.
# The models are so small that everything takes a minute on a CPU; do not expect images. You will see how to configure a
# run, what it writes, and how to resume it. A GPU is used if there is one; none is needed.
#
# The first cell installs eqjax if it is missing.

# %%
import importlib.util

if importlib.util.find_spec("eqjax") is None:
    raise ModuleNotFoundError("eqjax is missing: in your copy of its code, pip install '.[analysis,photos]'")

# %% [markdown]
# With models this small, most of the time goes into compiling. So we turn off the compiler's optimizations (do not do
# that for anything larger), and keep compiled programs for the run that is resumed below.

# %%
import os

import jax

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
jax.config.update("jax_compilation_cache_dir", jax.config.jax_compilation_cache_dir or "programs")

# %% [markdown]
# Configurations are Python files, and some of them come with eqjax. A variant follows after a colon: `tiny` is a few
# steps of a very small model. The command line has the same names, `--config=photos_tokenizer:tiny`.

# %%
import eqjax
from eqjax import config_files

config = config_files.load("photos_tokenizer:tiny")
config.tokenizer

# %% [markdown]
# You can change every field; a run with an unknown field does not start. A notebook reads its data without worker
# processes. AdamW replaces Muon because its step is a smaller program, and a constant learning rate gives the same
# program for any number of steps.

# %%
config.data.num_workers = config.data.num_threads = 0
config.total_steps, config.log_every = 40, 10
config.optimizer.update(name="adamw", learning_rate=2e-3, grad_clip_norm=None, schedule="constant")

# %% [markdown]
# Some libraries read command-line flags, which a notebook does not have. We show only the run's own log lines.

# %%
from absl import flags, logging

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
logging.set_verbosity(logging.INFO)
logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)

# %% [markdown]
# **The tokenizer.** A run is a function of a configuration and a workdir. Most of the time goes into compiling.

# %%
import pathlib
import tempfile

from eqjax.training import generator, tokenizer

runs = pathlib.Path(tempfile.mkdtemp())
state = tokenizer.train_and_evaluate(config, str(runs / "tokenizer"))

# %% [markdown]
# The workdir holds checkpoints, logs for people and for TensorBoard, images, and the EMA weights.

# %%
sorted(path.name for path in (runs / "tokenizer").iterdir())

# %% [markdown]
# `metrics.jsonl` has one line per report. Forty steps of so small a model show how to read a run, not that it learns:
# the loss may rise before it falls.

# %%
import json

from eqjax.evaluation import plots
from eqjax.notebook import show


def curve(run, name):
    lines = [json.loads(line) for line in (runs / run / "metrics.jsonl").read_text().splitlines()]
    steps, values = zip(*[(line["step"], line[name]) for line in lines if name in line], strict=True)
    return steps, values, None


plots.plot_lines("loss.png", {"tokenizer": curve("tokenizer", "loss")}, title="Loss", x_label="step", y_label="loss")
show("loss.png", scale=1)

# %% [markdown]
# Each image above its reconstruction, at the last step. The images are 16 pixels high.

# %%
show(max((runs / "tokenizer" / "images").iterdir()), scale=4)

# %% [markdown]
# **Resume.** The same call with the same workdir resumes from the newest checkpoint, data position included. With more
# steps in the configuration it continues training.

# %%
config.total_steps = 60
state = tokenizer.train_and_evaluate(config, str(runs / "tokenizer"))
int(state.step)

# %% [markdown]
# **The generator** is trained on the tokenizer's latents. It reads the tokenizer's weights from the other workdir.

# %%
config = config_files.load("photos_generator:tiny")
config.tokenizer_weights = str(runs / "tokenizer")
config.data.num_workers = config.data.num_threads = 0
state = generator.train_and_evaluate(config, str(runs / "generator"))

# %% [markdown]
# **The result** is a model like any other. It has learned next to nothing, but it has classes, columns and seeds.

# %%
from eqjax import pixels

model = eqjax.load_pretrained(str(runs / "generator"))
images = model.sample(model.class_names, num_columns=16, num_flow_steps=8, seed=0)
show(pixels.grid(images, columns=2))

# %% [markdown]
# For a model that makes images, use the variant `quick` instead of `tiny`: `eqjax train-tokenizer` and
# `eqjax train-generator` then take about ten minutes on a CPU.
