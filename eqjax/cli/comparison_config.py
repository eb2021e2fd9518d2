"""The configuration of a comparison: its fields, the checks, and the configurations of the models that it trains."""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from eqjax import config_fields, config_files
from eqjax.config_fields import Field, Table
from eqjax.messages import did_you_mean
from eqjax.module_fields import GENERATOR
from eqjax.rules import Boolean, Instance, Integer, Items, Text
from eqjax.training.config import check_config
from eqjax.typing import Config

# What every tokenizer of a comparison starts from.
BASE = "photos_tokenizer:style=published"

_COUNT = Integer(least=1)
_SECTION = Instance((dict, ml_collections.ConfigDict), "a section of fields")
# A dict keeps its order, which is that of the tables.
_MODELS = Instance(dict, "a dict of models, each with a dict of fields")

COMPARISON: Table = {
    "num_seeds": Field(3, _COUNT, "Number of seeds; every model is trained once with each."),
    "num_columns": Field(8, Integer(least=4), "Width of the images in columns."),
    "num_batches": Field(8, Integer(least=2), "Batches of 32 images behind every measure of a loss or a gradient."),
    "num_train_images": Field(1024, Integer(least=32), "Crops that the generators are trained on."),
    "num_samples": Field(576, Integer(least=32), "Images that are sampled, and real ones that they are compared with."),
    "tokenizer_steps": Field(400, _COUNT, "Training steps of each tokenizer."),
    "generator_steps": Field(400, _COUNT, "Training steps of each generator."),
    "gradients": Field(True, Boolean(), "Compare the gradients of different columns' losses."),
    "training": Field(ml_collections.ConfigDict(), _SECTION, f"Fields of the training of tokenizers, over {BASE}."),
    "tokenizers": Field({}, _MODELS, "Tokenizers by name: fields of their training that differ from the others'."),
    "anchored": Field(
        (),
        Items(Text()),
        "Tokenizers that are measured once more with columns at the image's strongest phase.",
    ),
    "generator": Field(
        ml_collections.ConfigDict(),
        _SECTION,
        "Fields of every generator; the tokenizer gives others.",
    ),
    "generators": Field({}, _MODELS, "Generators by name: fields that differ from the others'."),
}


def comparison_config() -> Config:
    """Returns the complete configuration of a comparison, without models."""
    config = config_fields.make(COMPARISON)
    for name, field in COMPARISON.items():
        if isinstance(field, Field) and field.rule in (_SECTION, _MODELS):
            config[name] = type(field.default)()  # The default itself would be shared by all.
    return config


def check_comparison(config: Config) -> None:
    """Checks a comparison and the configurations of all of its models, before the first is trained.

    Raises:
      ValueError: fields are unknown, missing, out of range or contradictory; the message names all of them.
    """
    config_fields.check(config, COMPARISON, "a comparison's configuration")
    config_fields.refuse(list(_contradictions(config)), "a comparison's configuration")
    for name in config.tokenizers:
        try:
            check_config(training_config(config, name, seed=0), "tokenizer")
        except ValueError as error:
            raise ValueError(f"tokenizers.{name}: {error}") from error


def _contradictions(config: Config) -> Iterator[str]:
    """Yields a sentence about every missing or unknown model, and about every unknown field of a generator."""
    for name in ("tokenizers", "generators"):
        if not config[name]:
            yield f"{name} is empty; a comparison needs at least one of them."
    for name in config.anchored:
        if name not in config.tokenizers:
            yield f"anchored: {name!r} is none of the tokenizers{did_you_mean(name, config.tokenizers)}"
    for name in config.generators:
        for field in generator_fields(config, name):
            if field not in GENERATOR or field in ("latent_dim", "num_classes"):
                yield f"generators.{name} cannot set {field!r}{did_you_mean(field, GENERATOR)}"


def training_config(config: Config, tokenizer: str, seed: int) -> Config:
    """Returns the configuration with which a tokenizer of a comparison is trained.

    Args:
      config: the comparison.
      tokenizer: name of the tokenizer.
      seed: seed of the training.
    """
    made: Any = config_files.load(BASE)
    with made.unlocked():  # `check_config` names fields that it should not have.
        made.update(_plain(config.training))
        made.update(_plain(config.tokenizers[tokenizer]))
    made.data.update(width=column_width(made) * config.num_columns, num_threads=0)
    made.update(seed=seed, total_steps=config.tokenizer_steps, checkpoint_every=config.tokenizer_steps)
    made.update(eval_every=None, image_every=None)
    return made


def column_width(training: Config) -> int:
    """Returns the width in pixels of the columns of the tokenizer that a configuration trains."""
    fields = training.tokenizer
    return fields.patch_size * 2 ** min(len(fields.channel_multipliers) - 1, fields.square_downsamples)


def generator_fields(config: Config, generator: str) -> dict[str, Any]:
    """Returns the fields of a generator of a comparison."""
    return {**_plain(config.generator), **_plain(config.generators[generator])}


def protocol(config: Config, tokenizer: str, anchored: bool, generator: str) -> dict[str, Any]:
    """Returns what determines the measures of one kind of model, as JSON values: other kinds may come and go.

    Args:
      config: the comparison.
      tokenizer: name of the tokenizer.
      anchored: whether its columns are anchored.
      generator: name of the generator.
    """
    sizes = {name: config[name] for name in COMPARISON if isinstance(config[name], int) and name != "num_seeds"}
    training = {"training": _plain(config.training), "tokenizer": _plain(config.tokenizers[tokenizer])}
    return {**sizes, **training, "anchored": anchored, "generator": generator_fields(config, generator)}


def _plain(section: Any) -> dict[str, Any]:
    """Returns a section and those within it as dicts."""
    found = section.to_dict() if isinstance(section, ml_collections.ConfigDict) else section
    return {name: _plain(value) if isinstance(value, Mapping) else value for name, value in found.items()}
