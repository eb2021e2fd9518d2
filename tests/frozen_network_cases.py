"""The frozen networks of the recorded arrays: smaller than published, with the weights of `reference_weights`."""

import functools
import json

import numpy as np

from eqjax import convert, nets
from tests import reference_weights
from tests.golden_cases import GOLDEN

DINO_MEAN_AND_SCALE = ("x_shift", "x_scale")  # Constants that the reference keeps beside DINO's weights.


@functools.cache
def objective():
    """Returns (description, arrays) of the recorded training objective."""
    return json.loads((GOLDEN / "tokenizer_objective_tiny.json").read_text()), np.load(
        GOLDEN / "tokenizer_objective_tiny.npz"
    )


def lpips_state():
    """Returns {reference name: array} of VGG16 and the linear layers."""
    state = reference_weights.state_dict(objective()[0]["lpips_parameters"])
    is_kernel = {name: name.startswith("features") and name.endswith("weight") for name in state}
    return {name: array * np.float32(np.sqrt(2) if is_kernel[name] else 1) for name, array in state.items()}


def dino_state():
    """Returns {reference name: array}."""
    shapes = objective()[0]["dino_parameters"]
    return reference_weights.state_dict({k: v for k, v in shapes.items() if k not in DINO_MEAN_AND_SCALE}, salt="dino.")


def dinov2_state():
    """Returns {reference name: array}."""
    return reference_weights.state_dict(objective()[0]["dinov2_parameters"], salt="dinov2.")


@functools.cache
def lpips_case():
    """Returns (module, parameters)."""
    module = nets.LPIPS()
    return module, convert.lpips_params(lpips_state(), module)


@functools.cache
def dino_case():
    """Returns (module, parameters)."""
    fields = objective()[0]["disc"]
    module = nets.DINO_S16.clone(width=fields["embed"], num_heads=fields["heads"], depth=fields["depth"])
    return module, convert.dino_params(dino_state(), module)


@functools.cache
def dinov2_case():
    """Returns (module, parameters)."""
    fields = objective()[0]["dinov2"]
    module = nets.DINOV2_B14.clone(
        width=fields["embed"],
        num_heads=fields["heads"],
        depth=fields["depth"],
        grid=fields["image"] // fields["patch"],
    )
    return module, convert.dinov2_params(dinov2_state(), module)


def inception_state():
    """Returns {reference name: array}."""
    shapes = json.loads((GOLDEN / "fid_tiny.json").read_text())["parameters"]
    state = reference_weights.state_dict(shapes, salt="inception.")
    return {name: array * np.float32(np.sqrt(2) if array.ndim == 4 else 1) for name, array in state.items()}


@functools.cache
def inception_case():
    """Returns (module, parameters, arrays); the network is of full size."""
    module = nets.Inception()
    return module, convert.inception_params(inception_state(), module), np.load(GOLDEN / "fid_tiny.npz")
