"""The fields of objective.equivariance: what they build, and one message for what does not fit."""

from fractions import Fraction
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import photos_tokenizer
from eqjax import pixels, pretrained
from eqjax.data import eval_batches
from eqjax.equivariance import flips, measure_orbit, model_codec, scales
from eqjax.loading import load_pretrained
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
        shift_columns=1.5, soft_power=2.0, soft_after=0.5, start=3, interpolation="fourier",
    )  # fmt: skip
    config.tokenizer.padding = "circular"
    found, windows = build(config)
    assert found is not None and windows is None
    assert (found.geometry.stride, found.geometry.height) == (4, 16)
    assert (found.geometry.boundary, found.geometry.interpolation) == ("circular", "fourier")
    assert found.kinds == ("flip", "shift", "scale", "warp") and found.group.max_shift == 6
    assert found.group.scales == (Fraction(1, 2), Fraction(1)) and found.group.flips and found.group.warp is not None
    assert (found.implicit_probability, found.soft_power, found.soft_step, found.start) == (0.25, 2.0, 4, 3)


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
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    """With everything on but explicit errors; then a fine-tuning run with these, resumed within."""
    options = dict(
        implicit_probability=0.6, transforms=("scale", "flip", "shift", "warp"), scales=("1/2", "1"), soft_power=2.0,
        stereo_weight=0.1, stereo_windows=4,
    )  # fmt: skip

    def run(name, **more):
        """Runs, then once more from the checkpoint half-way, in a folder as a kill leaves it; returns both states."""
        config = make_config("tiny,gan", **options, **more)
        config.update(accumulation_steps=2)
        config.objective.adversarial_start = 2
        whole = tokenizer.train_and_evaluate(config, str(tmp_path / name))
        shutil.copytree(tmp_path / name, tmp_path / "killed", dirs_exist_ok=False)
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / "8")
        (tmp_path / "killed" / "model.safetensors").unlink()
        resumed = tokenizer.train_and_evaluate(config, str(tmp_path / "killed"))
        shutil.rmtree(tmp_path / "killed")
        return whole, resumed

    assert same(*run("first"))
    log = metrics(tmp_path / "first")
    assert {"transformed_psnr" in line for line in log} == {True, False}
    assert all(("psnr" in line) != ("transformed_psnr" in line) and "stereo_loss" in line for line in log)
    assert same(*run("fine", explicit_weight=0.05, stage1_weights=str(tmp_path / "first")))
    assert all(line["collapsed"] == 0 and line["encoder_error"] > 0 for line in metrics(tmp_path / "fine"))


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


@pytest.mark.slow
def test_two_processes_choose_the_same_transforms_as_one(tmp_path):
    flags = ["--config=photos_tokenizer:tiny", "--config.objective.equivariance.implicit_probability=0.6",
             "--config.objective.equivariance.soft_power=2.0", "--config.total_steps=6", "--config.eval_every=None",
             "--config.image_every=None", "--config.log_every=1", "--config.optimizer.name=adamw"]  # fmt: skip
    found = {}
    for name, count in (("one", 1), ("two", 2)):
        command = ("eqjax", "train-tokenizer", *flags, f"--workdir={tmp_path / name}")
        codes, outputs = subprocesses.run_processes(*command, count=count, devices=4 // count)
        assert codes == [0] * count, outputs
        found[name] = metrics(tmp_path / name)
    for one, two in zip(found["one"], found["two"], strict=True):
        assert one.keys() == two.keys()
        values = {name for name in one if name.endswith(("loss", "l1", "error")) or name.startswith("soft_")}
        assert all(two[name] == pytest.approx(one[name], rel=1e-3) for name in values)
    assert {"transformed_l1" in line for line in found["one"]} == {True, False}


@pytest.mark.slow
def test_implicit_steps_lower_errors_of_scalings_and_flips_by_a_quarter_at_little_cost(tmp_path):
    """Photographs 32 pixels high, 64 wide; a minute and a half per run on two cores."""
    found = {}
    for name, probability in (("plain", 0.0), ("implicit", 0.5)):
        config = photos_tokenizer.get_config("tiny")
        config.tokenizer.update(patch_size=4, channels=48, channel_multipliers=(1, 1), resolution=32)
        config.tokenizer.update(z_channels=12, embed_dim=48, posterior_std=0.05)
        config.data.update(height=32, width=64, min_scale=0.15, max_scale=0.4)
        config.update(batch_size=16, total_steps=1200, log_every=100, eval_every=None, image_every=None)
        config.update(checkpoint_every=None)
        config.optimizer.warmup_steps = 50.0
        config.objective.equivariance.implicit_probability = probability
        trainer_config = config.copy_and_resolve_references()
        tokenizer.train_and_evaluate(config, str(tmp_path / name))
        model = load_pretrained(str(tmp_path / name))
        codec, images = model_codec(model), held_out(trainer_config)
        groups = scales("1/2", "3/4"), flips()
        found[name] = [measure_orbit(codec, images, group, margin=0).summary() for group in groups]
    for plain, implicit in zip(found["plain"], found["implicit"], strict=True):
        assert implicit.encoder < 0.75 * plain.encoder
        assert implicit.psnr > plain.psnr - 0.7


def held_out(config):
    """64 held-out crops in [-1, 1]."""
    batches = eval_batches(config.data, batch_size=16, num_images=64, process_index=0, process_count=1)
    return np.concatenate([np.asarray(pixels.from_uint8(np.asarray(batch["image"]))) for batch in batches])[:64]
