"""The column tokenizer: images ↔ one latent vector per column."""

from eqjax.tokenizer.decoder import SemanticConfig
from eqjax.tokenizer.posterior import Posterior
from eqjax.tokenizer.tokenizer import ENCODER_PARTS, Decoded, Tokenizer

__all__ = ["ENCODER_PARTS", "Decoded", "Posterior", "SemanticConfig", "Tokenizer"]
