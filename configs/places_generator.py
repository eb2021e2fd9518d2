r"""The published generator of long panoramas: size L on 30 classes of Places at 256 pixels.

    eqjax train-generator --config=places_generator --workdir=runs/places_large \
        --config.data.root=/data/places/train --config.tokenizer_weights=tokenizer.safetensors

The recipe is that of imagenet_generator; data.root holds one folder per class. Sample panoramas of any number of
columns with guidance scale 7.0. The published weights of this model can be converted instead (`eqjax convert`).

This recipe has not been run with this code. A step costs as much as one of size L on ImageNet: `eqjax plan` estimates
64 GB and 38 to 68 ms for 256 images on one H100, in bfloat16, with cached latents (tables of launch/README.md).

Variants (`--config=places_generator:name`, several joined by commas):
  dtype=bfloat16, remat=…      as in imagenet_generator
  tiny                         20 steps of a very small model on built-in photographs, to see that everything runs, on a
                               tiny tokenizer:

    eqjax train-tokenizer --config=imagenet_tokenizer:tiny --workdir=runs/tiny_tokenizer
    eqjax train-generator --config=places_generator:tiny --workdir=runs/tiny \
        --config.tokenizer_weights=runs/tiny_tokenizer
"""

from eqjax import config_files
from eqjax.typing import Config


def get_config(variant: str | None = None) -> Config:
    """Returns the configuration of a variant; the module's docstring lists them."""
    args = config_files.parse_variant(variant, dtype="float32", remat="none", tiny=False)
    items = ",".join(f"{name}={value}" for name, value in args.items())
    config = config_files.load(f"imagenet_generator:size=L,{items}")
    config.sampling.guidance_scale = 7.0
    if not args["tiny"]:
        config.generator.num_classes = 30
        config.sampling.num_columns = 64
    return config
