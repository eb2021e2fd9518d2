"""Stage 1: the weights from which a tokenizer's run starts, those of another run of the same architecture."""

from typing import Any

from eqjax import loading, pretrained
from eqjax.differences import check_equal
from eqjax.tokenizer import Tokenizer
from eqjax.typing import Config


def load_stage1(config: Config, tokenizer: Tokenizer) -> pretrained.Weights | None:
    """Loads the weights of stage 1, if the run starts from them.

    Args:
      config: a `tokenizer_config`.
      tokenizer: the module to be trained.

    Returns:
      The weights, or None if the run starts from random ones.

    Raises:
      ValueError: the file holds no tokenizer, or one of another architecture.
      FileNotFoundError: there is no such file.
    """
    path = config.stage1_weights
    if not path:
        return None
    stage1 = loading.load_weights(path)
    if "tokenizer" not in stage1.modules:
        raise ValueError(f"{path} holds no tokenizer; give stage1_weights a file written by tokenizer training.")
    found, expected = _architecture(stage1.modules["tokenizer"]), _architecture(tokenizer)
    message = f"the tokenizer of {path} is not the one to be trained:"
    check_equal(found, expected, message, found_name="stage 1", expected_name="this run")
    return stage1


def _architecture(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the fields of a tokenizer that determine its parameters and their meaning."""
    fields = pretrained.module_to_dict(tokenizer)
    del fields["dtype"]
    semantic: Any = tokenizer.semantic
    if semantic is not None:
        # Converted files state the widths through another common factor.
        del fields["semantic"]["channels"], fields["semantic"]["channel_multipliers"]
        fields["semantic"]["widths"] = semantic.widths
    return fields
