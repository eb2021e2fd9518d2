"""DINO and DINOv2 against recorded features, their gradients, and their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import convert, nets
from eqjax.nets.vit import resample_positions
from tests import frozen_network_cases, published_checkpoints, reference_weights
from tests.golden_cases import relative_error


@pytest.fixture(scope="module")
def dino():
    """(features, gradients of their sums of squares to parameters and images)."""
    module, params = frozen_network_cases.dino_case()

    def total(params, images):
        features = nets.dino_features(params, images, module)
        return sum(jnp.sum(jnp.square(f)) for f in features), features

    images = reference_weights.image("disc", (2, 224, 224, 3))
    gradients, features = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, images)
    return features, gradients


def test_dino_features_equal_recorded_ones(dino):
    arrays = frozen_network_cases.objective()[1]
    assert [f.shape for f in dino[0]] == [(2, 196, 64)] * 5
    for i, features in enumerate(dino[0]):
        recorded = arrays[f"disc/features_{i}"]  # Every 8th channel, every 14th position of [B, C, N].
        assert relative_error(features.transpose(0, 2, 1)[:, ::8, ::14], recorded) < 1e-5


def test_gradients_flow_to_the_images_alone(dino):
    of_params, of_images = dino[1]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_params))
    assert np.isfinite(of_images).all() and np.all(np.any(of_images, axis=(1, 2, 3)))


@pytest.fixture(scope="module")
def small():
    """A two-block ViT on 2×2 patches, for what does not depend on sizes."""
    module = nets.ViT(width=8, depth=2, num_heads=2, patch_size=4, grid=2, intermediate_layers=(0, 1, 2))
    params = jax.jit(module.init_params)(jax.random.key(0))
    params["class_token"] = params["class_token"] + 0.5
    return module, params


def test_other_sizes_are_resized_by_area_where_higher_and_else_bicubically(small):
    module, params = small
    for shape, method in [((12, 16), "area"), ((6, 16), "bicubic"), ((8, 6), "bicubic")]:
        images = jax.random.uniform(jax.random.key(1), (1, *shape, 3), minval=-1)
        np.testing.assert_array_equal(nets.dino_resize(images, 8), nets.resize(images, (8, 8), method))
    expected = nets.dino_features(params, nets.dino_resize(images, 8), module)
    jax.tree.map(np.testing.assert_array_equal, nets.dino_features(params, images, module), expected)


def test_intermediate_features_are_those_of_a_shorter_network(small):
    module, params = small
    images = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3), minval=-1)
    full = nets.dino_features(params, images, module)
    first = params | {"blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
    short = nets.dino_features(first, images, module.clone(depth=1, intermediate_layers=(1, 0)))
    np.testing.assert_allclose(short[0], full[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(short[1], full[0], rtol=1e-5, atol=1e-6)
    assert np.abs(full[1] - full[0]).max() > 1e-3 and np.abs(full[2] - full[1]).max() > 1e-3


def test_bfloat16_products_with_float32_tokens(small):
    module, params = small
    images = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3), minval=-1)
    exact = nets.dino_features(params, images, module)
    for rough, reference in zip(
        nets.dino_features(params, images, module.clone(dtype=jnp.bfloat16)), exact, strict=True
    ):
        assert rough.dtype == jnp.float32 and 0 < relative_error(rough, reference) < 0.02


@pytest.fixture(scope="module")
def dinov2():
    module, params = frozen_network_cases.dinov2_case()
    return params, jax.jit(lambda params, images: nets.dinov2_targets(params, images, module))


def test_dinov2_targets(dinov2):
    params, targets = dinov2
    out = targets(params, reference_weights.image("obj", (2, 256, 256, 3)))
    assert out.shape == (2, 16, 16, 64)
    recorded = frozen_network_cases.objective()[1]["dinov2/features"]  # Every 16th patch.
    assert relative_error(out.reshape(2, 256, 64)[:, ::16], recorded) < 1e-5


def test_a_target_is_a_constant_of_one_vector_per_16_pixels(small):
    module, params = small
    module = module.clone(intermediate_layers=(), layer_scale=True, approximate_gelu=True)
    params = jax.jit(module.init_params)(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (1, 48, 32, 3), minval=-1)

    def total(images):
        out = nets.dinov2_targets(params, images, module)
        return jnp.square(out).sum(), out

    gradient, out = jax.jit(jax.grad(total, has_aux=True))(images)
    assert out.shape == (1, 3, 2, 8) and np.any(out) and not np.any(gradient)


def test_sides_that_16_does_not_divide_are_refused(small):
    with pytest.raises(ValueError, match="48×40 pixels.*16 divides"):
        nets.dinov2_targets(small[1], jnp.zeros((1, 48, 40, 3)), small[0])


def test_images_that_do_not_divide_into_patches_are_refused(small):
    module, params = small
    with pytest.raises(ValueError, match="8×10 pixels do not divide into patches of 4×4"):
        module.apply({"params": params}, jnp.zeros((1, 8, 10, 3)))


def test_positions_of_the_own_square_are_untouched_and_the_class_keeps_its_own():
    positions = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    assert resample_positions(positions, (3, 3)) is positions
    out = resample_positions(positions, (2, 5))
    assert out.shape == (11, 4)
    np.testing.assert_array_equal(out[0], positions[0])


# --- Weights -----------------------------------------------------------------------------------------


def test_key_biases_are_zeroed_and_no_others():
    _, params = frozen_network_cases.dino_case()
    bias, state = params["blocks"]["qkv"]["bias"], frozen_network_cases.dino_state()
    assert bias.shape == (12, 3, 2, 32) and not bias[:, 1].any()
    recorded = state["blocks.7.attn.qkv.bias"].reshape(3, 2, 32)
    np.testing.assert_array_equal(bias[7, [0, 2]], recorded[[0, 2]])


@pytest.mark.parametrize(
    ("name", "module", "params_of"),
    [
        ("dino_deitsmall16", nets.DINO_S16, convert.dino_params),
        ("dinov2_vitb14", nets.DINOV2_B14, convert.dinov2_params),
    ],
)
def test_every_published_array_converts(name, module, params_of):
    shapes = published_checkpoints.read_json("frozen_manifests.json.gz")[name]
    state = {key: jax.ShapeDtypeStruct(tuple(shape), np.float32) for key, shape in shapes.items()}
    params = jax.eval_shape(lambda state: params_of(state, module), state)
    expected = jax.eval_shape(module.init_params, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)
    with pytest.raises(convert.ConversionError, match=r"missing in the source \(1\):\n  cls_token \(1, 1, \d+\)$"):
        params_of({key: value for key, value in state.items() if key != "cls_token"}, module)


def test_weights_of_the_other_network_are_refused():
    with pytest.raises(convert.ConversionError, match="unknown in the source"):
        convert.dino_params(frozen_network_cases.dinov2_state(), nets.DINO_S16)
