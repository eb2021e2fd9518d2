"""FID's Inception against recorded features, and its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import convert, nets
from eqjax.nets.inception import inception_inputs
from tests import frozen_network_cases
from tests.golden_cases import relative_error


@pytest.fixture(scope="module")
def outputs():
    """(features, outputs of mixed_6d's 1×1 convolution and of mixed_6e) of the recorded images."""
    module, params, arrays = frozen_network_cases.inception_case()

    @jax.jit
    def run(params, images):
        def wanted(module, _):
            return module.path in (("mixed_6d", "branch1x1"), ("mixed_6e",))

        _, seen = module.apply(
            {"params": params}, inception_inputs(images), capture_intermediates=wanted, mutable=["intermediates"]
        )
        convolution = seen["intermediates"]["mixed_6d"]["branch1x1"]["__call__"][0]
        block, _ = seen["intermediates"]["mixed_6e"]["__call__"][0]
        return nets.inception_features(params, images), convolution, block

    return run(params, arrays["images"])


def test_features_against_recorded_arrays(outputs):
    (features, _, block), arrays = outputs, frozen_network_cases.inception_case()[2]
    assert relative_error(block.mean((1, 2)), arrays["features/768"]) < 1e-5
    assert relative_error(features.pool, arrays["features/2048"]) < 1e-5
    assert relative_error(features.logits, arrays["features/logits_unbiased"]) < 1e-5


def test_spatial_features_are_seven_channels_flattened_as_height_width_channel(outputs):
    features, convolution, _ = outputs
    assert convolution.shape == (3, 17, 17, 192) and features.spatial.shape == (3, 2023)
    for row, column, channel in [(0, 0, 0), (0, 1, 6), (5, 2, 3), (16, 16, 6)]:
        place = (row * 17 + column) * 7 + channel
        np.testing.assert_array_equal(features.spatial[:, place], convolution[:, row, column, channel])


def test_images_are_resized_and_scaled_for_the_network():
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    out = inception_inputs(images)
    assert out.shape == (2, 299, 299, 3) and out.dtype == jnp.float32
    np.testing.assert_allclose(out[:, 0, 0], (images[:, 0, 0].astype(float) - 128) / 128, atol=1e-6)
    np.testing.assert_array_equal(out, inception_inputs(images.astype(np.float32)))


def test_outputs_are_float32_for_any_compute_dtype():
    module = nets.Inception(dtype=jnp.bfloat16)
    params = jax.eval_shape(module.init_params, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8)
    out = jax.eval_shape(lambda params, images: nets.inception_features(params, images, module), params, images)
    assert {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(out)} == {
        ((2, size), np.dtype(np.float32)) for size in (1008, 2023, 2048)
    }


# --- Weights -----------------------------------------------------------------------------------------


def abstract_state():
    """{reference name: shape} of the whole published file, counters included."""
    state = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in frozen_network_cases.inception_state().items()}
    return state | {"Mixed_6a.branch3x3.bn.num_batches_tracked": jax.ShapeDtypeStruct((), np.int64)}


def test_every_published_array_converts():
    module = nets.Inception()
    params = jax.eval_shape(lambda state: convert.inception_params(state, module), abstract_state())
    expected = jax.eval_shape(module.init_params, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)


def test_one_error_lists_all_that_differs():
    state = abstract_state()
    state["AuxLogits.fc.weight"] = state["fc.bias"]
    state["fc.weight"] = state["fc.bias"]
    del state["Mixed_7c.branch_pool.bn.running_var"]
    with pytest.raises(convert.ConversionError) as error:
        convert.inception_params(state, nets.Inception())
    message = str(error.value)
    assert "unknown in the source (1):\n  AuxLogits.fc.weight" in message
    assert "missing in the source (1):\n  Mixed_7c.branch_pool.bn.running_var (192,)" in message
    assert "fc.weight: source (1008,), expected (1008, 2048)" in message
