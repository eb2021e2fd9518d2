"""The canonicalizer of warps: warped images become the image that is spread evenly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from eqjax.equivariance import CanonicalCodec, Codec, ColumnGeometry, WarpCanonicalizer, act_image, warps
from eqjax.equivariance.canonicalize import inverses, place

GEOMETRY = ColumnGeometry(8)


@pytest.fixture(scope="module", name="image")
def _image():
    picture = skimage.data.astronaut()[::8, 64:320] / 127.5 - 1
    smooth = np.mean([np.roll(picture, k, 1) for k in range(-3, 4)], axis=0)
    return jnp.asarray(smooth[None], jnp.float32)


@pytest.mark.slow
def test_warped_images_have_one_canonical_image(image):
    canonicalizer = WarpCanonicalizer(GEOMETRY, intervals=16)

    @jax.jit
    def canonical(images):
        return place(GEOMETRY, inverses(canonicalizer.element(images)), images)

    def difference(a, b):
        inside = slice(16, -16)
        return float(jnp.sqrt(jnp.mean(jnp.square(a - b)[:, :, inside])))

    expected = canonical(image)
    for seed in range(2):
        warped = act_image(GEOMETRY, warps(256, knots=8, strength=0.5).sample(jax.random.key(seed)), image)[0]
        assert difference(canonical(warped), expected) < 0.5 * difference(warped, image)


def test_even_images_stay_as_they_are():
    even = jnp.sin(jnp.arange(64.0))[None, None, :, None] * jnp.ones((1, 2, 1, 3))
    warp = WarpCanonicalizer(GEOMETRY, intervals=4).element(even).warp
    assert warp is not None
    np.testing.assert_allclose(warp.source, warp.target, atol=1.5)


@pytest.mark.slow
def test_images_come_back_from_their_canonical_form(image):
    codec = Codec(lambda x: x.reshape(len(x), 64, -1, 8, 3).transpose(0, 2, 1, 3, 4).reshape(len(x), -1, 1536),
                  lambda z: z.reshape(len(z), -1, 64, 8, 3).transpose(0, 2, 1, 3, 4).reshape(len(z), 64, -1, 3),
                  GEOMETRY)  # fmt: skip
    canonical = CanonicalCodec(codec, WarpCanonicalizer(GEOMETRY, intervals=16))
    restored = canonical.decode(canonical.encode(image))
    assert float(jnp.abs(restored - image).mean()) < 0.05
