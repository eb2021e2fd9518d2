"""PatchGAN: what its norms show of an image, and the spectral norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.tokenizer.discriminator import PatchDiscriminator, SpectralImageConv


def spread_of_logits(norm):
    """At half the amplitude, over that at the whole."""
    network = PatchDiscriminator(channels=8, num_layers=2, norm=norm)

    @jax.jit
    def spreads(key):
        noise = jax.random.normal(key, (2, 32, 32, 3))
        variables = network.init(key, noise)
        # Biases would hide that everything is in proportion.
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.zeros_like(x) if path[-1].key == "bias" else x, variables["params"]
        )
        variables = {**variables, "params": params}
        return [jnp.std(jnp.asarray(network.apply(variables, scale * noise))) for scale in (0.5, 1.0)]

    half, whole = spreads(jax.random.key(0))
    return float(half / whole)


def test_statistics_of_a_batch_hide_how_much_detail_it_has_and_spectral_norms_do_not():
    """The first layer has no statistics, but those after it divide by whatever energy passes it."""
    assert spread_of_logits("batch") == pytest.approx(1.0, rel=1e-2)
    assert spread_of_logits("spectral") == pytest.approx(0.5, rel=1e-4)


def test_power_iterations_find_the_largest_singular_value():
    layer, x = SpectralImageConv(6), jnp.ones((1, 8, 8, 3))
    variables = layer.init(jax.random.key(0), x)
    before = np.asarray(variables["spectral"]["u"])
    for _ in range(100):
        _, changed = layer.apply(variables, x, mutable=["spectral"])
        variables = {**variables, **changed}
    out = np.asarray(layer.apply(variables, x))
    kernel = np.asarray(variables["params"]["kernel"])
    largest = np.linalg.svd(kernel.reshape(-1, 6), compute_uv=False)[0]
    # At (4, 4) the kernel lies on ones alone.
    assert np.allclose(out[0, 4, 4], kernel.sum((0, 1, 2)) / largest, rtol=1e-4)
    assert out.shape == (1, 7, 7, 6) and not np.allclose(before, np.asarray(variables["spectral"]["u"]))


def test_the_size_of_kernels_does_not_matter():
    network, images = PatchDiscriminator(8, 2, "spectral"), jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    variables = network.init(jax.random.key(0), images)
    larger = {**variables, "params": jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, variables["params"])}
    logits = [np.asarray(network.apply(each, images)) for each in (variables, larger)]
    assert np.allclose(*logits, rtol=1e-4, atol=1e-6)
