r"""The published tokenizer on ImageNet, 256 × 256: L1 + LPIPS + KL + semantic + adversarial, two stages.

    eqjax train-tokenizer --config=imagenet_tokenizer --workdir=runs/tokenizer \
        --config.data.root=/data/imagenet/train --config.data.eval_root=/data/imagenet/val
    eqjax train-tokenizer --config=imagenet_tokenizer:stage2 --workdir=runs/tokenizer_stage2 \
        --config.data.root=/data/imagenet/train --config.data.eval_root=/data/imagenet/val \
        --config.stage1_weights=runs/tokenizer

Fetch the frozen networks first (VGG16 with LPIPS, DINO, DINOv2): eqjax fetch-weights

As published: batches of 96 (8 GPUs × 12), Adam at 1.92e-4 for both networks, the tokenizer's learning rate warmed up
over 3000 steps and then multiplied by 0.2 every 30000, the semantic term from step 20001, the adversarial term from
step 5001. The number of steps is not published; after four drops the learning rate is too small to learn more. In
stage 2 encoder and latents are frozen, and decoder and discriminator train on without the semantic term.

A step of stage 1 with all terms costs 2128 GFLOP per image, counted in the compiled program: 89 % in encoder and
decoder (154 and 319 forward), 5.7 % in LPIPS, 2.2 % in DINOv2, 1.8 % in DINO. In float32, 12 images take
21.6 GB of a GPU: 4.8 GB of state and frozen networks, and 16.8 GB of activations (compiled for an H100).

This recipe has not been run with this code, so its results are not known. The published weights can be converted
instead (`eqjax convert`); `eqjax evaluate reconstruction` measures either model.

Variants (`--config=imagenet_tokenizer:name`, several joined by commas):
  stage2              stage 2; needs --config.stage1_weights
  style=strict        strictly equivariant: norms over each position, attention to neighboring columns only; default:
                      published
  dtype=bfloat16      matrix products in bfloat16; parameters, statistics of norms and losses stay in float32
  tiny                40 steps of a very small model on built-in photographs with PatchGAN, to see that everything runs,
                      without data or pretrained networks; for either stage
"""

from eqjax.config_files import parse_variant
from eqjax.data.photos import DEMO_CLASSES
from eqjax.training.config import tokenizer_config
from eqjax.typing import Config


def get_config(variant: str | None = None) -> Config:
    """Returns the configuration of a variant; the module's docstring lists them."""
    args = parse_variant(
        variant, stage2=False, style=("published", "strict"), dtype=("float32", "bfloat16"), tiny=False
    )
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
    if args["style"] == "strict":
        config.tokenizer.update(norm="pixel", attention_window=1)
    config.tokenizer.dtype = args["dtype"]
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
        config.data.update(source="photos", photo_classes=DEMO_CLASSES, height=32, width=32)
        config.update(batch_size=8, total_steps=40, eval_images=16)
        config.update(log_every=5, eval_every=20, image_every=40, checkpoint_every=20)
        config.optimizer.update(learning_rate=2e-3, warmup_steps=5.0)
        config.discriminator_optimizer.learning_rate = 2e-3
    return config
