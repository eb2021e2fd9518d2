r"""The published generators on ImageNet at 256 pixels: sizes S, B, L (default) and H.

    eqjax train-generator --config=imagenet_generator:size=L --workdir=runs/imagenet_large \
        --config.data.root=/data/imagenet/train --config.tokenizer_weights=tokenizer.safetensors

The published recipe: AdamW at 1e-4 per 256 images of the batch, 100 epochs of warm-up, 1200 epochs, gradient clipping
at 3.0, EMA decay 0.9999. Parameters: S 127.3 M, B 295.6 M, L 644.5 M, H 1203.2 M. For the memory and time of a step,
see `eqjax plan` and the tables of launch/README.md. This recipe has not been run with this code, so the paper's
results are not reproduced; evaluate your model before you rely on it.

Variants (`--config=imagenet_generator:name`, several joined by commas):
  size=S|B|L|H        the model
  dtype=bfloat16      matrix products in bfloat16, all else in float32; default: float32, as the authors advise
  remat=…             rematerialization in the backward pass: none, full, dots or projections
  tiny                20 steps of a very small model on built-in photographs, to see that everything runs, on a tiny
                      tokenizer:

    eqjax train-tokenizer --config=imagenet_tokenizer:tiny --workdir=runs/tiny_tokenizer
    eqjax train-generator --config=imagenet_generator:tiny --workdir=runs/tiny \
        --config.tokenizer_weights=runs/tiny_tokenizer
"""

from eqjax.config_files import parse_variant
from eqjax.data.photos import DEMO_CLASSES
from eqjax.published import GENERATOR_SIZES
from eqjax.training.config import generator_config
from eqjax.typing import Config


def get_config(variant: str | None = None) -> Config:
    """Returns the configuration of a variant; the module's docstring lists them."""
    args = parse_variant(
        variant,
        size=("L", *sorted(GENERATOR_SIZES.keys() - {"L"})),
        dtype=("float32", "bfloat16"),
        remat="none",
        tiny=False,
    )
    config = generator_config()
    config.generator.update(GENERATOR_SIZES[args["size"]], num_classes=1000, dtype=args["dtype"], remat=args["remat"])
    config.data.update(source="folder", height=256, width=256, resize=256)
    _set_recipe(config)
    if args["tiny"]:
        _shrink(config)
    return config


def _set_recipe(config: Config) -> None:
    """Sets batch size, length, optimizer and intervals, as published where the paper states them."""
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
        ema_warmup=False,
    )


def _shrink(config: Config) -> None:
    """Sets the fields of the tiny variant, whose sizes fit those of imagenet_tokenizer:tiny."""
    config.generator.update(
        width=16,
        depth=2,
        num_heads=2,
        latent_dim=16,
        num_classes=len(DEMO_CLASSES),
        num_cond_tokens=2,
        window_size=3,
        flow_width=16,
        flow_depth=1,
    )
    config.data.update(source="photos", photo_classes=DEMO_CLASSES, height=32, width=32, resize=32)
    config.update(batch_size=8, total_steps=20, total_epochs=None, eval_images=16)
    config.update(log_every=5, eval_every=20, image_every=20, checkpoint_every=10, keep_every=None)
    config.sampling.update(num_columns=4, num_flow_steps=4)
    config.optimizer.update(lr_reference_batch_size=None, warmup_epochs=None, warmup_steps=5.0, ema_warmup=True)
