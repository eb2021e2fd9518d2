"""The fields of objective.equivariance: what they build, and one message for what does not fit."""

from fractions import Fraction
import json
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from configs import photos_tokenizer
from eqjax import pretrained
from eqjax.training import tokenizer
from eqjax.training.tokenizer.regularization_config import make_regularization
from tests import subprocesses


def make_config(variant="tiny", **changes):
    """A configuration; names with a dot below objective.equivariance."""
    config = photos_tokenizer.get_config(variant)
    config.update(log_every=1, eval_every=None, image_every=None, checkpoint_every=4, total_steps=8)
    config.optimizer.name = "adamw"  # Compiles faster.
    config.discriminator.update(channels=4, num_layers=1)
    for name, value in changes.items():
        section = config.objective.equivariance if name in config.objective.equivariance else config
        section.update({name: value})
    return config


def build(config):
    return make_regularization(config, pretrained.build_module("tokenizer", dict(config.tokenizer)))


def test_all_is_off_by_default():
    for variant in ("tiny", "", "tiny,gan"):
        assert build(make_config(variant)) == (None, None)


def test_fields_become_regularizers():
    config = make_config(
        implicit_probability=0.25, transforms=("flip", "shift", "scale", "warp"), scales=("1/2", "1"),
        shift_columns=1.5, soft_power=2.0, start=3, interpolation="fourier",
    )  # fmt: skip
    config.tokenizer.padding = "circular"
    found, windows = build(config)
    assert found is not None and windows is None
    assert (found.geometry.stride, found.geometry.height) == (4, 16)
    assert (found.geometry.boundary, found.geometry.interpolation) == ("circular", "fourier")
    assert found.kinds == ("flip", "shift", "scale", "warp") and found.group.max_shift == 6
    assert found.group.scales == (Fraction(1, 2), Fraction(1)) and found.group.flips and found.group.warp is not None
    assert (found.implicit_probability, found.soft_power, found.start) == (0.25, 2.0, 3)


def test_the_built_in_stereo_pair_is_cut_for_the_tokenizer():
    found, windows = build(make_config(stereo_weight=0.1, stereo_columns=3))
    assert found is not None and windows is not None and windows.left.shape[1:] == (16, 12, 3)


STAGE1 = "runs/stage1"  # Not read here.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"explicit_weight": 0.1}, "explicit_weight=0.1 is for fine-tuning: .* Set stage1_weights"),
        (
            {"explicit_weight": 0.1, "stage1_weights": STAGE1, "freeze_encoder": True},
            "explicit_weight=0.1 trains the encoder, and freeze_encoder=True keeps it",
        ),
        (
            {"stereo_weight": 0.1, "stage1_weights": STAGE1, "freeze_encoder": True},
            "stereo_weight=0.1 trains the encoder, and freeze_encoder=True keeps it",
        ),
        ({"implicit_probability": 0.5, "transforms": ("flip", "flip")}, "transforms=.* names one kind twice"),
        ({"implicit_probability": 0.5, "scales": ("1/3",)}, "scales: with data.width=16, scale=1/3 makes 1.33333 col"),
        ({"implicit_probability": 0.5, "scales": ("1/0",)}, "scales: scale='1/0' must be a positive number"),
        ({"implicit_probability": 0.5, "scales": ("0",)}, "scales: scale='0' must be a positive number"),
        (
            {"implicit_probability": 0.5, "transforms": ("shift",), "shift_columns": 4.0},
            "shift_columns=4 shifts images of 4 columns out of themselves",
        ),
        ({"soft_power": 2.0, "implicit_probability": 0.5, "transforms": ("flip",)}, "soft_power=2.0 weighs kinds"),
        ({"soft_power": 2.0}, "soft_power=2.0 weighs transforms, of which none is trained"),
        (
            {"soft_power": 2.0, "implicit_probability": 0.5, "scales": ("1", "2/2")},
            "scales=.* has the identity alone",
        ),
        ({"stereo_weight": 0.1, "stereo_columns": 200}, "stereo_weight=0.1 finds no use: no window of 16 × 800 pixels"),
    ],
)
def test_what_does_not_fit_is_refused_with_one_message(changes, message):
    with pytest.raises(ValueError, match=rf"(?s)^objective\.equivariance\.{message}"):
        build(make_config(**changes))


def test_scaled_images_must_be_wide_enough_for_the_networks_that_see_them():
    config = make_config("tiny,gan", implicit_probability=0.5, scales=("1/4", "1"))
    config.discriminator.num_layers = 2
    with pytest.raises(ValueError, match="1/4 makes images 4 pixels wide, and discriminator.num_layers needs at leas"):
        build(config)
    config.discriminator.num_layers = 1
    assert build(config)[0] is not None
    config.objective.perceptual_weight = 1.0
    with pytest.raises(ValueError, match="1/4 makes images 4 pixels wide, and objective.perceptual_weight needs"):
        build(config)


