"""Infers the configuration: which `Tokenizer` or `Generator` a reference state_dict belongs to."""

from collections.abc import Callable, Mapping
import functools
import math
import re
from typing import Any

from eqjax.arguments import check_arguments
from eqjax.convert.rules import STATE_DICT, ConversionError, Shape
from eqjax.messages import shorten
from eqjax.published import GENERATOR_SIZES
from eqjax.rules import Instance, Integer
from eqjax.typing import StateDict

# (width, depth, flow width) of the published generators → attention heads, which do not follow from shapes.
_PUBLISHED_HEADS = {(f["width"], f["depth"], f["flow_width"]): f["num_heads"] for f in GENERATOR_SIZES.values()}
_PUBLISHED_COND_LENGTH = 3


@check_arguments(state_dict=STATE_DICT)
def infer_tokenizer_config(state_dict: StateDict) -> dict[str, Any]:
    """Infers the fields of the `Tokenizer` that a reference state_dict belongs to.

    Shapes tell everything but how the widths of the semantic head split into a base width and
    multipliers. The split has no consequence; the base width is the widths' greatest common divisor.

    Args:
      state_dict: reference names to arrays.

    Returns:
      Fields of `eqjax.Tokenizer`.

    Raises:
      ConversionError: the state_dict is not a tokenizer's.
    """
    shape = functools.partial(_shape, state_dict, "a tokenizer")
    channels = shape("encoder.conv_in.weight", 4)[0]
    levels = _count(state_dict, r"encoder\.down\.(\d+)\.")
    widths = [shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    z_channels = shape("encoder.conv_out.weight", 4)[0]
    embed_dim, column_channels, _ = shape("quant_layer.weight", 3)
    resolution = column_channels // z_channels * 2 ** (levels - 1)
    attends = [i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in state_dict]
    return dict(
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        num_res_blocks=_count(state_dict, r"encoder\.down\.0\.block\.(\d+)\."),
        attention_resolutions=tuple(resolution // 2**i for i in attends),
        resolution=resolution,
        z_channels=z_channels,
        embed_dim=embed_dim,
        square_downsamples=_square_downsamples(shape, levels),
        semantic=_infer_semantic_config(state_dict),
    )


@check_arguments(
    state_dict=STATE_DICT,
    arguments=Instance(Mapping, "a dict of training arguments", optional=True),
    num_heads=Integer(least=1, optional=True),
    window_size=Integer(least=0, optional=True),
    max_rope_shift=Integer(least=1),
)
def infer_generator_config(
    state_dict: StateDict,
    arguments: Mapping[str, Any] | None = None,
    *,
    num_heads: int | None = None,
    window_size: int | None = None,
    max_rope_shift: int = 16,
) -> dict[str, Any]:
    """Infers the fields of the `Generator` that a reference state_dict belongs to.

    Args:
      state_dict: reference names to arrays.
      arguments: the training arguments from the file. Their cond_length (the window without the own
        column, 0 for all columns) is used if `window_size` is None.
      num_heads: attention heads, which do not follow from shapes; None: those of the published generator of
        these widths and this depth.
      window_size: columns seen, the own one included; 0: all; None: from `arguments`, else as published.
      max_rope_shift: bound of the position shift in training, as published by default; it does not follow from shapes.

    Returns:
      Fields of `eqjax.Generator`.

    Raises:
      ConversionError: the state_dict is not a generator's, or has no published size and `num_heads` is None.
    """
    shape = functools.partial(_shape, state_dict, "a generator")
    num_classes, width = shape("class_emb.weight", 2)
    depth = _count(state_dict, r"encoder_blocks\.(\d+)\.")
    flow_width, latent_dim = shape("diffloss.net.input_proj.weight", 2)
    if num_heads is None:
        num_heads = _PUBLISHED_HEADS.get((width, depth, flow_width))
    if num_heads is None:
        raise ConversionError(
            f"width {width}, depth {depth} and flow width {flow_width} are of no published generator, and the "
            "number of attention heads does not follow from shapes: give num_heads (--num_heads)."
        )
    return dict(
        width=width,
        depth=depth,
        num_heads=num_heads,
        latent_dim=latent_dim,
        num_classes=num_classes,
        num_cond_tokens=shape("encoder_pos_embed_learned", 3)[1],
        window_size=_window_size(window_size, arguments or {}),
        max_rope_shift=max_rope_shift,
        flow_width=flow_width,
        flow_depth=_count(state_dict, r"diffloss\.net\.res_blocks\.(\d+)\."),
    )


def _window_size(given: int | None, arguments: Mapping[str, Any]) -> int | None:
    """Returns the number of columns seen, or None for all."""
    if given is not None:
        return given or None
    before = arguments.get("cond_length")
    if not isinstance(before, int):
        before = _PUBLISHED_COND_LENGTH
    return before + 1 if before else None


def _square_downsamples(shape: Callable[[str, int], Shape], levels: int) -> int:
    """Counts downsamplings that halve columns too: their convolutions keep a quarter of the channels, others half."""
    shapes = [shape(f"encoder.down.{i}.downsample.conv.conv.weight", 4) for i in range(levels - 1)]
    ratios = [inputs / outputs for outputs, inputs, *_ in shapes]
    if ratios != sorted(ratios, reverse=True) or not set(ratios) <= {2, 4}:
        raise ConversionError(
            f"the downsamplings' convolutions narrow by {ratios}; expected 4 (rows and columns), "
            "from some level on 2 (rows)."
        )
    return ratios.count(4)


def _infer_semantic_config(state_dict: StateDict) -> dict[str, Any] | None:
    levels = _count(state_dict, r"semantic_decoder\.down\.(\d+)\.")
    if not levels:
        return None
    names = [f"semantic_decoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    shapes = [_shape(state_dict, "a tokenizer", name, 4) for name in names]
    widths = [shapes[0][1], *(outputs for outputs, *_ in shapes)]
    channels = math.gcd(*widths)
    return dict(
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths[:-1]),
        num_res_blocks=_count(state_dict, r"semantic_decoder\.down\.0\.block\.(\d+)\.") - 1,  # One is never run.
        out_channels=widths[-1],
        downsamples=_count(state_dict, r"semantic_decoder\.down\.(\d+)\.downsample\."),
    )


def _shape(state_dict: StateDict, what: str, name: str, num_axes: int) -> Shape:
    """Returns the shape of an array, which must have so many axes, none of them empty."""
    if name not in state_dict:
        raise ConversionError(f"this is not the state_dict of {what}: it has no {name}.")
    shape = tuple(state_dict[name].shape)
    if len(shape) != num_axes or 0 in shape:
        raise ConversionError(
            f"this is not the state_dict of {what}: {name} has shape {shorten(str(shape))}; expected {num_axes} axes "
            "of at least 1."
        )
    return shape


def _count(state_dict: StateDict, pattern: str) -> int:
    """Counts the different values of the pattern's group at the beginning of names."""
    return len({match[1] for match in (re.match(pattern, name) for name in state_dict) if match})
