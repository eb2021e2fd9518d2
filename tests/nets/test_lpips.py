"""LPIPS against recorded values, its gradients, and its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import convert, nets
from eqjax.nets.lpips import _normalize
from tests import frozen_network_cases, published_checkpoints
from tests.golden_cases import relative_error


@pytest.fixture(scope="module")
def values_and_gradients():
    """LPIPS of the recorded pair, and its gradients to parameters and images."""
    _, params = frozen_network_cases.lpips_case()
    _, arrays = frozen_network_cases.objective()

    def total(params, x, y):
        value = nets.lpips(params, x, y)
        return value.sum(), value

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    return gradients(params, arrays["lpips/a"], arrays["lpips/b"])


def test_distances_equal_recorded_ones(values_and_gradients):
    _, arrays = frozen_network_cases.objective()
    assert relative_error(values_and_gradients[1], arrays["lpips/value"]) < 1e-5


def test_gradients_flow_to_the_images_alone(values_and_gradients):
    of_params, of_x, of_y = values_and_gradients[0]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_params))
    assert np.isfinite(of_x).all() and np.all(np.any(of_x, axis=(1, 2, 3)))
    assert np.isfinite(of_y).all() and np.all(np.any(of_y, axis=(1, 2, 3)))


@pytest.fixture(scope="module")
def small():
    """A narrow LPIPS for what does not depend on the widths."""
    module = nets.LPIPS(widths=((4, 4), (4,), (4,), (8,), (8,)))
    return module, jax.jit(module.init_params)(jax.random.key(0))


def test_where_no_feature_responds_the_gradient_is_finite():
    features = np.zeros((1, 1, 2, 4), np.float32)
    features[0, 0, 0] = 1e-30  # Its square is 0.
    out, backwards = jax.vjp(_normalize, features)
    assert np.isfinite(out).all() and np.isfinite(backwards(jnp.ones_like(out))[0]).all()


def test_distance_is_of_each_image_and_zero_to_itself(small):
    module, params = small
    x = np.random.default_rng(0).uniform(-1, 1, (3, 16, 32, 3)).astype(np.float32)
    y = x * np.array([1, 0.5, 1], np.float32)[:, None, None, None]
    value = jax.jit(nets.lpips, static_argnums=3)(params, x, y, module)
    assert value.shape == (3,) and value[0] == value[2] == 0 and value[1] != 0


def test_bfloat16_convolutions_with_float32_distances(small):
    module, params = small
    x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    distance = jax.jit(nets.lpips, static_argnums=3)
    exact = distance(params, x, -x, module)
    rough = distance(params, x, -x, module.clone(dtype=jnp.bfloat16))
    assert rough.dtype == jnp.float32 and 0 < relative_error(rough, exact) < 0.05


@pytest.mark.parametrize("shapes", [((1, 8, 32, 3), (1, 8, 32, 3)), ((1, 32, 32, 3), (2, 32, 32, 3))])
def test_images_that_cannot_be_compared_are_refused(small, shapes):
    module, params = small
    x, y = map(jnp.zeros, shapes)
    with pytest.raises(ValueError, match="equal shapes with sides of at least 16 pixels"):
        nets.lpips(params, x, y, module)


def test_every_published_array_converts():
    manifests = published_checkpoints.read_json("frozen_manifests.json.gz")
    shapes = manifests["vgg16_torchvision"] | manifests["lpips_lins"] | {"classifier.0.weight": (4096, 25088)}
    state = {name: jax.ShapeDtypeStruct(tuple(shape), np.float32) for name, shape in shapes.items()}
    module = nets.LPIPS()
    params = jax.eval_shape(lambda state: convert.lpips_params(state, module), state)
    expected = jax.eval_shape(module.init_params, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)


def test_one_error_lists_all_that_differs():
    state = frozen_network_cases.lpips_state()
    state["features.30.weight"] = np.zeros(3, np.float32)
    state["features.0.weight"] = np.zeros((64, 1, 3, 3), np.float32)
    del state["lin3.model.1.weight"]
    with pytest.raises(convert.ConversionError) as error:
        convert.lpips_params(state, nets.LPIPS())
    message = str(error.value)
    assert "unknown in the source (1):\n  features.30.weight" in message
    assert "missing in the source (1):\n  lin3.model.1.weight (1, 512, 1, 1)" in message
    assert "features.0.weight: source (64, 1, 3, 3), expected (64, 3, 3, 3)" in message
