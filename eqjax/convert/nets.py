"""Frozen networks: published PyTorch state_dicts → Flax parameters, by tables of names."""

import re

import numpy as np

from eqjax.convert.rules import import_arrays, make_rules

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


def lpips_params(state_dict, module):
    """torchvision's VGG16 and the LPIPS linear layers, in one state_dict → parameters of an `LPIPS`.

    Known to be unused: VGG's classifier.

    Raises:
      ConversionError: names or shapes differ.
    """
    return import_arrays(state_dict, make_rules(module, _LPIPS), _unused(r"classifier\..*"))


def dino_params(state_dict, module):
    """DINO's ViT → parameters of a `ViT` with readouts.

    Keys have no bias, as the reference sets it to zero. Known to be unused: the final norm.

    Raises:
      ConversionError: names or shapes differ.
    """
    params = import_arrays(state_dict, make_rules(module, _VIT), _unused(r"norm\.(weight|bias)"))
    bias = params["blocks"]["qkv"]["bias"]  # [depth, 3, heads, d]: of queries, keys, values
    is_key = np.arange(3)[:, None, None] == 1
    params["blocks"]["qkv"]["bias"] = bias * ~is_key
    return params


def dinov2_params(state_dict, module):
    """DINOv2's ViT → parameters of a `ViT` without readouts. Known to be unused: the mask token.

    Raises:
      ConversionError: names or shapes differ.
    """
    return import_arrays(state_dict, make_rules(module, _VIT), _unused("mask_token"))


def inception_params(state_dict, module):
    """FID's Inception (`pt_inception-2015-12-05`) → parameters of an `Inception`.

    Known to be unused: the last layer's bias, and counters of batches.

    Raises:
      ConversionError: names or shapes differ.
    """
    unused = _unused(r"fc\.bias|.*\.num_batches_tracked")
    return import_arrays(state_dict, make_rules(module, _INCEPTION), unused)


def _unused(pattern):
    return lambda name: bool(re.fullmatch(pattern, name))
