"""Weights: reference state_dicts ↔ Flax parameters, by tables of names."""

from typing import Any

import numpy as np

from eqjax.arguments import check_arguments
from eqjax.convert.checkpoint import BESIDE_WEIGHTS
from eqjax.convert.rules import (
    PARAMS,
    STATE_DICT,
    ConversionError,
    Row,
    Rule,
    Shape,
    export_arrays,
    import_arrays,
    make_rules,
)
from eqjax.generator import Generator
from eqjax.rules import Instance
from eqjax.tokenizer import SemanticConfig, Tokenizer
from eqjax.typing import Params, StateDict

_A_TOKENIZER = Instance(Tokenizer, "an eqjax.Tokenizer")
_A_GENERATOR = Instance(Generator, "an eqjax.Generator")


def _inside(flax: str, reference: str, parts: tuple[Row, ...]) -> tuple[Row, ...]:
    """Returns rows for the layers inside a block."""
    return tuple((f"{flax}/{ours}", f"{reference}.{theirs}", kind) for ours, theirs, kind in parts)


_RES_BLOCK: tuple[Row, ...] = (
    ("norm1", "norm1", "norm"),
    ("conv1", "conv1", "conv"),
    ("norm2", "norm2", "norm"),
    ("conv2", "conv2", "conv"),
    ("shortcut", "nin_shortcut", "conv"),
)
_ATTENTION: tuple[Row, ...] = (
    ("norm", "norm", "norm"),
    ("query", "q", "conv"),
    ("key", "k", "conv"),
    ("value", "v", "conv"),
    ("out", "proj_out", "conv"),
)

# Rows: Flax module (a pattern), reference module (its groups by number), kind of layer.
_TOKENIZER: tuple[Row, ...] = (
    ("quant", "quant_layer", "conv"),
    ("post_quant", "post_quant_layer", "conv"),
    ("(encoder|decoder)/columns", r"\1.\g<1>1d", "conv"),
    ("(encoder|decoder)/(conv_in|conv_out)", r"\1.\2", "conv"),
    ("(encoder|decoder)/norm_out", r"\1.norm_out", "norm"),
    ("semantic_head/conv_out", "semantic_decoder.conv_out", "conv"),
    ("semantic_head/norm_out", "semantic_decoder.norm_out", "norm"),
    *_inside("(encoder|decoder)/mid_block0", r"\1.mid.block_1", _RES_BLOCK),
    *_inside("(encoder|decoder)/mid_attention", r"\1.mid.attn_1", _ATTENTION),
    *_inside("(encoder|decoder)/mid_block1", r"\1.mid.block_2", _RES_BLOCK),
    *_inside(r"encoder/level(\d+)_block(\d+)", r"encoder.down.\1.block.\2", _RES_BLOCK),
    *_inside(r"encoder/level(\d+)_attention(\d+)", r"encoder.down.\1.attn.\2", _ATTENTION),
    (r"encoder/level(\d+)_down/conv", r"encoder.down.\1.downsample.conv.conv", "conv"),
    *_inside(r"decoder/level(\d+)_block(\d+)", r"decoder.up.\1.block.\2", _RES_BLOCK),
    *_inside(r"decoder/level(\d+)_attention(\d+)", r"decoder.up.\1.attn.\2", _ATTENTION),
    (r"decoder/level(\d+)_up/conv", r"decoder.up.\1.upsample.conv.conv", "conv"),
    *_inside(r"semantic_head/level(\d+)_block(\d+)", r"semantic_decoder.down.\1.block.\2", _RES_BLOCK),
    (r"semantic_head/level(\d+)_down/conv", r"semantic_decoder.down.\1.downsample.conv.conv", "conv"),
)

