"""Sampling by two processes: the images of one process, the same kernels on both, and nobody who waits in vain."""

import jax
import numpy as np
import pytest

from eqjax import sharding
from tests import subprocesses
from tests.sampling import processes_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Returns what each of two processes has found, with two devices each."""
    folder = tmp_path_factory.mktemp("found")
    codes, outputs = subprocesses.run_processes("tests.sampling.processes_run", folder, count=2, devices=2)
    assert codes == [0, 0], outputs
    return [dict(np.load(folder / f"{i}.npz")) for i in range(2)]


@pytest.mark.parametrize("source", ["key", "keys", "noise"])
def test_the_latents_are_those_of_one_process_with_all_rows(found, source):
    given = processes_run.sources()[source]
    alone = np.asarray(processes_run.sampled(slice(None), **given))
    mesh = sharding.make_mesh(jax.devices("cpu")[:4])
    together = np.asarray(processes_run.sampled(slice(None), mesh, **given))
    for expected in (alone, together):
        for process in found:
            assert np.abs(process[source] - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(alone[1:] - alone[:1]).max() > 0.5


def test_a_process_samples_and_decodes_by_itself_while_the_others_do_something_else(found):
    rows, sources = slice(4, None), processes_run.sources()
    for name, source in (("alone", "key"), ("alone on a mesh", "keys")):
        expected = np.asarray(processes_run.sampled(rows, **sources[source]))
        assert np.abs(found[1][name] - expected).max() <= 1e-5
    assert found[1]["alone, decoded"].shape == (4, 16, 20, 3)


@pytest.mark.parametrize(("case", "taken"), [(0, "blocks layers"), (1, "blocks layers"), (2, "layers"), (3, "")])
def test_both_processes_take_the_kernels_that_both_found_right(found, case, taken, tmp_path):
    assert [str(process[f"case {case}, taken"]) for process in found] == [taken, taken]
    first, second = (process[f"case {case}"] for process in found)
    np.testing.assert_array_equal(first, second)
    if processes_run.CASES[case][0] == "sampled":
        expected = processes_run.sampled(slice(None), **processes_run.sources()["keys"])
        assert np.abs(first - np.asarray(expected)).max() <= 1e-5
    else:
        difference = np.abs(processes_run.generated(tmp_path).astype(int) - first)
        assert first.std() > 10 and difference.max() <= 1
