"""Constants of the published models (arXiv 2503.18948)."""

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
