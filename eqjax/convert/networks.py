"""Frozen networks: published PyTorch state_dicts → Flax parameters, by tables of names."""

import functools
import re
from typing import Any

import flax.linen as nn
import numpy as np

from eqjax.arguments import check_arguments
from eqjax.convert.rules import STATE_DICT, Row, Shape, import_arrays, make_rules, reference_shapes
from eqjax.rules import Choice, Instance, Text
from eqjax.typing import StateDict

# Rows as in eqjax.convert.state_dicts: Flax module (a pattern), reference module, kind of layer.
_LPIPS: tuple[Row, ...] = (
    (r"vgg/conv(\d+)", r"features.\1", "conv"),
    (r"lin(\d)", r"lin\1.model.1", "conv"),
)
_VIT: tuple[Row, ...] = (
    ("class_token", "cls_token", "bare row"),
    ("positions", "pos_embed", "bare row"),
    ("patches", "patch_embed.proj", "conv"),
    (r"blocks/norm(\d)", r"blocks.*.norm\1", "norm"),
    ("blocks/qkv", "blocks.*.attn.qkv", "linear"),
    ("blocks/out", "blocks.*.attn.proj", "join"),
    ("blocks/mlp_in", "blocks.*.mlp.fc1", "linear"),
    ("blocks/mlp_out", "blocks.*.mlp.fc2", "linear"),
    (r"blocks/scale(\d)", r"blocks.*.ls\1.gamma", "bare"),
    ("norm", "norm", "norm"),
)
_INCEPTION: tuple[Row, ...] = (
    (r"conv_(\w+)/conv", r"Conv2d_\1.conv", "conv"),
    (r"mixed_(\w+)/(\w+)/conv", r"Mixed_\1.\2.conv", "conv"),
    *(
        row
        for ours, theirs in (
            ("scale", "weight"),
            ("bias", "bias"),
            ("mean", "running_mean"),
            ("variance", "running_var"),
        )
        for row in (
            (rf"conv_(\w+)/{ours}", rf"Conv2d_\1.bn.{theirs}", "bare"),
            (rf"mixed_(\w+)/(\w+)/{ours}", rf"Mixed_\1.\2.bn.{theirs}", "bare"),
        )
    ),
    ("logits", "fc", "linear"),
)


# Network → table, and a pattern of the names that may be left over: a classifier, a norm after the last intermediate
# layer, the token of masked patches, a bias that the Inception Score leaves out.
_NETWORKS = {
    "lpips": (_LPIPS, r"classifier\..*"),
    "dino": (_VIT, r"norm\.(weight|bias)"),
    "dinov2": (_VIT, "mask_token"),
    "inception": (_INCEPTION, r"fc\.bias|.*\.num_batches_tracked"),
}

_NETWORK = Choice(tuple(_NETWORKS))
_MODULE = Instance(nn.Module, "the Flax module of the network")


# The modules are Any here: eqjax.nets imports this package, which reads its files.
@check_arguments(state_dict=STATE_DICT, module=_MODULE)
def lpips_params(state_dict: StateDict, module: Any) -> dict[str, Any]:
    """Converts torchvision's VGG16 and the LPIPS linear layers, in one state_dict, to parameters of an `LPIPS`.

    Raises:
      ConversionError: names or shapes differ.
    """
    return _import("lpips", state_dict, module)


@check_arguments(state_dict=STATE_DICT, module=_MODULE)
def dino_params(state_dict: StateDict, module: Any) -> dict[str, Any]:
    """Converts DINO's ViT to parameters of a `ViT` with intermediate layers.

    Keys lose their bias, as the reference sets it to 0.

    Raises:
      ConversionError: names or shapes differ.
    """
    params = _import("dino", state_dict, module)
    qkv = params["blocks"]["qkv"]  # Its bias: [depth, 3, heads, d], of queries, keys, values.
    qkv["bias"] = qkv["bias"] * np.array([1, 0, 1], np.float32)[None, :, None, None]
    return params


@check_arguments(state_dict=STATE_DICT, module=_MODULE)
def dinov2_params(state_dict: StateDict, module: Any) -> dict[str, Any]:
    """Converts DINOv2's ViT to parameters of a `ViT` without intermediate layers.

    Raises:
      ConversionError: names or shapes differ.
    """
    return _import("dinov2", state_dict, module)


@check_arguments(state_dict=STATE_DICT, module=_MODULE)
def inception_params(state_dict: StateDict, module: Any) -> dict[str, Any]:
    """Converts FID's Inception (`pt_inception-2015-12-05`) to parameters of an `Inception`.

    Raises:
      ConversionError: names or shapes differ.
    """
    return _import("inception", state_dict, module)


@check_arguments(network=_NETWORK, module=_MODULE)
def frozen_shapes(network: str, module: Any) -> dict[str, Shape]:
    """Returns {reference name: shape} of the arrays that a frozen network's files must hold.

    Args:
      network: "lpips", "dino", "dinov2" or "inception".
      module: the Flax module.
    """
    return reference_shapes(make_rules(module, _NETWORKS[network][0]))


@check_arguments(network=_NETWORK, name=Text())
def unused_in_frozen(network: str, name: str) -> bool:
    """Returns whether a frozen network's files may hold an array of that name, which nothing uses."""
    return bool(re.fullmatch(_NETWORKS[network][1], name))


def _import(network: str, state_dict: StateDict, module: Any) -> dict[str, Any]:
    is_unused = functools.partial(unused_in_frozen, network)
    return import_arrays(state_dict, make_rules(module, _NETWORKS[network][0]), is_unused)