# A * counts the layers that are stacked in one Flax array.
_GENERATOR: tuple[Row, ...] = (
    ("class_embedding", "class_emb.weight", "bare"),
    ("null_embedding", "fake_latent", "bare"),
    ("cond_positions", "encoder_pos_embed_learned", "bare row"),
    ("latent_proj", "z_proj", "linear"),
    ("input_norm", "z_proj_ln", "norm"),
    ("output_norm", "encoder_norm", "norm"),
    ("blocks/self_norm", "encoder_blocks.*.norm1", "norm"),
    ("blocks/self_qkv", "encoder_blocks.*.attn.qkv", "linear"),
    ("blocks/self_out", "encoder_blocks.*.attn.proj", "join"),
    ("blocks/cross_norm", "encoder_blocks.*.cross_norm", "norm"),
    ("blocks/cross_condition_norm", "encoder_blocks.*.cross_cond_norm", "norm"),
    ("blocks/cross_query", "encoder_blocks.*.attn2.qkv", "linear"),
    ("blocks/cross_key", "encoder_blocks.*.attn2.k", "linear"),
    ("blocks/cross_value", "encoder_blocks.*.attn2.v", "linear"),
    ("blocks/cross_out", "encoder_blocks.*.attn2.proj", "join"),
    ("blocks/mlp_norm", "encoder_blocks.*.norm2", "norm"),
    ("blocks/mlp_in", "encoder_blocks.*.mlp.fc1", "linear"),
    ("blocks/mlp_out", "encoder_blocks.*.mlp.fc2", "linear"),
    ("flow_head/time_in", "diffloss.net.time_embed.mlp.0", "linear"),
    ("flow_head/time_out", "diffloss.net.time_embed.mlp.2", "linear"),
    ("flow_head/context_proj", "diffloss.net.cond_embed", "linear"),
    ("flow_head/input_proj", "diffloss.net.input_proj", "linear"),
    ("flow_head/modulation", "diffloss.net.res_blocks.*.adaLN_modulation.1", "modulation"),
    (r"flow_head/blocks_(\d+)/norm", r"diffloss.net.res_blocks.\1.in_ln", "norm"),
    (r"flow_head/blocks_(\d+)/mlp_in", r"diffloss.net.res_blocks.\1.mlp.0", "linear"),
    (r"flow_head/blocks_(\d+)/mlp_out", r"diffloss.net.res_blocks.\1.mlp.2", "linear"),
    ("flow_head/final_modulation", "diffloss.net.final_layer.adaLN_modulation.1", "linear"),
    ("flow_head/output_proj", "diffloss.net.final_layer.linear", "linear"),
)


