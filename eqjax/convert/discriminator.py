"""The reference's discriminator heads → Flax variables, by a table of names."""

import re
from typing import Any

import numpy as np

from eqjax.arguments import check_arguments
from eqjax.convert.rules import STATE_DICT, ConversionError, Row, import_arrays, listing, make_rules
from eqjax.rules import Instance
from eqjax.tokenizer.discriminator import FeatureDiscriminator
from eqjax.typing import StateDict

# Rows as in eqjax.convert.state_dicts; a * counts the heads.
_HEADS: tuple[Row, ...] = (
    ("heads/conv_in", "heads.*.0.0", "spectral conv"),
    ("heads/norm_in", "heads.*.0.1", "norm"),
    ("heads/conv", "heads.*.1.fn.0", "spectral conv"),
    ("heads/norm", "heads.*.1.fn.1", "norm"),
    ("heads/conv_out", "heads.*.2", "spectral conv"),
)


@check_arguments(state_dict=STATE_DICT, module=Instance(FeatureDiscriminator, "the FeatureDiscriminator to fill"))
def discriminator_variables(state_dict: StateDict, module: FeatureDiscriminator) -> dict[str, Any]:
    """Converts the reference's discriminator heads to variables of a `FeatureDiscriminator`.

    The right singular vectors, which follow from the left ones, and the transformer `dino.*` may be left
    over.

    Args:
      state_dict: reference names to arrays.
      module: the discriminator to fill.

    Returns:
      {"params", "spectral"}, float32.

    Raises:
      ConversionError: names or shapes differ.
    """
    vectors = {
        ours.split("/")[1]: [f"{theirs.replace('*', str(i))}.weight_u" for i in range(module.num_heads)]
        for ours, theirs, kind in _HEADS
        if kind == "spectral conv"
    }
    missing = [name for names in vectors.values() for name in names if name not in state_dict]
    if missing:
        raise ConversionError("the discriminator lacks vectors." + listing("missing in the source", missing))
    stacked = {
        ours: {"u": np.stack([np.asarray(state_dict[name], np.float32) for name in names])}
        for ours, names in vectors.items()
    }
    params = import_arrays(
        state_dict,
        make_rules(module, _HEADS),
        lambda name: bool(re.fullmatch(r"dino\..*|.*\.weight_[uv]", name)),
    )
    return {"params": params, "spectral": {"heads": stacked}}
