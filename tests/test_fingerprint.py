"""The identity of weights: what changes it and what does not."""

import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.fingerprint import fingerprint

PARAMS = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.ones(2, np.float32)}


def test_a_fingerprint_is_a_fixed_sha256():
    assert fingerprint(PARAMS) == "4880bc5a9fded28e4269fa1ca4be26b2b1ecf4c66480510d6f5da0553a8807c9"
    assert fingerprint(PARAMS, {"width": 8}) == "2fb969072a9771ba9e652ebc5672ca95420b4d4e2d2bd759290af4bef2b90d46"


@pytest.mark.parametrize(
    "other",
    [
        PARAMS | {"b": np.array([1, 1.0000001], np.float32)},
        PARAMS | {"a": {"kernel": PARAMS["a"]["kernel"].reshape(3, 2)}},
        {"a": PARAMS["a"], "c": PARAMS["b"]},
        {"a": PARAMS["a"]},
        {"a": {"kernel": PARAMS["a"]["kernel"].T}, "b": PARAMS["b"]},
    ],
    ids=["value", "shape", "name", "fewer", "transposed"],
)
def test_values_shapes_and_names_change_the_fingerprint(other):
    assert fingerprint(other) != fingerprint(PARAMS)


def test_fields_change_the_fingerprint_and_their_order_does_not():
    assert fingerprint(PARAMS, {"width": 8}) != fingerprint(PARAMS)
    assert fingerprint(PARAMS, {"width": 8}) != fingerprint(PARAMS, {"width": 9})
    assert fingerprint(PARAMS, {"width": 8, "depth": 2}) == fingerprint(PARAMS, {"depth": 2, "width": 8})


def test_dtype_device_and_layout_do_not_change_the_fingerprint():
    wide = {"b": PARAMS["b"].astype(np.float64), "a": {"kernel": jnp.asarray(PARAMS["a"]["kernel"])}}
    assert fingerprint(wide) == fingerprint(PARAMS)
    fortran = PARAMS | {"a": {"kernel": np.asfortranarray(PARAMS["a"]["kernel"])}}
    assert fingerprint(fortran) == fingerprint(PARAMS)
