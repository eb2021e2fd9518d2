"""Measures of a comparison: moved reconstructions, losses on what was not trained, sets of images."""

import jax
import numpy as np
import pytest

from eqjax import Generator
from eqjax.equivariance import flips, gaussian_flow_loss
from eqjax.evaluation import generalization, tasks
from eqjax.evaluation.quality import LabeledImages, QualityReference
from tests.equivariance.toy_codecs import columns_codec, photograph_rows
from tests.random_params import random_params

COLUMNS = 4


def uint8(images):
    return np.round(127.5 * (images + 1)).astype(np.uint8)


def reconstruct(images):
    codec = columns_codec()
    return codec.decode(codec.encode(images))


def test_reconstructions_that_move_with_the_crop_have_no_error():
    images = photograph_rows(4, 40)
    error = {s: generalization.shifted_reconstruction_error(reconstruct, images, s, 32, 4) for s in (1, 2, 4)}
    assert error[4] < 1e-5 and error[1] > 0.1 and error[2] > 0.1
    assert generalization.shifted_reconstruction_error(lambda x: x, images, 2, 32, 4) == 0
    # Against the deviation of the reconstructions: noise as large as they are.
    noise = iter(np.random.default_rng(0).normal(size=(2, 4, 16, 32, 3)))
    assert generalization.shifted_reconstruction_error(lambda _: next(noise), images, 0, 32, 0) == pytest.approx(
        np.sqrt(2), rel=0.02
    )


def test_the_measures_of_reconstructions():
    found = generalization.reconstruction_measures(reconstruct, uint8(photograph_rows(4, 36)), stride=4, columns=8)
    assert len(found["moved_reconstruction"]) == 4 and found["moved_reconstruction_column"] < 1e-5
    assert found["moved_reconstruction_within"] == pytest.approx(np.mean(found["moved_reconstruction"][:3]))
    assert 10 < found["psnr_held_out"] < 50
    orbits = generalization.orbit_measures(columns_codec(), uint8(photograph_rows(2, 32)), {"flip": flips()})
    assert orbits["orbit_flip"] == pytest.approx(0, abs=1e-5)


def test_crops_without_overlap_are_refused():
    images = np.zeros((1, 16, 40, 3))
    for shift, width in ((24, 32), (2, 40)):
        with pytest.raises(ValueError, match="needs crops wider than .* the images are 40 pixels wide"):
            generalization.shifted_reconstruction_error(lambda x: x, images, shift, width, 4)


@pytest.mark.parametrize("cross_rope", [False, True])
def test_losses_at_far_indices_are_the_same_without_positions_in_cross_attention(cross_rope):
    generator = Generator(
        width=16, depth=1, num_heads=2, latent_dim=3, num_classes=2, num_cond_tokens=2, window_size=2, flow_width=16,
        flow_depth=1, cross_rope=cross_rope,
    )  # fmt: skip
    params, rng = random_params(generator, 0), np.random.default_rng(0)

    def batches(columns):
        return [(rng.normal(size=(4, columns, 3)).astype("f4"), np.array([0, 1, 0, 1])) for _ in range(2)]

    held_out = batches(COLUMNS)
    found = generalization.loss_measures(generator, params, held_out, batches(2 * COLUMNS), first_inner=2)
    scale = gaussian_flow_loss(np.concatenate([latents for latents, _ in held_out]))
    assert found["held_out_ratio"] == pytest.approx(np.mean(found["held_out_loss"]) / scale)
    assert found["held_out_ratio_inner"] == pytest.approx(np.mean(found["held_out_loss"][2:]) / scale)
    assert (abs(found["far_ratio"] - 1) > 1e-5) == cross_rope
    assert found["length_ratio"] > 0
    trained = tasks.column_losses(generator, params, held_out, jax.random.key(0)).mean
    same = generalization.transfer_measures(generator, params, held_out, trained.tolist(), half=2)
    assert same["transfer"] == pytest.approx(1) and same["transfer_trained"] == pytest.approx(1)
    other = generalization.transfer_measures(generator, params, held_out, [1.0, 1.0, 0.5, 0.5], half=2)
    assert other["transfer"] == pytest.approx(2 * trained[2:].mean(), rel=1e-6)


def test_sets_of_images_are_compared_with_real_ones():
    rng = np.random.default_rng(0)
    dark, bright = rng.integers(0, 99, (8, 32, 64, 3), np.uint8), rng.integers(99, 255, (8, 32, 64, 3), np.uint8)
    real = LabeledImages(np.concatenate([dark, bright]), np.repeat([0, 1], 8))
    swapped = LabeledImages(real.images[::-1], real.labels)
    gray = LabeledImages(real.images // 2, real.labels)
    found = generalization.image_set_measures(
        QualityReference(real, column_width=8), {"same": real, "swapped": swapped, "gray": gray}
    )
    assert found["frechet_same"] == pytest.approx(0, abs=1e-6) and found["frechet_gray"] > 1
    assert found["recognized_same"] == 1 and found["recognized_swapped"] == 0
