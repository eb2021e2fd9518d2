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


def _unused(pattern):
    return lambda name: bool(re.fullmatch(pattern, name))


_DISCRIMINATOR = (
    ("heads/conv_in", "heads.*.0.0", "spectral conv"),
    ("heads/norm_in", "heads.*.0.1", "norm"),
    ("heads/conv", "heads.*.1.fn.0", "spectral conv"),
    ("heads/norm", "heads.*.1.fn.1", "norm"),
    ("heads/conv_out", "heads.*.2", "spectral conv"),
)


def discriminator_variables(state_dict, module):
    """The reference's discriminator heads → {"params", "spectral"} of a `FeatureDiscriminator`.

    Known to be unused: the right singular vectors, which follow from the left ones, and the transformer `dino.*`.

    Raises:
      ConversionError: names or shapes differ.
    """
    vectors = {name: np.asarray(array) for name, array in state_dict.items() if name.endswith(".weight_u")}
    weights = {name: array for name, array in state_dict.items() if name not in vectors}
    params = import_arrays(weights, make_rules(module, _DISCRIMINATOR), _unused(r"dino\..*|.*\.weight_v"))
    places = {ours.split("/")[1]: theirs for ours, theirs, kind in _DISCRIMINATOR if kind == "spectral conv"}
    spectral = {
        ours: {"u": np.stack([vectors[f"{theirs.replace('*', str(i))}.weight_u"] for i in range(module.num_readouts)])}
        for ours, theirs in places.items()
    }
    return {"params": params, "spectral": {"heads": spectral}}
