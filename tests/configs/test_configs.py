"""Every shipped configuration: its fields, its model at no cost, its variants."""

import importlib
import pathlib

import jax
import pytest

from eqjax import config_files, pretrained
from eqjax.training import optim
from eqjax.training.config import check_config

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
VARIANTS = {
    "photos_tokenizer": [None, "tiny", "quick", "style=published", "tiny,style=published", "gan", "stage2"],
    "imagenet_tokenizer": [
        None,
        "stage2",
        "style=strict",
        "precision=bfloat16",
        "tiny",
        "tiny,stage2",
        "tiny,style=strict",
    ],
    "photos_generator": [None, "tiny", "quick"],
    "imagenet_generator": ["size=S", "size=B", None, "size=H,precision=bfloat16,remat=full", "tiny"],
    "places_generator": [None, "remat=projections", "tiny"],
}


def test_every_file_is_listed():
    assert sorted([*VARIANTS, "comparison"]) == NAMES  # A comparison is no trainer's.


@pytest.mark.parametrize(("name", "variant"), [(name, v) for name, variants in VARIANTS.items() for v in variants])
def test_shapes(name, variant):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    if config.data.source == "folder":
        config.data.root = "the user's"
    check_config(config, config.trainer)
    optim.make_schedule(config.optimizer, config.total_steps)
    module = pretrained.build_module(config.trainer, dict(config[config.trainer]))
    params = pretrained.abstract_params(module)
    matrices = optim.muon_dimension_numbers if config.trainer == "tokenizer" else None
    optimizer, _ = optim.make_optimizer(config.optimizer, config.total_steps, matrices)
    jax.eval_shape(optimizer.init, params)
    if config.trainer == "tokenizer":
        assert (module.resolution, config.data.width % module.column_width) == (config.data.height, 0)
        strict = "strict" in (variant or "") or (name.startswith("photos") and "published" not in (variant or ""))
        assert (module.halo_columns is not None) == strict
    else:
        labels = jax.ShapeDtypeStruct((2,), "int32")
        latents = jax.ShapeDtypeStruct((2, 8, module.latent_dim), "float32")
        loss = jax.eval_shape(
            lambda p, z, y: module.apply({"params": p}, z, y, method="loss", rngs=jax.random.key(0)),
            params,
            latents,
            labels,
        )
        assert loss.shape == ()


PAIRS = {
    "photos_generator": "photos_tokenizer",
    "imagenet_generator": "imagenet_tokenizer",
    "places_generator": "imagenet_tokenizer",
}


@pytest.mark.parametrize(("second", "first"), PAIRS.items())
def test_tiny_stages_fit_each_other(second, first):
    configs = [importlib.import_module(f"configs.{name}").get_config("tiny") for name in (first, second)]
    module = pretrained.build_module("tokenizer", dict(configs[0].tokenizer))
    data, model = configs[1].data, configs[1].generator
    assert (model.latent_dim, data.height, data.width % module.column_width) == (module.embed_dim, module.resolution, 0)
    assert data.photo_classes == configs[0].data.photo_classes and len(data.photo_classes) == model.num_classes
    assert not configs[1].tokenizer_weights  # None that would not fit.
    recipe = importlib.import_module(f"configs.{second}").__doc__ or ""
    assert f"--config={first}:tiny" in recipe and f"--config={second}:tiny" in recipe


def test_demo_model_is_small():
    sizes = 0
    for name in ("photos_tokenizer", "photos_generator"):
        config = importlib.import_module(f"configs.{name}").get_config()
        params = pretrained.abstract_params(pretrained.build_module(config.trainer, dict(config[config.trainer])))
        sizes += sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 2 * sizes < 25e6  # Bytes in half precision.


def test_published_generators():
    """Sizes in millions of parameters, and the recipe at a batch of 2048."""
    for size, millions in (("S", 127.3), ("B", 295.6), ("L", 644.5), ("H", 1203.2)):
        config = importlib.import_module("configs.imagenet_generator").get_config(f"size={size}")
        params = pretrained.abstract_params(pretrained.build_module("generator", dict(config.generator)))
        assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6, 1) == millions
    places = importlib.import_module("configs.places_generator").get_config()
    assert (places.generator.width, places.generator.num_classes, places.sampling.guidance_scale) == (1024, 30, 7.0)
    recipe = config.optimizer
    assert (config.total_epochs, recipe.warmup_epochs, recipe.grad_clip_norm, recipe.ema_decay) == (
        1200,
        100,
        3.0,
        0.9999,
    )
    assert recipe.learning_rate * config.batch_size / recipe.lr_reference_batch_size == pytest.approx(8e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos_tokenizer:style=loose", "style='loose' in ':style=loose' is not one of"),
        ("imagenet_tokenizer:precision=float16", "precision='float16' .* is not one of"),
        ("imagenet_generator:size=XL", "size='XL' in ':size=XL' is not one of"),
        ("places_generator:size=S", "unknown variant 'size'"),
    ],
)
def test_variants_are_strict(name, message):
    with pytest.raises(ValueError, match=message):
        config_files.load(name)


def test_an_unknown_rematerialization_is_refused_by_the_module():
    config = config_files.load("imagenet_generator:remat=some")
    with pytest.raises(ValueError, match="generator.remat='some' must be one of .*projections"):
        pretrained.build_module("generator", dict(config.generator))
