"""Checkpoints: round trips, other configurations, damaged files; the weights with the best metric."""

import pathlib
import random
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import checksums, sharding
from eqjax.checkpoints import BestWeights, Checkpoints, ConfigMismatchError, UnreadableError

CONFIG = {"trainer": "generator", "generator": {"width": 8, "dtype": "float32"}, "batch_size": 4}


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def state(mesh, value):
    # Random values cannot be compressed, so half a file does not hold them.
    tree = {
        "w": value + jax.random.normal(jax.random.key(0), (64, 64)),
        "half": jnp.full(3, value, jnp.bfloat16),
        "step": jnp.int32(value),
    }
    return jax.device_put(tree, sharding.replicated(mesh))


def write(folder, mesh, steps=(1, 2, 3), keep=3):
    with Checkpoints(folder, CONFIG, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(mesh, step), {"position": 10 * step})


def read(folder, mesh, config=CONFIG):
    with Checkpoints(folder, config) as checkpoints:
        restored = checkpoints.restore(state(mesh, 0))
    assert restored is not None
    return restored


def test_a_new_run_restores_nothing(tmp_path, mesh):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.restore(state(mesh, 0)) is None


def test_the_newest_step_is_restored_and_older_ones_are_deleted(tmp_path, mesh):
    write(tmp_path, mesh, keep=2)
    restored, data = read(tmp_path, mesh)
    assert data == {"position": 30}
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all() and a.dtype == b.dtype, restored, state(mesh, 3)))
    assert restored["w"].sharding.mesh.size == 4
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]


def test_a_step_is_restored_onto_another_mesh(tmp_path, mesh):
    write(tmp_path, mesh, steps=(1,))
    restored, _ = read(tmp_path, sharding.make_mesh(jax.devices()[:1]))
    assert restored["w"].sharding.mesh.size == 1
    np.testing.assert_array_equal(restored["w"], state(mesh, 1)["w"])


def test_another_model_is_refused_and_another_batch_size_is_not(tmp_path, mesh):
    write(tmp_path, mesh, steps=(1,))
    other = {**CONFIG, "generator": {"width": 16, "dtype": "float32"}, "batch_size": 8}
    with pytest.raises(ConfigMismatchError, match=r"generator.width: checkpoint 8, this run 16") as caught:
        read(tmp_path, mesh, other)
    assert "batch_size" not in str(caught.value)  # May change from run to run.
    read(tmp_path, mesh, {**CONFIG, "batch_size": 8})


def test_other_arrays_of_the_same_model_are_refused(tmp_path, mesh):
    """A newer checkpoint of another optimizer or objective is not damaged: it is refused, and every step stays."""
    write(tmp_path, mesh, steps=(1,))
    config = {**CONFIG, "optimizer": {"name": "muon", "learning_rate": 1.0}}
    more = {**state(mesh, 2), "half": jnp.zeros(5, jnp.bfloat16), "discriminator": {"kernel": jnp.ones(2)}}
    del more["w"]
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(2, jax.device_put(more, sharding.replicated(mesh)), {})
    with pytest.raises(ConfigMismatchError) as caught:
        read(tmp_path, mesh, {**CONFIG, "optimizer": {"name": "adamw", "learning_rate": 1.0}})
    for line in (
        "optimizer.name: checkpoint 'muon', this run 'adamw'",
        "arrays only in the checkpoint: discriminator/kernel",
        "arrays only in this run: w",
        "arrays with other shapes, checkpoint → this run: half (5,) → (3,)",
    ):
        assert line in str(caught.value)
    assert "learning_rate" not in str(caught.value) and "remove" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["1", "2"]


def test_a_run_may_resume_with_another_dtype(tmp_path, mesh):
    write(tmp_path, mesh, steps=(1,))
    restored, _ = read(tmp_path, mesh, {**CONFIG, "generator": {"width": 8, "dtype": "bfloat16"}})
    assert (restored["w"] == state(mesh, 1)["w"]).all()


def damage(folder):
    for file in sorted(pathlib.Path(folder).rglob("*")):
        if file.is_file() and file.stat().st_size > 2000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bits_and_restore(tmp_path, mesh, count, seed):
    """Flips one bit of the newer of two steps, many times: it is restored whole, or the older one is."""
    rng, saved = random.Random(seed), tmp_path / "saved"
    with Checkpoints(saved, CONFIG, keep=3, best="loss:min") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(mesh, step), {"position": 10 * step}, {"loss": 0.5})
    files = sorted(path.relative_to(saved) for path in (saved / "2").rglob("*") if path.is_file())
    sizes = [(saved / file).stat().st_size for file in files]
    whole = 0
    for i in range(count):
        folder = tmp_path / str(i)
        shutil.copytree(saved, folder)
        # Every other flip hits any file alike; most bytes are those of the arrays.
        (file,) = rng.choices(files, sizes if i % 2 else None)
        content, bit = bytearray((folder / file).read_bytes()), rng.randrange(8)
        content[rng.randrange(len(content))] ^= 1 << bit
        (folder / file).write_bytes(content)
        with Checkpoints(folder, CONFIG, keep=3, best="loss:min") as checkpoints:
            restored = checkpoints.restore(state(mesh, 0))
        assert restored is not None
        step = int(restored[0]["step"])
        whole += step == 2
        assert restored[1] == {"position": 10 * step}, file
        assert jax.tree.all(jax.tree.map(np.array_equal, restored[0], state(mesh, step))), file
        assert (folder / "damaged-2").exists() == (step == 1), file
        shutil.rmtree(folder)
    assert 0 < whole < count / 2


