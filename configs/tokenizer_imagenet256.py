r"""The published tokenizer on ImageNet, 256 × 256: L1 + LPIPS + KL + semantic + adversarial, two stages.

    python -m eqjax.cli.train_tokenizer --config=configs/tokenizer_imagenet256.py --workdir=runs/tokenizer \
        --config.data.root=/data/imagenet/train --config.data.eval_root=/data/imagenet/val
    python -m eqjax.cli.train_tokenizer --config=configs/tokenizer_imagenet256.py:stage2 --workdir=runs/tokenizer_stage2 \
        --config.data.root=/data/imagenet/train --config.data.eval_root=/data/imagenet/val \
        --config.stage1_weights=runs/tokenizer

The frozen networks (VGG16 with LPIPS, DINO, DINOv2) come first: python -m eqjax.cli.fetch_weights

As published: batches of 96 (8 GPUs × 12), Adam at 1.92e-4 for both networks, the tokenizer's rate warmed up over 3000
steps and then multiplied by 0.2 every 30000, semantic term from step 20001, adversarial term from step 5001. The
number of steps is not published; four drops leave nothing to learn with. In the second stage encoder and latents stay
as they are, and decoder and discriminator go on without the semantic term.

What a step of the first stage takes with everything on, from its program: 2128 GFLOP an image, 89 % of it encoder
and decoder (154 and 319 forward), 5.7 % LPIPS, 2.2 % DINOv2, 1.8 % DINO; in float32 2.5 GiB of intermediate values a
image (compiled for a CPU, 2 and 8 images) beside 4.4 GiB of state: about 35 GiB for 12 images on a GPU.

This recipe has not been run with this code, so what it reaches is not known; the published weights can be
converted instead (eqjax.cli.convert), and `python -m eqjax.cli.evaluate reconstruction` measures either.

Variants (`--config=configs/tokenizer_imagenet256.py:name`, several joined by commas):
  stage2  the second stage; needs --config.stage1_weights
  strict  the strictly equivariant tokenizer: local norms, attention to neighboring columns alone
  bf16    products in bfloat16; parameters, norms' statistics and losses stay float32
  tiny    a few steps of a very small model on built-in photographs with PatchGAN: no data and no pretrained file
          needed; of either stage
"""

from configs import common
from eqjax.training.config import tokenizer_config


def get_config(variant=None):
    """The configuration; see the text above for variants."""
    args = common.parse_variant(variant, tiny=False, stage2=False, strict=False, bf16=False)
    config = tokenizer_config()
    config.tokenizer.semantic = dict(
        channels=64, channel_multipliers=(8, 12), num_res_blocks=2, out_channels=768, downsamples=0
    )
    config.data.update(source="folder", height=256, width=256, resize=256)
    config.update(batch_size=96, total_steps=123_000)
    config.update(log_every=100, eval_every=5000, image_every=5000, checkpoint_every=2500)
    if args["stage2"]:
        config.freeze_encoder = True
        config.objective.semantic_weight = 0.0
    if args["strict"]:
        config.tokenizer.update(norm="pixel", attention_window=1)
    if args["bf16"]:
        config.tokenizer.dtype = "bfloat16"
    if args["tiny"]:
        config.tokenizer.update(
            channels=8,
            channel_multipliers=(1, 1),
            num_res_blocks=1,
            attention_resolutions=(),
            resolution=32,
            z_channels=4,
            embed_dim=16,
            patch_size=4,
            posterior_std=0.05,
            semantic=None,
        )
        config.objective.update(perceptual_weight=0.0, semantic_weight=0.0, adversarial_start=20)
        config.discriminator.update(kind="patch", channels=8, num_layers=2)
        config.data.update(source="photos", photo_classes=common.PHOTO_CLASSES, height=32, width=32)
        config.update(batch_size=8, total_steps=40, eval_images=16)
        config.update(log_every=5, eval_every=20, image_every=40, checkpoint_every=20)
        config.optimizer.update(learning_rate=2e-3, warmup_steps=5.0)
        config.discriminator_optimizer.learning_rate = 2e-3
    return config
