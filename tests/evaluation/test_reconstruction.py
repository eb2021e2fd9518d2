"""Reconstruction metrics: SSIM against scikit-image, and a pass over a set."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from eqjax import pixels
from eqjax.evaluation import Extractor, ImageSet, StatisticsError, evaluate_reconstruction
from eqjax.evaluation.image_metrics import psnr, ssim
from eqjax.evaluation.networks import PerceptualDistance
from tests.evaluation import tiny_models


def test_ssim_equals_scikit_image():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 24, 20, 3)).astype(np.float32)
    y = np.clip(x + rng.normal(size=x.shape) * 0.2, -1, 1).astype(np.float32)
    y[1] *= 0.5
    expected = [
        structural_similarity(
            a, b, data_range=2, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(ssim(x, y), expected, atol=2e-5)
    with pytest.raises(ValueError, match="at least 11 × 11 pixels"):
        ssim(x[:, :10], y[:, :10])


def test_a_pass_over_a_set():
    images = np.random.default_rng(0).integers(0, 256, (11, 16, 24, 3), np.uint8)
    images[:, :8] = 100
    source = ImageSet(11, "random", lambda: iter([images[:6], images[6:]]))
    model, extractor = tiny_models.model(), Extractor(tiny_models.network(), per_device_batch_size=2)
    lpips = PerceptualDistance(lambda scale, x, y: scale * jnp.abs(x - y).mean((1, 2, 3)), np.float32(3))
    result = evaluate_reconstruction(model, source, extractor=extractor, lpips=lpips, per_device_batch_size=1)
    out = np.asarray(model.decode(model.encode(images)))
    x, y = pixels.from_uint8(images), pixels.from_uint8(out)
    assert set(result) == {"psnr", "ssim", "lpips", "rfid", "rsfid"}
    assert result["psnr"] == pytest.approx(float(psnr(x, y).mean()), rel=1e-5)
    assert result["ssim"] == pytest.approx(float(ssim(x, y).mean()), rel=1e-4)
    # Other batches may round values next to a half to the other of two gray levels: 1e-6 for each.
    assert result["lpips"] == pytest.approx(float(3 * jnp.abs(x - y).mean()), rel=1e-4)
    assert result["rfid"] > 0
    reference = extractor.collect(source.batches(), 11).statistics
    other = dataclasses.replace(reference, protocol={**reference.protocol, "image_size": [256, 256]})
    with pytest.raises(StatisticsError, match=r"image_size: reference \[256, 256\], here \[16, 24\]"):
        evaluate_reconstruction(model, source, extractor=extractor, reference=other)