@check_arguments(state_dict=STATE_DICT, tokenizer=_A_TOKENIZER)
def tokenizer_params(state_dict: StateDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """Converts a reference state_dict to Flax parameters of a tokenizer.

    Args:
      state_dict: names to arrays, as `ema_tokenizer_state_dict` returns. `loss.*`, counters of the EMA,
        the semantic head's blocks that the reference never runs, and the whole head if the tokenizer has
        none may be left over.
      tokenizer: the module to fill.

    Returns:
      Nested dict, float32.

    Raises:
      ConversionError: names or shapes differ, or the tokenizer has no counterpart in the reference.

    Example:
      >>> from eqjax import Tokenizer, convert
      >>> checkpoint = convert.read_reference("tokenizer.ckpt")  # doctest: +SKIP
      >>> _, state_dict, _ = convert.pick_weights(checkpoint, "tokenizer.ckpt")  # doctest: +SKIP
      >>> tokenizer = Tokenizer(**convert.infer_tokenizer_config(state_dict))  # doctest: +SKIP
      >>> params = convert.tokenizer_params(state_dict, tokenizer)  # doctest: +SKIP
    """
    never_run = _never_run(tokenizer)

    def is_unused(name: str) -> bool:
        headless = tokenizer.semantic is None and name.startswith("semantic_decoder.")
        return headless or name in never_run or bool(BESIDE_WEIGHTS.fullmatch(name))

    return import_arrays(state_dict, _tokenizer_rules(tokenizer), is_unused)


@check_arguments(params=PARAMS, tokenizer=_A_TOKENIZER)
def tokenizer_state_dict(params: Params, tokenizer: Tokenizer) -> dict[str, Any]:
    """Converts Flax parameters of a tokenizer to a reference state_dict, the inverse of `tokenizer_params`.

    The reference's files hold one more block per level of the semantic head, which it never runs:
    those are zeros. A tokenizer without a semantic head gives a state_dict without one.

    Args:
      params: the parameters, or a tree like them (gradients, EMA weights).
      tokenizer: their module.

    Returns:
      {reference name: array}.

    Raises:
      ConversionError: names or shapes differ, or the tokenizer has no counterpart in the reference.
    """
    if tokenizer.patch_size != 1:
        raise ConversionError(
            f"patch_size={tokenizer.patch_size}: the reference works on pixels; only patch_size=1 can be exported."
        )
    if tokenizer.refine_channels is not None:
        raise ConversionError(
            f"refine_channels={tokenizer.refine_channels}: the reference has no such block; only refine_channels=None "
            "can be exported."
        )
    if tokenizer.attention_window is not None:
        raise ConversionError(
            f"attention_window={tokenizer.attention_window}: the reference attends to all columns and would compute "
            "something else with these weights; only attention_window=None can be exported."
        )
    for field, published in (("padding", "reflect"), ("resample", "shuffle")):
        if (value := getattr(tokenizer, field)) != published:
            raise ConversionError(
                f"{field}={value!r}: the reference would compute something else with these weights; only "
                f"{field}={published!r} can be exported."
            )
    never_run = {name: np.zeros(shape, np.float32) for name, shape in _never_run(tokenizer).items()}
    return export_arrays(params, _tokenizer_rules(tokenizer)) | never_run


@check_arguments(state_dict=STATE_DICT, generator=_A_GENERATOR)
def generator_params(state_dict: StateDict, generator: Generator) -> dict[str, Any]:
    """Converts a reference state_dict to Flax parameters of a generator.

    Args:
      state_dict: names to arrays.
      generator: the module to fill.

    Returns:
      Nested dict, float32.

    Raises:
      ConversionError: names or shapes differ.

    Example:
      >>> from eqjax import Generator, convert
      >>> checkpoint = convert.read_reference("generator.ckpt")  # doctest: +SKIP
      >>> _, state_dict, arguments = convert.pick_weights(checkpoint, "generator.ckpt")  # doctest: +SKIP
      >>> generator = Generator(**convert.infer_generator_config(state_dict, arguments))  # doctest: +SKIP
      >>> params = convert.generator_params(state_dict, generator)  # doctest: +SKIP
    """
    return import_arrays(state_dict, make_rules(generator, _GENERATOR))


@check_arguments(params=PARAMS, generator=_A_GENERATOR)
def generator_state_dict(params: Params, generator: Generator) -> dict[str, Any]:
    """Converts Flax parameters of a generator to a reference state_dict, the inverse of `generator_params`.

    Args:
      params: the parameters, or a tree like them (gradients, EMA weights).
      generator: their module.

    Returns:
      {reference name: array}.

    Raises:
      ConversionError: names or shapes differ from the generator's, or it has no counterpart in the reference.
    """
    if not generator.cross_rope:
        raise ConversionError(
            "cross_rope=False: the reference rotates queries of cross-attention and would compute something else with "
            "these weights; only cross_rope=True can be exported."
        )
    return export_arrays(params, make_rules(generator, _GENERATOR))


def _tokenizer_rules(tokenizer: Tokenizer) -> tuple[Rule, ...]:
    if tokenizer.norm != "group":
        raise ConversionError(f"norm={tokenizer.norm!r} has no counterpart in the reference, whose norm is 'group'.")
    return make_rules(tokenizer, _TOKENIZER)


def _never_run(tokenizer: Tokenizer) -> dict[str, Shape]:
    """Returns {name: shape} of the semantic head's last block per level, which files hold and nothing runs."""
    out: dict[str, Shape] = {}
    if not isinstance(tokenizer.semantic, SemanticConfig):
        return out
    for i, width in enumerate(tokenizer.semantic.widths):
        block = f"semantic_decoder.down.{i}.block.{tokenizer.semantic.num_res_blocks}."
        for k in (1, 2):
            out |= {f"{block}norm{k}.weight": (width,), f"{block}norm{k}.bias": (width,)}
            out |= {f"{block}conv{k}.weight": (width, width, 3, 3), f"{block}conv{k}.bias": (width,)}
    return out
