"""The published models (arXiv 2503.18948): their constants, and all models that can be loaded by name."""

import dataclasses
from typing import Any

# Sizes of the generator, as fields of `eqjax.Generator`; the other fields have their defaults.
# Source: the table of model sizes.
GENERATOR_SIZES: dict[str, dict[str, Any]] = {
    "S": dict(width=512, depth=16, num_heads=8, flow_width=960),
    "B": dict(width=768, depth=24, num_heads=12, flow_width=1024),
    "L": dict(width=1024, depth=32, num_heads=16, flow_width=1280),
    "H": dict(width=1280, depth=40, num_heads=16, flow_width=1536),
}

# Factor by which the published generators' training multiplies the published tokenizer's latents, so that they
# have unit scale. Source: the training command of the original code.
LATENT_SCALE = 0.05493


@dataclasses.dataclass(frozen=True)
class ShippedModel:
    """A model in this package.

    Attributes:
      file: its weights file, relative to the package.
    """

    file: str


@dataclasses.dataclass(frozen=True)
class CheckpointFile:
    """A PyTorch file of a published model.

    Attributes:
      name: path in its repository.
      sha256: its SHA-256, compared before the file is read; None: not known.
    """

    name: str
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """A model that its authors published as PyTorch files on the Hugging Face Hub.

    Attributes:
      repo: the repository, owner/name.
      files: its files: a tokenizer, a generator, or both.
      revision: the commit; None: the newest one.
      generator_fields: fields of the generator that do not follow from shapes.
      class_names: names of its classes, or None.
    """

    repo: str
    files: tuple[CheckpointFile, ...]
    revision: str | None = None
    generator_fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] | None = None


# Models by name. Revision and SHA-256 of the published files are None: they are to be read off the Hub's pages, and
# were not at hand. The names of the 30 classes are not part of what was published.
# Source: the links and the sampling command of the original code.
MODELS: dict[str, ShippedModel | PublishedModel] = {
    "photos": ShippedModel("weights/photos.safetensors"),
    "places-large": PublishedModel(
        "UmiSonoda16/EquivariantModeling",
        (CheckpointFile("tokenizer.ckpt"), CheckpointFile("places_large.ckpt")),
        generator_fields={"num_heads": GENERATOR_SIZES["L"]["num_heads"]},
    ),
}
