r"""The tokenizer of the demo: built-in photographs, 128 pixels high, strictly equivariant.

    eqjax train-tokenizer --config=photos_tokenizer --workdir=runs/photos_tokenizer
    eqjax train-tokenizer --config=photos_tokenizer:stage2 --workdir=runs/photos_stage2 \
        --config.stage1_weights=runs/photos_tokenizer --config.sampled.generator_weights=runs/photos_generator

Stage 1 minimizes L1 + KL. Stage 2 keeps the latents, and trains the decoder against a PatchGAN discriminator. It sees
reconstructions and, if a generator of these latents is given, its decoded samples. The shipped decoder is between those
of both stages. Figures and times are in eqjax/weights/photos.md.

Variants (`--config=photos_tokenizer:name`, several joined by commas):
  stage2           stage 2; needs --config.stage1_weights, takes --config.sampled.generator_weights
  gan              the discriminator in stage 1 already, after 500 steps, for comparison
  style=published  GroupNorm over the image and global attention, as in the paper, for comparison; default: strict
  quick            for `make train-demo`: 64 pixels high, 2 to 4 minutes on 2 CPU cores
  tiny             20 steps of a very small model, to see that everything runs
"""

from eqjax.config_files import parse_variant
from eqjax.data.photos import DEMO_CLASSES
from eqjax.training.config import tokenizer_config
from eqjax.typing import Config


def get_config(variant: str | None = None) -> Config:
    """Returns the configuration of a variant; the module's docstring lists them."""
    args = parse_variant(variant, stage2=False, gan=False, style=("strict", "published"), quick=False, tiny=False)
    config = tokenizer_config()
    # Levels of 8 × 8 and 4 × 4 positions only: a CPU would spend its time at full resolution.
    config.tokenizer.update(
        patch_size=8,
        channels=80,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        resolution=128,
        z_channels=24,
        embed_dim=128,
        refine_channels=8,
        # Details start small in the latents; noise of the published strength would hide them for tens of thousands of
        # steps.
        posterior_std=0.005,
    )
    if args["style"] == "strict":
        config.tokenizer.update(norm="pixel", attention_window=1)
    # The published terms that need no pretrained network.
    config.objective.update(kl_weight=0.03, perceptual_weight=0.0, semantic_weight=0.0, adversarial_weight=0.0)
    config.data.update(source="photos", photo_classes=DEMO_CLASSES, height=128, width=128)
    config.data.update(min_scale=0.4, max_scale=1.0, holdout_fraction=0.25)
    config.update(batch_size=8, total_steps=7_000)
    config.update(log_every=100, eval_every=1000, image_every=1000, checkpoint_every=1000)
    config.optimizer.update(
        name="muon",
        learning_rate=6e-3,
        schedule="cosine",
        final_lr_ratio=0.02,
        warmup_steps=50.0,
        b1=0.9,
        b2=0.99,
        grad_clip_norm=3000.0,
        ema_decay=0.998,
    )
    if args["gan"] or args["stage2"]:
        config.objective.update(adversarial_weight=0.5, adversarial_start=500)
        config.discriminator.update(kind="patch", norm="spectral", channels=32, num_layers=3)
        config.discriminator_optimizer.update(learning_rate=4e-4, b1=0.0, b2=0.9)
    if args["stage2"]:
        config.freeze_encoder = True
        # With less the discriminator wins: as it learns, its gradients grow, and lambda shrinks with them.
        config.objective.update(adversarial_start=0, adversarial_weight=4.0)
        # The discriminator tolerates seams between columns.
        config.objective.seam_weight = 0.3
        config.total_steps = 500
        config.checkpoint_every = 250
        # Small steps of Adam, as the decoder is already good.
        config.optimizer.update(
            name="adamw", learning_rate=2e-4, b1=0.5, b2=0.9, grad_clip_norm=None, warmup_steps=100.0
        )
        # As in `eqjax demo`.
        config.sampled.sampling.update(
            guidance_scale=2.0, guidance_schedule="constant", solver="adams_bashforth", time_grid="cosine"
        )
        config.sampled.sampling.num_flow_steps = 25
        config.sampled.num_images = 768
    if args["quick"]:
        config.tokenizer.update(channel_multipliers=(1, 1), resolution=64, embed_dim=96, refine_channels=None)
        config.data.update(height=64, width=64, min_scale=0.25, max_scale=0.6)
        config.batch_size = 16
        config.update(total_steps=1_200, eval_every=400, image_every=400, checkpoint_every=400)
        config.optimizer.warmup_steps = 50.0
    if args["tiny"]:
        config.tokenizer.update(
            patch_size=2,
            channels=8,
            channel_multipliers=(1, 1),
            resolution=16,
            z_channels=4,
            embed_dim=8,
            refine_channels=None,
        )
        config.data.update(height=16, width=16)
        config.update(batch_size=8, total_steps=20, eval_images=16)
        config.update(log_every=5, eval_every=20, image_every=20, checkpoint_every=10)
        config.optimizer.warmup_steps = 5.0
    return config
