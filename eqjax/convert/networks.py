"""Frozen networks: published PyTorch state_dicts → Flax parameters, by tables of names."""

import functools
import re

import numpy as np

from eqjax.convert.rules import import_arrays, make_rules, reference_shapes

# Rows as in eqjax.convert.weights: Flax module (a pattern), reference module, kind of layer.
_LPIPS = (
    (r"vgg/conv(\d+)", r"features.\1", "conv"),
    (r"lin(\d)", r"lin\1.model.1", "conv"),
)
_VIT = (
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
_INCEPTION = (
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


# Network → table, and a pattern of which names may be left over: a classifier, a norm after the last readout, the
# token of masked patches, a bias that the Inception Score leaves out.
_NETWORKS = {
    "lpips": (_LPIPS, r"classifier\..*"),
    "dino": (_VIT, r"norm\.(weight|bias)"),
    "dinov2": (_VIT, "mask_token"),
    "inception": (_INCEPTION, r"fc\.bias|.*\.num_batches_tracked"),
}


def lpips_params(state_dict, module):
    """torchvision's VGG16 and the LPIPS linear layers, in one state_dict → parameters of an `LPIPS`.

    Raises:
      ConversionError: names or shapes differ.
    """
    return _import("lpips", state_dict, module)


def dino_params(state_dict, module):
    """DINO's ViT → parameters of a `ViT` with readouts; keys lose their bias, as the reference sets it to 0.

    Raises:
      ConversionError: names or shapes differ.
    """
    params = _import("dino", state_dict, module)
    qkv = params["blocks"]["qkv"]  # Its bias: [depth, 3, heads, d], of queries, keys, values.
    qkv["bias"] = qkv["bias"] * np.array([1, 0, 1], np.float32)[:, None, None]
    return params


def dinov2_params(state_dict, module):
    """DINOv2's ViT → parameters of a `ViT` without readouts.

    Raises:
      ConversionError: names or shapes differ.
    """
    return _import("dinov2", state_dict, module)


def inception_params(state_dict, module):
    """FID's Inception (`pt_inception-2015-12-05`) → parameters of an `Inception`.

    Raises:
      ConversionError: names or shapes differ.
    """
    return _import("inception", state_dict, module)


def frozen_shapes(network, module):
    """{reference name: shape} of the arrays that a frozen network's files must hold.

    Args:
      network: "lpips", "dino", "dinov2" or "inception".
      module: the Flax module.
    """
    return reference_shapes(make_rules(module, _NETWORKS[network][0]))


def unused_in_frozen(network, name):
    """Whether a frozen network's files may hold an array of that name, which nobody uses."""
    return bool(re.fullmatch(_NETWORKS[network][1], name))


def _import(network, state_dict, module):
    unused = functools.partial(unused_in_frozen, network)
    return import_arrays(state_dict, make_rules(module, _NETWORKS[network][0]), unused)
