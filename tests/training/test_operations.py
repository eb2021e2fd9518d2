"""What a run survives: steps that are not finite, SIGTERM, kill −9, a full disk, another run, other processes."""

import json
import os
import pathlib
import random
import resource
import signal
import time

import jax
import numpy as np
from PIL import Image
import pytest

from eqjax.checkpoints import Checkpoints, ConfigMismatchError
from eqjax.training import fault_tolerance, logging, loop, optim
from eqjax.training.config import resolve
from tests import subprocesses
from tests.training import toy_trainer


def train(workdir, config, **kwargs):
    return loop.train(config, str(workdir), toy_trainer.ToyTrainer(config, **kwargs))


def lines(workdir, name="loss"):
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [(line["step"], line[name]) for line in map(json.loads, text.splitlines()) if name in line]


def steps_kept(workdir):
    return sorted(int(p.name) for p in (pathlib.Path(workdir) / "checkpoints").iterdir() if p.name.isdigit())


def values(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def same(a, b):
    return all((x == y).all() for x, y in zip(a, b, strict=True))


def test_bad_updates_are_skipped_and_counted(tmp_path):
    short = train(tmp_path / "short", toy_trainer.config(2))
    long = train(tmp_path / "long", toy_trainer.config(4, max_consecutive_nonfinite=3), bad_steps=(3, 4))
    assert int(long.step) == 4
    assert same(values(long)[1:], values(short)[1:])  # Weights and moments of the last good step.
    assert lines(tmp_path / "long", "nonfinite_steps") == [(1, 0), (2, 0), (3, 1), (4, 2)]
    # Counts go on where the run does.
    train(tmp_path / "long", toy_trainer.config(6, max_consecutive_nonfinite=4), bad_steps=(5,))
    assert lines(tmp_path / "long", "nonfinite_steps")[-2:] == [(5, 3), (6, 3)]


def test_too_many_bad_updates_stop_the_run(tmp_path):
    config = toy_trainer.config(20, max_consecutive_nonfinite=2)
    with pytest.raises(
        FloatingPointError, match=r"step 4: grad_norm and loss are not finite.*2 steps in a row"
    ) as caught:
        train(tmp_path, config, bad_steps=(3, 4, 5))
    assert "from step 3 on, were skipped. First offending module: layer/kernel. The last" in str(caught.value)
    assert "good state is kept as checkpoint 4" in str(caught.value)
    resumed = train(tmp_path, toy_trainer.config(7, max_consecutive_nonfinite=5), bad_steps=(5,))
    assert int(resumed.step) == 7 and all(np.isfinite(leaf).all() for leaf in values(resumed))


def test_a_search_that_fails_does_not_hide_what_happened(tmp_path):
    class FailingTrainer(toy_trainer.ToyTrainer):
        def find_nonfinite(self, *_):
            raise MemoryError("16 GiB")

    config = toy_trainer.config(1, max_consecutive_nonfinite=1)
    with pytest.raises(FloatingPointError, match=r"step 1: .* not finite.*search for it failed \(MemoryError\('16 GiB"):
        loop.train(config, str(tmp_path), FailingTrainer(config, bad_steps=(1,)))


def test_kept_are_the_last_every_and_the_best(tmp_path):
    scores = {2: float("nan"), 4: 1.0, 6: 3.0, 8: float("nan"), 10: 4.0}
    config = toy_trainer.config(10, keep_checkpoints=1, keep_every=6, keep_best="score:min")
    config.eval_every = 2
    train(tmp_path, config, evaluate=lambda state: {"score": scores[int(state.step)], "curve": np.ones(2)})
    assert steps_kept(tmp_path) == [4, 6, 10]
    assert lines(tmp_path, "curve/01")[0] == (2, 1.0)
    with pytest.raises(ValueError, match="keep_best='score' must be 'name:min' or 'name:max'"):
        train(tmp_path, toy_trainer.config(10, keep_best="score"))


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    whole = train(tmp_path, toy_trainer.config(2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match=r"could not be written(.|\n)*Steps \[2\] are whole"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # No file may grow beyond it.
        try:
            train(tmp_path, toy_trainer.config(4))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    config = toy_trainer.config(2)
    with Checkpoints(tmp_path / "checkpoints", config.to_dict()) as checkpoints:
        restored, _ = checkpoints.restore(whole)
    assert same(values(restored), values(whole))
    assert int(train(tmp_path, toy_trainer.config(4)).step) == 4


def folder_of_two_classes(root):
    for name, values in (("ant", range(4)), ("bee", range(100, 104))):
        (root / name).mkdir(parents=True)
        for value in values:
            Image.new("RGB", (16, 16), (value, 2 * value, 0)).save(root / name / f"{value}.png")
    return root


def test_a_refused_run_leaves_the_configuration_and_another_precision_is_not_refused(tmp_path):
    root = folder_of_two_classes(tmp_path / "data")
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
    assert [step for step, _ in lines(tmp_path)] == [1, 2, 3, 4]
    assert [count for _, count in lines(tmp_path, "corrupt_images")] == [1, 1, 1, 1]


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
    assert steps_kept(tmp_path) == [2]
    assert int(train(tmp_path, config(4), evaluate=evaluate).step) == 4


def test_held_out_data_are_opened_first(tmp_path):
    class TrainerWithoutEvaluation(toy_trainer.ToyTrainer):
        def evaluation_batches(self, mesh):
            raise ValueError(f"nothing there for {mesh.size} devices")

    config = toy_trainer.config(2, eval_every=2)
    with pytest.raises(ValueError, match="nothing there for 4 devices"):
        loop.train(config, str(tmp_path), TrainerWithoutEvaluation(config))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_folder_in_use(tmp_path):
    with (
        fault_tolerance.WorkdirLock(tmp_path),
        pytest.raises(
            fault_tolerance.WorkdirInUseError, match=r"held by another live run \(process \d+ on .*another workdir"
        ),
    ):
        train(tmp_path, toy_trainer.config(1))
    assert int(train(tmp_path, toy_trainer.config(1)).step) == 1


def test_meshes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="multiplies to 3"):
        train(tmp_path / "run", toy_trainer.config(1, mesh="data:3"))
    config = toy_trainer.config(1, batch_size=4)
    config.accumulation_steps = 2
    with pytest.raises(
        ValueError, match="batch_size=4 in accumulation_steps=2 microbatches makes 2 images per microbatch"
    ):
        train(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_tokenizer_only(tmp_path):
    def go_on(steps, tokenizer):
        config = toy_trainer.config(steps)
        trainer = toy_trainer.ToyTrainer(config, tokenizer_fingerprint=tokenizer)
        return int(loop.train(config, str(tmp_path), trainer).step)

    assert go_on(1, "a" * 64) == 1
    with pytest.raises(ConfigMismatchError, match="another tokenizer: .* hash aaaaaaaaaaaaaaaa….* bbbbbbbbbbbbbbbb…"):
        go_on(2, "b" * 64)
    assert go_on(2, "a" * 64) == 2


def test_sigterm_saves_and_ends_with_its_code(tmp_path):
    """A program, as it is a signal to the whole of it; then the run is finished here, bit for bit."""
    options = dict(total_steps=4000, delay=0.01, checkpoint_every=100_000)
    process = subprocesses.start("tests.training.toy_trainer", tmp_path / "run", json.dumps(options), devices=4)
    subprocesses.wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output[-3000:]
    (step,) = steps_kept(tmp_path / "run")
    assert 3 <= step < 4000
    resumed = train(tmp_path / "run", toy_trainer.config(step + 2))
    assert same(values(resumed), values(train(tmp_path / "whole", toy_trainer.config(step + 2))))


def kill_at_random(tmp_path, kills, seed):
    """Kills a run again and again after random numbers of steps and parts of one, then lets it end."""
    rng, steps = random.Random(seed), 30 * (kills + 1)
    options = dict(total_steps=steps, delay=0.005, checkpoint_every=3, result=str(tmp_path / "end.npz"))
    for _ in range(kills):
        process = subprocesses.start("tests.training.toy_trainer", tmp_path / "run", json.dumps(options), devices=4)
        path = tmp_path / "run" / "metrics.jsonl"
        before = len(path.read_text().splitlines()) if path.exists() else 0
        subprocesses.wait_for_step(tmp_path / "run", before + rng.randint(1, 20), process)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    subprocesses.run("tests.training.toy_trainer", tmp_path / "run", json.dumps(options), devices=4)
    end = np.load(tmp_path / "end.npz")
    whole = train(tmp_path / "whole", toy_trainer.config(steps, log_every=None, checkpoint_every=None))
    assert same([end[f"arr_{i}"] for i in range(len(values(whole)))], values(whole))
    logged = [step for step, _ in lines(tmp_path / "run")]
    repeated = len(logged) - len(set(logged))
    assert set(logged) == set(range(1, steps + 1)) and repeated <= 6 * kills  # Two checkpoints may be on their way.


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    kill_at_random(tmp_path, kills=1, seed=0)


@pytest.mark.slow
def test_many_kills(tmp_path):
    kill_at_random(tmp_path, kills=8, seed=1)


def test_two_processes_and_then_one_on_another_mesh(tmp_path):
    options = dict(total_steps=4, mesh="data:2,fsdp:2", result=str(tmp_path / "two.npz"))

    def run_two():
        arguments = ("tests.training.toy_trainer", tmp_path / "run", json.dumps(options))
        codes, outputs = subprocesses.run_processes(*arguments, count=2, devices=2)
        assert codes == [0, 0], outputs
        return outputs

    run_two()
    whole = np.load(tmp_path / "two.npz")
    # What process 1 wrote is damaged, which process 0 does not see: both take the checkpoint before.
    for path in (tmp_path / "run" / "checkpoints" / "4" / "state" / "ocdbt.process_1").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outputs = run_two()
    assert all("at step 2" in output for output in outputs), outputs
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["2", "4", "damaged-4"]
    two = np.load(tmp_path / "two.npz")
    assert same([whole[name] for name in whole], [two[name] for name in two])
    assert (two["processes"], two["devices"]) == (2, 4)
    assert [step for step, _ in lines(tmp_path / "run")] == [1, 2, 3, 4, 3, 4]  # One process writes.
    # One process, another mesh: the same numbers come back, and it goes on from there.
    restored = train(tmp_path / "run", toy_trainer.config(4, mesh="fsdp:4"))
    assert same([two[f"arr_{i}"] for i in range(len(values(restored)))], values(restored))
    resumed = train(tmp_path / "run", toy_trainer.config(6, mesh="data:4"))
    assert int(resumed.step) == 6 and lines(tmp_path / "run")[-1][1] < lines(tmp_path / "run")[0][1]


def test_epochs_and_rates_become_steps():
    config = toy_trainer.config(5)
    config.data.classes = ("brick", "coffee", "cat")
    config.batch_size = 2
    config.optimizer.update(learning_rate=1e-4, lr_reference_batch_size=256, warmup_epochs=1.5)
    config.total_epochs = 100.0
    resolved = resolve(config)
    # Three images of 100 records each: 150 steps an epoch.
    assert resolved.total_steps == 15_000 and resolved.optimizer.warmup_steps == 225.0
    assert resolved.optimizer.learning_rate == pytest.approx(1e-4 * 2 / 256)
    assert resolve(resolved).to_dict() == resolved.to_dict()


def test_accumulated_gradients():
    batch, params = jax.random.normal(jax.random.key(0), (12, 5)), jax.numpy.arange(5.0)

    def compute(count, batch, key):
        del key
        loss = jax.value_and_grad(lambda p: (((batch @ p) ** 2).mean(), batch.sum(1).mean()), has_aux=True)
        return loss(params), count + 1

    once, one = optim.accumulate_gradients(compute, batch, jax.random.key(0), 1, 0)
    parts, four = optim.accumulate_gradients(compute, batch, jax.random.key(0), 4, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), once, parts)
    assert (one, four) == (1, 4)
    with pytest.raises(ValueError, match="batch of 12 does not divide into accumulation_steps=5"):
        optim.accumulate_gradients(compute, batch, jax.random.key(0), 5, 0)


def test_a_trace_of_some_steps(tmp_path):
    traces = lambda: list((tmp_path / "profile").rglob("*.xplane.pb"))  # noqa: E731
    train(tmp_path, toy_trainer.config(3, profile_from=3, profile_steps=1))  # It ends inside the range.
    assert len(traces()) == 1
    train(tmp_path, toy_trainer.config(5, profile_from=3, profile_steps=1))  # It begins behind it.
    assert len(traces()) == 1


def test_vectors_become_curves():
    assert dict(logging._curves({"loss": 1, "column": np.arange(2)})) == {
        "loss": 1.0,
        "column/00": 0.0,
        "column/01": 1.0,
    }
