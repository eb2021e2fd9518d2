"""The training loop: what is checked first, what is kept, what is traced."""

import logging as python_logging
import signal
import time

from absl import logging
import numpy as np
from PIL import Image
import pytest

from eqjax.checkpoints import ConfigMismatchError
from eqjax.training import loop
from eqjax.training.fault_tolerance import Preempted
from tests.training import toy_trainer
from tests.training.toy_runs import logged, saved_steps, train


def test_meshes_and_batches_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="multiplies to 3"):
        train(tmp_path / "run", toy_trainer.config(1, mesh="data:3"))
    config = toy_trainer.config(1, batch_size=4)
    config.accumulation_steps = 2
    with pytest.raises(ValueError, match="accumulation_steps=2 microbatches makes 2 images per microbatch"):
        train(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "notes").write_text("mine")
    for path in (tmp_path / "notes", tmp_path / "notes" / "run"):
        with pytest.raises(NotADirectoryError, match=r"workdir=\S+: \S+notes is a file; give a folder"):
            train(path, toy_trainer.config(1))
    assert (tmp_path / "notes").read_text() == "mine"


def test_held_out_data_are_opened_before_the_first_step(tmp_path):
    class TrainerWithoutEvaluation(toy_trainer.ToyTrainer):
        def evaluation_batches(self, mesh):
            raise ValueError(f"nothing there for {mesh.size} devices")

    config = toy_trainer.config(2, eval_every=2)
    with pytest.raises(ValueError, match="nothing there for 4 devices"):
        loop.train(config, str(tmp_path), TrainerWithoutEvaluation(config))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_newest_checkpoint_multiples_and_the_best_are_kept(tmp_path):
    scores = {2: float("nan"), 4: 1.0, 6: 3.0, 8: float("nan"), 10: 4.0}
    config = toy_trainer.config(10, keep_checkpoints=1, keep_every=6, keep_best="score:min")
    config.eval_every = 2
    train(tmp_path, config, evaluate=lambda state: {"score": scores[int(state.step)], "curve": np.ones(2)})
    assert saved_steps(tmp_path) == [4, 6, 10]
    assert logged(tmp_path, "curve/01")[0] == (2, 1.0)
    with pytest.raises(ValueError, match="keep_best='score' must be 'name:min' or 'name:max'"):
        train(tmp_path, toy_trainer.config(10, keep_best="score"))


@pytest.mark.parametrize("keep_best", [None, "score:min"])
def test_a_failing_evaluation_leaves_a_checkpoint(tmp_path, keep_best):
    def evaluate(state):
        if int(state.step) == 2:
            raise ValueError("a bad image")
        return {"score": 1.0}

    def config(steps):
        return toy_trainer.config(steps, eval_every=2, checkpoint_every=4, keep_best=keep_best)

    with pytest.raises(ValueError, match="a bad image"):
        train(tmp_path, config(4), evaluate=evaluate)
    assert saved_steps(tmp_path) == [2]
    assert int(train(tmp_path, config(4), evaluate=evaluate).step) == 4


def write_two_classes(root):
    for name, values in (("ant", range(4)), ("bee", range(100, 104))):
        (root / name).mkdir(parents=True)
        for value in values:
            Image.new("RGB", (16, 16), (value, 2 * value, 0)).save(root / name / f"{value}.png")
    return root


def test_a_rejected_run_leaves_config_json_and_another_dtype_resumes(tmp_path):
    root = write_two_classes(tmp_path / "data")
    (root / "ant" / "2.png").write_bytes(b"no image")

    def config(steps, dtype, seed=0):
        config = toy_trainer.config(steps, seed=seed)
        config.data.update(source="folder", root=str(root), resize=16, classes=("ant", "bee"))
        config.generator = {"dtype": dtype}
        return config

    train(tmp_path, config(2, "bfloat16"))
    kept = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="seed=0, this iterator seed=1"):
        train(tmp_path, config(4, "float32", seed=1))
    assert (tmp_path / "config.json").read_text() == kept and '"bfloat16"' in kept
    assert int(train(tmp_path, config(4, "float32")).step) == 4
    assert '"float32"' in (tmp_path / "config.json").read_text()
    assert [step for step, _ in logged(tmp_path)] == [1, 2, 3, 4]
    assert [count for _, count in logged(tmp_path, "corrupt_images")] == [1, 1, 1, 1]


def test_a_run_resumes_only_with_its_own_tokenizer(tmp_path):
    def resume(steps, tokenizer):
        config = toy_trainer.config(steps)
        return int(train(tmp_path, config, tokenizer_fingerprint=tokenizer).step)

    assert resume(1, "a" * 64) == 1
    with pytest.raises(ConfigMismatchError, match="another tokenizer: .* hash aaaaaaaaaaaaaaaa….* bbbbbbbbbbbbbbbb…"):
        resume(2, "b" * 64)
    assert resume(2, "a" * 64) == 2


class HeirTrainer(toy_trainer.ToyTrainer):
    """Starts from a file, and makes frozen arrays."""

    def load_initial_weights(self, state, check_stop):
        del check_stop
        self.inherited = {"scale": 0.1}
        return state

    def make_frozen(self, workdir, is_resumed, check_stop):
        check_stop()
        self.made = workdir, is_resumed


