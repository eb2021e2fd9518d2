r"""The published generator of long panoramas: size L on 30 classes of Places at 256 pixels.

    python -m eqjax.cli.train_generator --config=configs/places_generator.py --workdir=runs/places_large \
        --config.data.root=/data/places/train --config.tokenizer_weights=tokenizer.safetensors

The recipe of configs/imagenet_generator.py; data.root holds one folder per class. Sample panoramas of any
number of columns with guidance 7.0. The published weights of this model can be converted instead
(eqjax.cli.convert).

This recipe has not been run with this code. A step is that of size L on ImageNet, as the classes are
a table of vectors: 256 images on one H100 take 64 GB in bfloat16, and 38 to 68 ms by its program (the tables
of launch/README.md, latents read from a cache).

Variants (`--config=configs/places_generator.py:name`, several joined by commas):
  precision=bfloat16, remat=…   as in configs/imagenet_generator.py
  tiny                          a few steps of a very small model on built-in photographs: whether everything runs,
                                on a tiny tokenizer:

    python -m eqjax.cli.train_tokenizer --config=configs/tokenizer_imagenet256.py:tiny --workdir=runs/tiny_tokenizer
    python -m eqjax.cli.train_generator --config=configs/places_generator.py:tiny --workdir=runs/tiny \
        --config.tokenizer_weights=runs/tiny_tokenizer
"""

from configs import common, imagenet_generator


def get_config(variant=None):
    """The configuration; see the text above for variants."""
    args = common.parse_variant(variant, tiny=False, precision="float32", remat="none")
    config = imagenet_generator.get_config(f"size=L,precision={args['precision']},remat={args['remat']}")
    config.generator.num_classes = 30
    config.sampling.update(guidance_scale=7.0, num_columns=64)
    if args["tiny"]:
        common.shrink_generator(config)
    return config
