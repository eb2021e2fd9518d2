"""Configurations: complete defaults, checks of fields and ranges, command lines, epochs to steps."""

from absl import flags
import jax
from ml_collections import config_flags
import numpy as np
import pytest

from eqjax import config_fields, config_files, module_fields, pretrained
from eqjax.sampling.options import SamplingOptions
from eqjax.training import optim
from eqjax.training.config import (
    check_config,
    check_length,
    ema_start_weight,
    generator_config,
    resolve,
    tokenizer_config,
)

CONFIGS = {"tokenizer": tokenizer_config, "generator": generator_config}


def count_millions(params):
    return round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_default_fields_of_a_module_are_its_own(name):
    defaults = pretrained.module_to_dict({"tokenizer": pretrained.Tokenizer, "generator": pretrained.Generator}[name]())
    module = pretrained.build_module(name, dict(CONFIGS[name]()[name]))
    assert dict(CONFIGS[name]()[name]).keys() == defaults.keys()
    # A generator without rematerialization is written in two ways.
    assert {**pretrained.module_to_dict(module), "remat": False} == {**defaults, "remat": False}


def test_defaults_are_the_published_full_size():
    tokenizer = pretrained.build_module("tokenizer", dict(tokenizer_config().tokenizer))
    assert (tokenizer.resolution, tokenizer.column_width, tokenizer.embed_dim) == (256, 16, 256)
    params = pretrained.abstract_params(tokenizer)
    assert (count_millions(params["encoder"]), count_millions(params["decoder"])) == (86.1, 121.5)
    generator = pretrained.build_module("generator", dict(generator_config().generator))
    assert count_millions(pretrained.abstract_params(generator)) == 644.5


def test_default_sampling_options_are_those_of_the_sampler():
    assert config_fields.make(module_fields.SAMPLING).to_dict() == SamplingOptions().to_dict()


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_pass_the_check_and_another_trainers_configuration_does_not(name):
    check_config(CONFIGS[name](), name)
    (other,) = CONFIGS.keys() - {name}
    message = rf"this is a {name}'s configuration .*, and this trains a {other}: use eqjax train-{name}, or"
    with pytest.raises(ValueError, match=message):
        check_config(CONFIGS[name](), other)


def test_unknown_missing_and_wrong_fields_are_named_in_one_error():
    config = generator_config()
    with config.unlocked():
        config.optimizer.lerning_rate = 0.9
        del config.sampling.solver
        config.metrics = None
    config.batch_size = 0
    with pytest.raises(ValueError, match="4 fields of a generator's configuration are wrong") as error:
        check_config(config, "generator")
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert "batch_size=0 must be an integer ≥ 1." in lines
    assert any("has no field optimizer.lerning_rate; did you mean 'learning_rate'?" in line for line in lines)
    assert any("lacks sampling.solver: ODE solver" in line for line in lines)
    assert any("metrics=None must be a section with the fields every, num_images" in line for line in lines)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(accumulation_steps=3), "batch_size=256 is not a multiple of accumulation_steps=3"),
        (dict(log_every=-1), r"log_every=-1 must be an integer ≥ 1, or None \(off\)"),
        (dict(keep_best="eval_loss:min", eval_every=None), "keep_best='eval_loss:min' needs .* eval_every is None"),
        (dict(keep_best="eval_loss"), "keep_best='eval_loss' must be 'name:min' or 'name:max'"),
        (dict(total_epochs=0.0), r"total_epochs=0.0 must be a finite number > 0, or None \(total_steps counts\)"),
        (dict(optimizer={"warmup_epochs": -1.0}), "optimizer.warmup_epochs=-1.0 must be a finite number ≥ 0, or None"),
        (dict(optimizer={"learning_rate": -1e-4}), "optimizer.learning_rate=-0.0001 must be a finite number ≥ 0 and"),
        (dict(data={"source": "folder"}), "needs data.root"),
    ],
)
def test_values_out_of_range_or_in_contradiction_are_refused(values, message):
    config = generator_config()
    config.update(values)
    with pytest.raises(ValueError, match=message):
        check_config(config, "generator")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("log_every=None", None),
        ("log_every=7", 7),
        ("keep_every=500", 500),
        ("total_epochs=1.5", 1.5),
        ("keep_best=eval_loss:min", "eval_loss:min"),
        ("keep_best=", ""),
        ("optimizer.grad_clip_norm=None", None),
        ("optimizer.grad_clip_norm=2.5", 2.5),
        ("generator.window_size=None", None),
        ("generator.remat=projections", "projections"),
        ("sampling.max_position=12", 12),
        ("loss_columns=(0, 2)", (0, 2)),
    ],
)
def test_a_command_line_sets_optional_fields_and_turns_them_off(argument, value):
    values, argv = flags.FlagValues(), ["program", f"--config.{argument}"]
    config_flags.DEFINE_config_dict("config", generator_config(), flag_values=values, sys_argv=argv)
    values(argv)
    config = values.config
    check_config(config, "generator")
    for name in argument.split("=")[0].split("."):
        config = config[name]
    assert config == value and type(config) is type(value)