def test_a_resumed_run_has_what_its_start_inherited_and_says_that_it_is_resumed(tmp_path):
    def run(steps):
        config = toy_trainer.config(steps)
        trainer = HeirTrainer(config)
        loop.train(config, str(tmp_path), trainer)
        return trainer

    assert run(1).made == (str(tmp_path), False)
    trainer = run(2)
    assert trainer.inherited == {"scale": 0.1} and trainer.made == (str(tmp_path), True)


def test_a_rejected_run_makes_no_frozen_arrays(tmp_path):
    loop.train(toy_trainer.config(1), str(tmp_path), toy_trainer.ToyTrainer(toy_trainer.config(1)))
    config = toy_trainer.config(2)
    config.generator = {"depth": 1}
    trainer = HeirTrainer(config)
    with pytest.raises(ConfigMismatchError):
        loop.train(config, str(tmp_path), trainer)
    assert not hasattr(trainer, "made")


@pytest.mark.parametrize("method", ["make_frozen", "load_initial_weights"])
def test_a_run_that_is_asked_to_stop_before_its_first_step_stops(tmp_path, monkeypatch, method):
    def asked_to_stop(*arguments):
        signal.raise_signal(signal.SIGTERM)
        check_stop = arguments[-1]
        check_stop()
        raise AssertionError("the run went on")

    monkeypatch.setattr(HeirTrainer, method, asked_to_stop)
    config = toy_trainer.config(1)
    with pytest.raises(Preempted, match="before a step was done"):
        loop.train(config, str(tmp_path), HeirTrainer(config))


@pytest.mark.slow
def test_the_profiler_traces_its_steps_alone(tmp_path):
    traces = lambda: list((tmp_path / "profile").rglob("*.xplane.pb"))  # noqa: E731
    train(tmp_path, toy_trainer.config(3, profile_from=3, profile_steps=1))  # It ends inside the range.
    assert len(traces()) == 1
    train(tmp_path, toy_trainer.config(5, profile_from=3, profile_steps=1))  # It begins behind it.
    assert len(traces()) == 1


def test_a_run_removes_what_killed_ones_left_half_written(tmp_path):
    ours = ["model.safetensors.abcd1234.tmp", "config.json.abcd1234.tmp", "images/samples_0000002.png.abcd1234.tmp"]
    others = ["notes.tmp", "results.json.abcd1234.tmp"]
    (tmp_path / "images").mkdir()
    for name in ours + others:
        (tmp_path / name).write_text("half")
    train(tmp_path, toy_trainer.config(1))
    assert [name for name in ours + others if (tmp_path / name).exists()] == others


class SlowTrainer(toy_trainer.ToyTrainer):
    """Sleeps wherever a trainer of a large model takes its time."""

    def __init__(self, config, seconds=0.0):
        super().__init__(config)
        self.seconds = seconds

    def load_initial_weights(self, state, check_stop):
        del check_stop
        time.sleep(self.seconds)
        return state

    def evaluate(self, state):
        del state
        time.sleep(self.seconds)
        return {"score": 1.0}

    def images(self, state, batch):
        del state, batch
        time.sleep(self.seconds)
        return {}

    def export(self, state, path):
        del state
        time.sleep(self.seconds)
        open(path, "w").close()

    def is_exported(self, step, path):
        del path
        return step == 2


def test_every_silence_is_announced(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(loop, "_PATIENCE", 0.05)
    logging.set_verbosity(logging.INFO)
    caplog.set_level(python_logging.INFO, logger="absl")
    config = toy_trainer.config(2, eval_every=1, image_every=2, checkpoint_every=2)
    loop.train(config, str(tmp_path), SlowTrainer(config, seconds=0.4))
    said = [record for record in caplog.records if record.pathname.endswith("eqjax/progress.py")]
    begun = {record.getMessage().removesuffix(" …"): record for record in said if record.getMessage().endswith(" …")}
    ended = {text: record for record in said for text, took, _ in [record.getMessage().partition(" took ")] if took}
    slow = (
        "Compiling and computing the initial state",
        "Step 1: compiling, and evaluating",
        "Step 2: evaluating",
        "Step 2: compiling, and making images",
        "Exporting the EMA weights",
    )
    for work in slow:
        assert ended[work].created - begun[work].created > 0.2, work  # Said long before it ended.
    assert "Compiling the training step" in begun and "Compiling the training step" in ended
    assert begun.keys() == ended.keys()


def test_a_finished_run_says_so_and_is_left_as_it_is(tmp_path, caplog):
    caplog.set_level(python_logging.INFO, logger="absl")
    config = toy_trainer.config(2)
    loop.train(config, str(tmp_path), SlowTrainer(config))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}
    caplog.clear()
    assert int(loop.train(config, str(tmp_path), SlowTrainer(config)).step) == 2
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}
    assert before == after and tmp_path / "model.safetensors" in before
    said = [record.getMessage() for record in caplog.records if "Nothing is left to do" in record.getMessage()]
    assert len(said) == 1 and "2 of 2 steps" in said[0] and "total_steps" in said[0]
    longer = toy_trainer.config(3)
    assert int(loop.train(longer, str(tmp_path), SlowTrainer(longer)).step) == 3
    # A kill between the last step and the export leaves a model of an earlier step, or none: it is written again.
    caplog.clear()
    loop.train(longer, str(tmp_path), SlowTrainer(longer))
    assert not [record for record in caplog.records if "Nothing is left" in record.getMessage()]
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns > before[tmp_path / "model.safetensors"]
