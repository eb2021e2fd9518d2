"""Training the windowed causal generator on the latents of a frozen tokenizer.

    image ─encoder─▶ posterior ─sample, × latent scale─▶ latents ─generator─▶ rectified-flow loss per column

Images are encoded inside the compiled step, or posterior means come from a latent cache.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.2 and appendix.
"""

from eqjax.training.config import generator_config as default_config
from eqjax.training.generator.step import GeneratorStep
from eqjax.training.generator.train import GeneratorTrainer, load_tokenizer, train_and_evaluate

__all__ = ["GeneratorStep", "GeneratorTrainer", "default_config", "load_tokenizer", "train_and_evaluate"]
