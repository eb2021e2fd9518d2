"""Arrays recorded from the reference implementation, and the models that they belong to."""

import pathlib

from eqjax.recorded.cases import generator_case, recorded_tokenizer, relative_error, tokenizer_case, training_loss

# Recorded arrays that only tests need; the others are in eqjax/recorded.
GOLDEN = pathlib.Path(__file__).parent / "golden"

__all__ = ["GOLDEN", "generator_case", "recorded_tokenizer", "relative_error", "tokenizer_case", "training_loss"]
