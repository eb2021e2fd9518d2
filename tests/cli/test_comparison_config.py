"""Configurations of comparisons: the shipped ones, and what is wrong with others."""

import pytest

from eqjax import config_files
from eqjax.cli import comparison_config
from eqjax.cli.comparison_config import check_comparison, protocol, training_config


@pytest.fixture(name="config")
def _config():
    return config_files.load("comparison:tiny")


@pytest.mark.parametrize("variant", ["", ":equivariance", ":tiny", ":equivariance,tiny"])
def test_shipped_comparisons_are_right(variant):
    config = config_files.load(f"comparison{variant}")
    check_comparison(config)
    assert {"published", "strict"} <= set(config.tokenizers) and config.num_seeds >= 2
    for name in config.tokenizers:
        training = training_config(config, name, seed=3)
        assert training.seed == 3 and training.data.height == training.tokenizer.resolution == 32
        assert training.data.width == 8 * config.num_columns and training.total_steps == config.tokenizer_steps
    assert training_config(config, "published", 0).tokenizer.norm == "group"
    assert training_config(config, "strict", 0).tokenizer.norm == "pixel"


def test_defaults_are_not_shared():
    comparison_config.comparison_config().tokenizers["mine"] = {}
    comparison_config.comparison_config().training.batch_size = 4
    fresh = comparison_config.comparison_config()
    assert fresh.tokenizers == {} and "batch_size" not in fresh.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(num_columns=3), "num_columns=3 must be an integer ≥ 4"),
        (lambda c: c.update(anchored=("stric",)), "anchored: 'stric' is none of the tokenizers.*strict"),
        (lambda c: c.generators.clear(), "generators is empty"),
        (lambda c: c.generators.update(wide={"widht": 3}), "generators.wide cannot set 'widht'.*width"),
        (lambda c: c.generator.update(latent_dim=3), "cannot set 'latent_dim'"),
        (lambda c: c.tokenizers.update(odd={"tokenizer": {"norm": "batch"}}), "tokenizers.odd: tokenizer.norm='batch'"),
        (lambda c: c.tokenizers.update(odd={"losses": 3}), "tokenizers.odd: a tokenizer's .* has no field losses"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_trained(config, change, message):
    change(config)
    with pytest.raises(ValueError, match=message):
        check_comparison(config)


def test_results_belong_to_their_own_models_alone(config):
    """Seeds, and other models, may be added without computing again."""
    before = protocol(config, "strict", False, "window 3")
    config.num_seeds = 9
    config.tokenizers["mine"], config.generators["other"] = {}, {"window_size": 2}
    assert protocol(config, "strict", False, "window 3") == before
    others = [protocol(config, "published", False, "window 3"), protocol(config, "strict", True, "window 3")]
    others += [protocol(config, "strict", False, "full causal")]
    config.training.batch_size = 4
    others += [protocol(config, "strict", False, "window 3")]
    assert before not in others
