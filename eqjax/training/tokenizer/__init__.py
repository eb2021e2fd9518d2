"""Training the column tokenizer, stages 1 and 2.

    image ─encoder─▶ posterior ─sample─▶ latents ─decoder─▶ reconstruction ─▶ the terms of `objective`

Stage 1 trains everything. Stage 2 starts from the EMA weights of stage 1, freezes the encoder and trains the decoder's
side. A step updates the tokenizer, then the discriminator on fresh reconstructions.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1 and appendix.
"""

from eqjax.training.config import tokenizer_config as default_config
from eqjax.training.tokenizer.objective import Objective
from eqjax.training.tokenizer.step import TokenizerStep
from eqjax.training.tokenizer.train import TokenizerTrainer, train_and_evaluate

__all__ = ["Objective", "TokenizerStep", "TokenizerTrainer", "default_config", "train_and_evaluate"]
