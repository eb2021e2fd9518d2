r"""The demo tokenizer: built-in photographs, 64 pixels high, strictly equivariant.

    python -m launch.train_tokenizer --config=configs/photos_tokenizer.py --workdir=runs/photos_tokenizer

Variants (`--config=configs/photos_tokenizer.py:name`):
  tiny             a few steps of a very small model: whether everything runs
  quick            the part of `make train-demo`: about 5 minutes on 2 CPU cores
  style=published  GroupNorm over the picture and global attention, as in the paper, for comparison
"""

from configs.common import parse_variant
from eqjax.training import tokenizer


def get_config(variant=None):
    """The configuration; see the text above for variants."""
    args = parse_variant(variant, tiny=False, quick=False, style="strict")
    if args["style"] not in ("strict", "published"):
        raise ValueError(f"style={args['style']!r} is neither 'strict' nor 'published'.")
    config = tokenizer.default_config()
    # Thin at full resolution, where a CPU spends its time.
    config.tokenizer.update(
        channels=8,
        channel_multipliers=(1, 2, 6, 8, 8),
        num_res_blocks=1,
        attention_resolutions=(),
        resolution=64,
        z_channels=24,
        embed_dim=96,
        # Latents start small; noise of the published strength would drown them for thousands of steps.
        posterior_std=0.05,
    )
    if args["style"] == "strict":
        config.tokenizer.update(norm="pixel", attention_window=1)
    config.kl_weight = 0.03
    config.data.update(source="photos", height=64, width=64, min_scale=0.25, max_scale=1.0)
    config.batch_size, config.total_steps = 8, 2200
    config.log_every, config.eval_every, config.picture_every, config.checkpoint_every = 50, 400, 400, 400
    config.optimizer.update(
        learning_rate=4e-4, schedule="cosine", end_factor=0.02, warmup_steps=100.0, b1=0.9, b2=0.99, clip_norm=3000.0
    )
    config.optimizer.ema_decay = 0.995
    if args["quick"]:
        config.total_steps = 450
        config.eval_every = config.picture_every = config.checkpoint_every = 150
        config.optimizer.warmup_steps = 50.0
    if args["tiny"]:
        config.tokenizer.update(channels=4, channel_multipliers=(1, 2, 2), resolution=16, z_channels=4, embed_dim=8)
        config.tokenizer.square_downsamples = 2
        config.data.update(height=16, width=16)
        config.batch_size, config.total_steps, config.eval_images = 8, 20, 16
        config.log_every, config.eval_every, config.picture_every, config.checkpoint_every = 5, 20, 20, 10
        config.optimizer.warmup_steps = 5.0
    return config