def test_missing_stereo_pairs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.npz does not exist"):
        build(make_config(stereo_weight=0.1, stereo_pairs=str(tmp_path / "none.npz")))


def test_a_run_from_scratch_with_explicit_errors_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="explicit_weight=0.1 is for fine-tuning"):
        tokenizer.train_and_evaluate(make_config(explicit_weight=0.1), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# ── Runs ────────────────────────────────────────────────────────────────────────────────────────


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b))


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_runs_resume_bit_for_bit_and_explicit_errors_fine_tune(tmp_path):
    options: Any = dict(implicit_probability=0.5, scales=("1/2",), total_steps=6, checkpoint_every=3)
    options |= dict(soft_power=2.0, soft_steps=3)
    whole = tokenizer.train_and_evaluate(make_config(**options), str(tmp_path / "whole"))
    log = metrics(tmp_path / "whole")
    assert {"transformed_psnr" in line for line in log} == {True, False}
    assert all(("psnr" in line) != ("transformed_psnr" in line) for line in log)
    # The folder is left as by a kill after the checkpoint of step 3.
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "6")
    (tmp_path / "killed" / "model.safetensors").unlink()
    assert same(tokenizer.train_and_evaluate(make_config(**options), str(tmp_path / "killed")), whole)
    fine = make_config(
        explicit_weight=0.05, stereo_weight=0.1, scales=("1/2",), total_steps=3, stage1_weights=str(tmp_path / "whole")
    )
    tokenizer.train_and_evaluate(fine, str(tmp_path / "fine"))
    log = metrics(tmp_path / "fine")
    assert all(line["collapsed"] == 0 and line["encoder_error"] > 0 < line["stereo_loss"] for line in log)


@pytest.mark.slow
def test_two_processes_choose_the_same_transforms_as_one_and_weigh_them_alike(tmp_path):
    fields = {"implicit_probability": 0.5, "transforms": "('flip','shift')"}
    fields |= {"soft_power": 2.0, "soft_steps": 2}
    command = ["eqjax", "train-tokenizer", "--config=photos_tokenizer:tiny", "--config.total_steps=5"]
    # AdamW and one level compile faster.
    command += ["--config.optimizer.name=adamw", "--config.tokenizer.patch_size=4"]
    command += ["--config.tokenizer.channel_multipliers=(1,)"]
    command += ["--config.log_every=1", "--config.eval_every=None", "--config.image_every=None"]
    command += [f"--config.objective.equivariance.{name}={value}" for name, value in fields.items()]
    codes, outputs = subprocesses.run_processes(*command, f"--workdir={tmp_path}/two", count=2, devices=1)
    assert codes == [0, 0], outputs
    subprocesses.run(*command, f"--workdir={tmp_path}/one", devices=2)
    # One process measures, for both.
    assert ["a critic tells" in output for output in outputs] == [True, False]
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [set(line) for line in one] == [set(line) for line in two]  # Names tell which steps are implicit.
    assert {"transformed_l1" in line for line in one} == {True, False}
    for ours, others in zip(one, two, strict=True):
        for name in ("loss", *(name for name in ours if name.startswith("soft_"))):
            # Rows of a batch are in another order, and so get other noise.
            assert ours[name] == pytest.approx(others[name], rel=5e-3), (name, ours["step"])
    weights = [line["soft_flip"] for line in one if "soft_flip" in line]
    assert len(set(weights)) == 1 and weights[0] > 0


@pytest.mark.slow
def test_the_command_line_takes_the_fields(tmp_path):
    flags = ["--config.objective.equivariance.implicit_probability=0.5", "--config.total_steps=3",
             "--config.objective.equivariance.transforms=('flip',)", "--config.eval_every=None"]  # fmt: skip
    command = [sys.executable, "-m", "eqjax", "train-tokenizer", "--config=photos_tokenizer:tiny", *flags]
    shown = subprocess.run([*command, "--print_config"], capture_output=True, text=True)
    assert shown.returncode == 0 and "objective.equivariance.implicit_probability" in shown.stdout
    done = subprocess.run([*command, f"--workdir={tmp_path}/run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()
    refused = subprocess.run(
        [*command, f"--workdir={tmp_path}/no", "--config.objective.equivariance.explicit_weight=1.0"],
        capture_output=True,
        text=True,
    )
    assert refused.returncode and "Traceback" not in refused.stderr
    assert "objective.equivariance.explicit_weight=1.0 is for fine-tuning" in refused.stderr
