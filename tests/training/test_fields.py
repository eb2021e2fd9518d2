"""Every field of every shipped configuration, set to wrong values: one error that names it, or a reason to accept."""

import pytest

from eqjax import config_fields, config_files
from eqjax.generator.layers import remat_policy
from eqjax.module_fields import REMAT
from eqjax.rules import Boolean, Choice, Text
from eqjax.tokenizer.losses import DISCRIMINATOR_LOSSES
from eqjax.training.config import TABLES, check_config

NAMES = [name for name in config_files.names() if name != "comparison"]  # Which trains several.
WRONG = {
    "nan": float("nan"),
    "infinite": float("inf"),
    "negative": -1,
    "zero": 0,
    "huge": 10**30,
    "boolean": True,
    "text": "no such value",
    "empty text": "",
    "None": None,
    "nested": [[1], {}],
    "object": object(),
}
# Fields that may be 0, on purpose: nothing, off, from the first step on.
MAY_BE_ZERO = {
    "seed", "total_steps", "learning_rate", "warmup_steps", "warmup_epochs", "final_lr_ratio", "b1", "b2",
    "weight_decay", "ema_decay", "kl_weight", "l2_weight", "seam_weight", "spectrum_weight", "perceptual_weight",
    "semantic_weight", "semantic_start", "adversarial_weight", "adversarial_start", "square_downsamples",
    "attention_window",
    "posterior_std", "dropout_rate", "label_dropout_rate", "context_noise", "guidance_scale", "temperature",
    "max_position",
    "implicit_probability", "explicit_weight", "start", "soft_steps", "collapse_threshold", "stereo_weight",
    "num_threads", "num_workers", "max_corrupt_fraction", "holdout_fraction",
}  # fmt: skip
# Numbers without an upper bound, of which 10**30 is one.
UNBOUNDED = {
    "total_epochs", "warmup_steps", "warmup_epochs", "decay_every", "weight_decay", "grad_clip_norm", "kl_weight",
    "l2_weight", "seam_weight", "spectrum_weight", "perceptual_weight", "semantic_weight", "adversarial_weight",
    "posterior_std", "temperature", "guidance_scale", "explicit_weight", "stereo_weight",
}  # fmt: skip


def is_accepted(name, kind, rule):
    """Returns whether a value is right after all."""
    last = name.rpartition(".")[2]
    accepted = {
        "zero": last in MAY_BE_ZERO,
        "huge": last in UNBOUNDED,
        "boolean": isinstance(rule, Boolean) or last == "remat",
        "text": isinstance(rule, Text) and rule.pattern is None,
        "empty text": isinstance(rule, Text) and (rule.may_be_empty or rule.pattern is not None),
        "None": rule.optional,
    }
    return accepted.get(kind, False)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_refuses_every_wrong_value_by_its_name(name):
    config = config_files.load(name)
    if config.data.source != "photos":
        config.data.root = "the user's"
    check_config(config, config.trainer)
    fields, tried, problems = config_fields.flatten(TABLES[config.trainer]), 0, []
    for full_name, field in fields.items():
        for kind, value in WRONG.items():
            changed = config.copy_and_resolve_references()
            section = changed
            *sections, last = full_name.split(".")
            for part in sections:
                section = section[part]
            with section.ignore_type():
                section[last] = value
            if isinstance(section[last], float) and value is True:
                continue  # Fields of floats convert it to 1.0 themselves.
            tried += 1
            try:
                check_config(changed, config.trainer)
                message = None
            except ValueError as error:
                message = str(error)
            except Exception as error:  # What the test is about.
                message = f"no sentence, but {error!r}"
            accepted = is_accepted(full_name, kind, field.rule)
            # Another field may contradict a value that is right in itself.
            if (message is None and not accepted) or (message is not None and full_name not in message):
                problems.append((full_name, kind, message))
    assert not problems
    assert tried > 600


def test_every_field_says_what_it_means_and_accepts_its_default():
    for table in TABLES.values():
        for name, field in config_fields.flatten(table).items():
            assert field.meaning.endswith(".") and len(field.meaning) < 200, name
            assert field.rule.words
            field.rule.check(name, field.default)


def test_every_choice_of_a_field_is_one_that_the_code_knows():
    assert [remat_policy(name) is None for name in REMAT] == [True, False, False, False]
    rule = config_fields.flatten(TABLES["tokenizer"])["objective.discriminator_loss"].rule
    assert isinstance(rule, Choice) and set(rule.choices) == set(DISCRIMINATOR_LOSSES)
