r"""The generator of the demo: nine classes of built-in photographs, 128 pixels high.

    eqjax cache-latents --config=photos_generator --output=caches/photos --num_crops=16
    eqjax cache-latents --config=photos_generator --output=caches/photos_eval --split=eval
    eqjax train-generator --config=photos_generator --workdir=runs/photos_generator \
        --config.data.source=latents --config.data.root=caches/photos --config.data.eval_root=caches/photos_eval

The default of --config.tokenizer_weights is the shipped tokenizer; give your own to all three. Without a cache
(no --config.data fields) every step encodes new crops, which takes longer. Figures and times, and the limits of its
samples, are in eqjax/weights/photos.md.

Variants (`--config=photos_generator:name`):
  quick  for `make train-demo`: on the tokenizer of that name, 4 to 6 minutes on 2 CPU cores
  tiny   20 steps of a very small model, to see that everything runs, on a tiny tokenizer:

    eqjax train-tokenizer --config=photos_tokenizer:tiny --workdir=runs/tiny_tokenizer
    eqjax train-generator --config=photos_generator:tiny --workdir=runs/tiny \
        --config.tokenizer_weights=runs/tiny_tokenizer
"""

from eqjax.config_files import parse_variant
from eqjax.data.photos import DEMO_CLASSES
from eqjax.training.config import generator_config
from eqjax.typing import Config


def get_config(variant: str | None = None) -> Config:
    """Returns the configuration of a variant; the module's docstring lists them."""
    args = parse_variant(variant, quick=False, tiny=False)
    config = generator_config()
    config.tokenizer_weights = "photos"
    config.generator.update(
        width=256,
        depth=4,
        num_heads=8,
        latent_dim=128,
        num_classes=len(DEMO_CLASSES),
        num_cond_tokens=4,
        window_size=6,
        max_rope_shift=16,
        flow_width=320,
        flow_depth=4,
        dropout_rate=0.05,
        # Shapes fall apart along a strip without it.
        context_noise=0.5,
    )
    # Crops of 8 columns, up to the largest in an image.
    config.data.update(source="photos", photo_classes=DEMO_CLASSES, height=128, width=128)
    config.data.update(min_scale=0.5, max_scale=1.0, holdout_fraction=0.25)
    config.update(batch_size=32, total_steps=7_000)
    config.update(log_every=100, eval_every=1000, image_every=2000, checkpoint_every=1000)
    config.optimizer.update(
        learning_rate=1e-3,
        schedule="cosine",
        final_lr_ratio=0.02,
        warmup_steps=100.0,
        ema_decay=0.999,
        grad_clip_norm=1.0,
    )
    if args["quick"]:
        config.generator.update(width=192, depth=3, num_heads=6, latent_dim=96, flow_width=224, flow_depth=3)
        config.data.update(height=64, width=128)
        config.update(total_steps=2_000, eval_every=500, image_every=1000, checkpoint_every=500)
        config.optimizer.update(warmup_steps=50.0, ema_decay=0.99)
    if args["tiny"]:
        config.tokenizer_weights = None  # The shipped tokenizer does not fit: it is larger.
        config.generator.update(
            width=16, depth=2, num_heads=2, latent_dim=8, num_cond_tokens=2, window_size=3, flow_width=16, flow_depth=1
        )
        config.generator.context_noise = 0.0
        config.data.update(height=16, width=16)
        config.update(batch_size=8, total_steps=20, eval_images=16)
        config.update(log_every=5, eval_every=20, image_every=20, checkpoint_every=10)
        config.sampling.update(num_columns=4, num_flow_steps=4)
        config.optimizer.warmup_steps = 5.0
    return config
