"""The shipped model loads, reconstructs with the quality its card states, and samples images of their classes."""

import json
import re

import jax
import numpy as np
import pytest

from eqjax import load_pretrained, loading, pixels, pretrained
from eqjax.data import default_config, eval_batches, make_iterator
from eqjax.data.photos import DEMO_CLASSES
from eqjax.evaluation import image_metrics


@pytest.fixture(scope="module")
def model():
    return load_pretrained("photos")


def crops(width):
    config = default_config()
    # The scales of the tokenizer's configuration; a crop twice as wide is half as high, relative to the largest.
    scales = dict(min_scale=0.4) if width == 128 else dict(min_scale=0.8)
    config.update(height=128, width=width, photo_classes=DEMO_CLASSES, holdout_fraction=0.25, **scales)
    return config


def test_it_has_the_classes_of_its_configuration(model):
    assert model.class_names == DEMO_CLASSES
    assert model.tokenizer.halo_columns is not None
    assert model.tokenizer.embed_dim == model.generator.latent_dim


def test_reconstructions_have_the_quality_of_the_card(model):
    config = crops(128)
    with make_iterator(config, batch_size=32, seed=1, process_index=0, process_count=1) as data:
        seen = next(data)["image"]
    held_out = eval_batches(config, batch_size=32, num_images=32, process_index=0, process_count=1)[0]["image"]
    values = {}
    for name, images in (("training", seen), ("held-out", held_out)):
        out = model.decode(model.encode(images))
        values[name] = float(np.mean(image_metrics.psnr(pixels.from_uint8(images), pixels.from_uint8(out))))
    # The card's figures (over more crops) less one decibel, and more for the few held-out crops, which differ.
    assert values["training"] > 24.2 - 1 and values["held-out"] > 22.2 - 1.5, values


@pytest.mark.slow
def test_samples_have_their_class_colors(model):
    """Every panorama is nearest in mean color and contrast to crops of its own photograph, most of the time."""
    images = np.asarray(
        model.sample(np.arange(len(DEMO_CLASSES)), num_columns=24, guidance_scale=2.0, num_flow_steps=10), np.float32
    )
    with make_iterator(crops(256), batch_size=128, seed=1, process_index=0, process_count=1) as data:
        batch = next(data)

    def features(images):
        images = np.asarray(images, np.float32)
        return np.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=-1)

    real = features(batch["image"])
    centers = np.stack([real[batch["label"] == k].mean(0) for k in range(len(DEMO_CLASSES))])
    nearest = np.linalg.norm(features(images)[:, None] - centers[None], axis=-1).argmin(-1)
    assert (nearest == np.arange(len(DEMO_CLASSES))).mean() >= 0.6, nearest


@pytest.mark.slow
def test_a_long_panorama_is_decoded_in_tiles_with_the_same_pixels(model):
    latents = jax.random.normal(jax.random.key(0), (1, 110, model.generator.latent_dim))
    tokenizer, params = model.tokenizer, model.tokenizer_params
    whole = tokenizer.apply({"params": params}, latents / model.latent_scale, method="decode").images
    difference = np.abs(np.asarray(model.decode(latents), np.int32) - np.asarray(pixels.to_uint8(whole), np.int32))
    assert difference.max() <= 1  # Rounding of values next to a half.


def test_its_notes_hold_the_configurations_of_all_trainings():
    weights = pretrained.load(loading.resolve_path("photos"))
    notes = re.findall(r"^(\w+) after (\d+) steps; config: (.*)$", weights.notes, re.MULTILINE)
    steps = [(name, int(steps)) for name, steps, _ in notes]
    generators, tokenizers = [("generator", 20_000), ("generator", 7000)], [("tokenizer", 7000)] * 2
    assert steps == [*generators, *tokenizers, ("tokenizer", 500)]  # Both generators' files hold stage 1.
    assert not re.search('"/', weights.notes)  # No path of the machine that trained it.
    for name, steps, config in notes:
        config = json.loads(config)
        assert config["total_steps"] == int(steps)
        fields = json.loads(json.dumps(pretrained.module_to_dict(weights.modules[name])))
        assert {key: fields[key] for key in config[name]} == config[name]


def test_it_describes_itself_briefly(model):
    assert repr(model) == (
        "Model(tokenizer: 128 pixels high, columns of 16 pixels, 5.31 M parameters; generator: 4 layers of width 256, "
        f"6.87 M parameters; 9 classes ({', '.join(model.class_names)}))"
    )
