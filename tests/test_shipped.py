"""The shipped model: it loads, reconstructs as its card says, and its classes differ as they should."""

import jax
import numpy as np
import pytest

from eqjax import load_pretrained, pixels, pretrained
from eqjax.data import default_config, eval_batches, make_iterator
from eqjax.data.photos import DEMO_CLASSES
from eqjax.evaluation import image_metrics


@pytest.fixture(scope="module")
def model():
    return load_pretrained("photos")


def crops(width):
    config = default_config()
    # The scales of the configurations: a crop twice as wide is half as high, as a share of the largest that fits.
    scales = dict(min_scale=0.25, max_scale=0.6) if width == 64 else dict(min_scale=0.5)
    config.update(width=width, classes=DEMO_CLASSES, **scales)
    return config


def test_what_it_is(model):
    assert model.class_names == DEMO_CLASSES
    assert model.tokenizer.halo_columns is not None
    assert model.tokenizer.embed_dim == model.generator.latent_dim


def test_reconstruction(model):
    config = crops(64)
    with make_iterator(config, batch_size=32, seed=1, process_index=0, process_count=1) as data:
        seen = next(data)["image"]
    held_out = eval_batches(config, batch_size=32, num_images=32, process_index=0, process_count=1)[0]["image"]
    values = {}
    for name, images in (("training", seen), ("held-out", held_out)):
        out = model.decode(model.encode(images))
        values[name] = float(np.mean(image_metrics.psnr(pixels.from_uint8(images), pixels.from_uint8(out))))
    # The card's figures (over more crops) less one decibel.
    assert values["training"] > 27.0 - 1 and values["held-out"] > 28.4 - 1, values


def test_samples_have_their_class_colors(model):
    """Every panorama is nearest in mean color and contrast to crops of its own photograph, most of the time."""
    images = np.asarray(
        model.sample(np.arange(len(DEMO_CLASSES)), num_columns=24, guidance_scale=2.0, num_flow_steps=10), np.float32
    )
    with make_iterator(crops(128), batch_size=128, seed=1, process_index=0, process_count=1) as data:
        batch = next(data)

    def features(pictures):
        pictures = np.asarray(pictures, np.float32)
        return np.concatenate([pictures.mean((1, 2)), pictures.std((1, 2))], axis=-1)

    real = features(batch["image"])
    centers = np.stack([real[batch["label"] == k].mean(0) for k in range(len(DEMO_CLASSES))])
    nearest = np.linalg.norm(features(images)[:, None] - centers[None], axis=-1).argmin(-1)
    assert (nearest == np.arange(len(DEMO_CLASSES))).mean() >= 0.6, nearest


def test_a_long_panorama_is_decoded_in_pieces_with_the_same_pixels(model):
    latents = jax.random.normal(jax.random.key(0), (1, 110, model.generator.latent_dim))
    tokenizer, params = model.tokenizer, model.tokenizer_params
    whole = tokenizer.apply({"params": params}, latents / model.latent_scale, method="decode").images
    difference = np.abs(np.asarray(model.decode(latents), np.int32) - np.asarray(pixels.to_uint8(whole), np.int32))
    assert difference.max() <= 1  # Rounding of values next to a half.


def test_sizes():
    path = pretrained.resolve_path("photos")
    weights = pretrained.load(path)
    assert "generator after" in weights.notes and "tokenizer after" in weights.notes
