r"""The published generators on ImageNet at 256 pixels: sizes S, B, L (default) and H.

    python -m eqjax.cli.train_generator --config=configs/imagenet_generator.py:size=L --workdir=runs/imagenet_large \
        --config.data.root=/data/imagenet/train --config.tokenizer_weights=tokenizer.safetensors

The published recipe: AdamW at 1e-4 per 256 images of the batch, 100 epochs of warm-up, 1200 epochs,
clipping at 3.0, averages with 0.9999. Parameters: S 127.3 M, B 295.6 M, L 644.5 M, H 1203.2 M. What a
step takes in memory and time on which chips: `python -m eqjax.cli.plan`, and the tables of launch/README.md.
This recipe has not been run with this code, so the paper's figures are not reproduced; evaluate
yours before you rely on it.

Variants (`--config=configs/imagenet_generator.py:name`, several joined by commas):
  size=S|B|L|H         the model
  precision=bfloat16   products in bfloat16, everything else float32; default float32, as its authors advise
  remat=…              none, full, dots or projections: what the backward pass computes anew
  tiny                 a few steps of a very small model on built-in photographs: whether everything runs, on
                       a tiny tokenizer:

    python -m eqjax.cli.train_tokenizer --config=configs/tokenizer_imagenet256.py:tiny --workdir=runs/tiny_tokenizer
    python -m eqjax.cli.train_generator --config=configs/imagenet_generator.py:tiny --workdir=runs/tiny \
        --config.tokenizer_weights=runs/tiny_tokenizer
"""

from configs import common
from eqjax.published import GENERATOR_SIZES
from eqjax.training.config import generator_config


def get_config(variant=None):
    """The configuration; see the text above for variants."""
    args = common.parse_variant(variant, tiny=False, size="L", precision="float32", remat="none")
    for name, choices in (("size", tuple(GENERATOR_SIZES)), ("precision", ("float32", "bfloat16"))):
        if args[name] not in choices:
            raise ValueError(f"{name}={args[name]!r} is not one of {choices}.")
    config = generator_config()
    config.generator.update(
        GENERATOR_SIZES[args["size"]], num_classes=1000, dtype=args["precision"], remat=args["remat"]
    )
    config.data.update(source="folder", height=256, width=256, resize=256, num_workers=8)
    published_recipe(config)
    if args["tiny"]:
        common.shrink_generator(config)
    return config


def published_recipe(config):
    """Batch, length, optimizer and how often to save, as published where the publication says."""
    config.update(batch_size=2048, total_epochs=1200.0, eval_images=10_000)
    config.update(log_every=100, eval_every=5000, image_every=5000, checkpoint_every=1000)
    config.update(keep_every=50_000, keep_best="eval_loss:min")
    config.optimizer.update(
        learning_rate=1e-4,
        lr_reference_batch_size=256,
        warmup_epochs=100.0,
        schedule="constant",
        b1=0.9,
        b2=0.95,
        weight_decay=0.02,
        grad_clip_norm=3.0,
        ema_decay=0.9999,
    )