def small_data(config):
    """Three photographs of 100 records each: 150 steps of 2 images per epoch."""
    config.data.update(source="photos", classes=("brick", "coffee", "cat"), height=16, width=16)
    config.batch_size = 2
    return config


def test_epochs_become_steps_and_learning_rates_scale_with_the_batch():
    config = small_data(tokenizer_config())
    config.total_epochs = 100.0
    config.optimizer.update(learning_rate=1e-4, lr_reference_batch_size=256, warmup_epochs=1.5)
    config.discriminator_optimizer.update(learning_rate=2e-4, lr_reference_batch_size=4, warmup_epochs=0.0)
    resolved = resolve(config)
    assert resolved.total_steps == 15_000
    assert (resolved.optimizer.warmup_steps, resolved.discriminator_optimizer.warmup_steps) == (225.0, 0.0)
    assert resolved.optimizer.learning_rate == pytest.approx(1e-4 * 2 / 256)
    assert resolved.discriminator_optimizer.learning_rate == pytest.approx(1e-4)


def test_resolving_twice_changes_nothing():
    config = small_data(generator_config())
    config.total_epochs = 2.0
    config.optimizer.update(lr_reference_batch_size=256, warmup_epochs=1.0)
    resolved = resolve(config)
    check_config(resolved, "generator")
    assert resolve(resolved).to_dict() == resolved.to_dict() != config.to_dict()


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
def test_the_weight_of_the_random_start_is_the_product_of_the_decays(decay, warmup):
    config = generator_config().optimizer
    config.update(ema_decay=decay, ema_warmup=warmup)
    for num_steps in (0, 1, 5, 40):
        decays = [float(optim.ema_decay(config, step)) for step in range(1, num_steps + 1)]
        assert ema_start_weight(config, num_steps) == pytest.approx(np.prod(decays), rel=1e-4)


def test_runs_too_short_for_their_ema_are_refused_and_short_ones_warned(caplog):
    config = generator_config()
    config.optimizer.update(ema_decay=0.995, ema_warmup=False, warmup_steps=0.0)
    config.total_steps = 150
    message = r"47.1 % of the EMA.* optimizer.ema_decay=0.995 is long for total_steps=150\. Set .*ema_warmup=True"
    with pytest.raises(ValueError, match=message):
        check_length(config)
    config.optimizer.ema_warmup = True
    for config.total_steps in (1, 150):
        check_length(config)
    assert not caplog.records
    config.optimizer.update(ema_warmup=False, warmup_steps=1000.0)
    config.total_steps = 800
    check_length(config)
    assert "1.81 % of the EMA weights" in caplog.text and "ends at 0.8 of optimizer.learning_rate" in caplog.text
    config.total_steps = 0  # Exports the start on purpose.
    check_length(config)


def test_published_recipes_have_the_published_ema_and_others_a_warm_up():
    expected = {"imagenet_generator": False, "places_generator": False, "imagenet_generator:tiny": True}
    expected |= {"photos_generator": True, "photos_generator:tiny": True, "imagenet_tokenizer": True}
    assert {name: config_files.load(name).optimizer.ema_warmup for name in expected} == expected
    for name in (name for name in config_files.names() if name != "comparison"):
        for variant in ("", ":tiny"):
            config = config_files.load(name + variant)
            assert ema_start_weight(config.optimizer, config.total_steps) < 1e-3 or config.total_epochs