def test_a_flipped_bit_never_restores_another_value(tmp_path, mesh):
    flip_bits_and_restore(tmp_path, mesh, count=30, seed=0)


@pytest.mark.slow
def test_hundreds_of_flipped_bits_never_restore_another_value(tmp_path, mesh):
    flip_bits_and_restore(tmp_path, mesh, count=400, seed=1)


def test_a_damaged_file_is_named_in_the_log_and_in_the_error(tmp_path, mesh, caplog):
    write(tmp_path, mesh, steps=(1,))
    path = max((tmp_path / "1" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=f"step 1: {path} has another content than was written"):
        read(tmp_path, mesh)
    assert str(path) in caplog.text


def test_a_step_without_checksums_is_restored_with_a_warning_and_one_that_lost_some_is_not(tmp_path, mesh, caplog):
    write(tmp_path, mesh, steps=(1, 2))
    (tmp_path / "2" / "config" / checksums.FILE_NAME).unlink()
    assert read(tmp_path, mesh)[1] == {"position": 10}
    for path in (tmp_path / "1").rglob(checksums.FILE_NAME):
        path.unlink()
    assert "has no checksums" not in caplog.text
    assert read(tmp_path, mesh)[1] == {"position": 10}
    assert "has no checksums" in caplog.text


def test_damaged_metrics_do_not_decide_which_step_is_the_best(tmp_path, mesh):
    with Checkpoints(tmp_path, CONFIG, keep=1, best="loss:min") as checkpoints:
        for step, loss in ((1, 0.25), (2, 0.5)):
            checkpoints.save(step, state(mesh, step), {}, {"loss": loss})
    path = tmp_path / "2" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.5", "0.1"))
    with Checkpoints(tmp_path, CONFIG, keep=1, best="loss:min") as checkpoints:
        assert checkpoints.restore(state(mesh, 0)) is not None
        checkpoints.save(3, state(mesh, 3), {}, {"loss": 0.75})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_a_damaged_newest_step_is_renamed_and_can_be_saved_again(tmp_path, mesh):
    write(tmp_path, mesh)
    damage(tmp_path / "3" / "state")
    restored, data = read(tmp_path, mesh)
    assert data == {"position": 20}
    assert (restored["w"] == state(mesh, 2)["w"]).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "damaged-3"]
    write(tmp_path, mesh, steps=(3,))
    restored, _ = read(tmp_path, mesh)
    assert (restored["w"] == state(mesh, 3)["w"]).all()


def test_remains_of_a_killed_save_are_removed(tmp_path, mesh):
    write(tmp_path, mesh, steps=(1,))
    left = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", left)
    _, data = read(tmp_path, mesh)
    assert data == {"position": 10}
    for _ in range(200):  # Orbax removes them in a thread of its own.
        if not left.exists():
            break
        time.sleep(0.05)
    assert not left.exists()


def test_keeping_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_checkpoints=0 would keep none"):
        Checkpoints(tmp_path, CONFIG, keep=0)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path, mesh):
    write(tmp_path, mesh, steps=(1, 2))
    for step in "12":
        damage(tmp_path / step / "state")
    with pytest.raises(RuntimeError, match="no checkpoint under .* can be read(.|\n)*step 2(.|\n)*step 1"):
        read(tmp_path, mesh)


def test_best_weights_are_those_of_the_best_metric_so_far(tmp_path):
    written = []

    def export(path):
        written.append(open(path, "w").close())

    best = BestWeights(tmp_path, "fid:min")
    for step, value, kept in (
        (1, float("nan"), False),
        (2, 9.0, True),
        (3, 9.5, False),
        (4, 8.0, True),
        (5, float("-inf"), False),
    ):
        assert best.update(step, {"fid": value}, export) == kept
    assert not best.update(5, {"psnr": 1.0}, export)  # Not every evaluation measures everything.
    assert len(written) == 2 and (tmp_path / "best.safetensors").exists()
    again = BestWeights(tmp_path, "fid:min")  # A resumed run.
    assert again.best == {"step": 4, "fid": 8.0} and not again.update(5, {"fid": 8.5}, export)
    assert BestWeights(tmp_path, "precision:max").best is None  # Another metric starts a new comparison.
    assert not BestWeights(tmp_path, None).update(6, {"fid": 0.0}, export)
