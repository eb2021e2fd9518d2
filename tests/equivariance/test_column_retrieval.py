"""Retrieval of columns over two views: the smoothed precision, which columns are wrong answers, and files of pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.equivariance import StereoPair, column_smooth_ap, load_stereo_windows, stereo_retrieval_loss
from tests.equivariance.toy_codecs import photograph_rows

RANDOM = np.random.default_rng(0)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_at_a_low_temperature_it_is_the_average_precision():
    queries, candidates = (RANDOM.normal(size=(n, 5)).astype(np.float32) for n in (6, 9))
    positives = RANDOM.random((6, 9)) < 0.3
    positives[0] = False  # Does not count.
    negatives = ~positives & (RANDOM.random((6, 9)) < 0.7)
    similarity, expected = unit(queries) @ unit(candidates).T, []
    for scores, right, wrong in zip(similarity, positives, negatives, strict=True):
        if right.any():
            ranks = [(np.sum(scores[right] >= s), np.sum(scores[right | wrong] >= s)) for s in scores[right]]
            expected.append(np.mean([a / b for a, b in ranks]))
    loss = column_smooth_ap(queries, candidates, positives, negatives, temperature=1e-5)
    assert float(loss) == pytest.approx(1 - np.mean(expected), abs=1e-4)
    assert 0.1 < float(loss) < 0.9
    nothing = np.zeros_like(positives)
    assert float(column_smooth_ap(queries, candidates, nothing, negatives)) == 0


def test_its_gradient_brings_a_query_to_its_positive():
    candidates, same = np.eye(3, dtype=np.float32), np.eye(3, dtype=bool)
    queries = np.array([[0.4, 0.5, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    step = jax.grad(lambda q: column_smooth_ap(q, candidates, same, ~same, temperature=0.1))(queries)
    assert step[0, 0] < 0 < step[0, 1] and np.isfinite(step).all()
    zero = jax.grad(lambda q: column_smooth_ap(q, candidates, same, ~same))(jnp.zeros((3, 3)))
    assert np.isfinite(zero).all()


def test_columns_of_the_same_place_are_no_wrong_answers():
    """Two windows that overlap: the second starts half a column further."""
    latents = jnp.asarray(np.stack([np.eye(2, 4), np.eye(2, 4)]), jnp.float32)  # Their columns look alike.

    def loss(*second):
        places = np.array([[0, 0, 0], second])
        return float(stereo_retrieval_loss(latents, latents, places, stride=16, height=64))

    assert loss(0, 0, 8) < 1e-3  # Column 0 of one is nearly that of the other.
    # Elsewhere the same latents are a mistake: half of the candidates that come first are wrong.
    assert loss(0, 0, 160) == loss(0, 64, 0) == loss(1, 0, 0) > 0.3
    assert loss(0, 32, 0) < 1e-3  # Half of the rows are the same.


@pytest.fixture(name="pair", scope="module")
def _pair():
    """A plane 6 pixels away."""
    scene = (127.5 * (photograph_rows(1, 70)[0] + 1)).astype(np.uint8)
    return StereoPair(scene[:, :64], scene[:, 6:], np.full((16, 64), 6.0, np.float32))


def test_windows_of_files_correspond(pair, tmp_path):
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", **pair._asdict())
    windows = load_stereo_windows(tmp_path, height=16, stride=4)
    assert (windows.left == windows.right).all() and windows.left.shape[1:] == (16, 16, 3)
    assert set(windows.places[:, 0]) == {0, 1} and (windows.places[:, 1] == 0).all()
    one = load_stereo_windows(str(tmp_path / "a.npz"), height=16, stride=4)
    assert 2 * len(one.left) == len(windows.left)
    row, start = one.places[3, 1:]
    np.testing.assert_array_equal(one.right[3], pair.right[row : row + 16, start : start + 16])


def test_the_built_in_pair_has_windows():
    windows = load_stereo_windows(height=64, stride=16)
    assert len(windows.left) > 50 and windows.left.dtype == np.uint8
    near = np.abs(windows.left.astype(float) - windows.right).mean()
    mixed = np.abs(windows.left.astype(float) - np.roll(windows.right, 1, axis=0)).mean()
    assert near < 0.6 * mixed


def test_wrong_files_are_refused(pair, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.npz does not exist; give an .npz file of a rectified pair"):
        load_stereo_windows(tmp_path / "none.npz", height=16, stride=4)
    with pytest.raises(FileNotFoundError, match="has no .npz files"):
        load_stereo_windows(tmp_path, height=16, stride=4)
    path = tmp_path / "a.npz"
    np.savez(path, left=pair.left, right=pair.right)
    with pytest.raises(ValueError, match="lacks disparity"):
        load_stereo_windows(path, height=16, stride=4)
    np.savez(path, left=pair.left.astype(np.float32), right=pair.right, disparity=pair.disparity)
    with pytest.raises(TypeError, match="left of .*a.npz"):
        load_stereo_windows(path, height=16, stride=4)
    np.savez(path, **pair._replace(disparity=pair.disparity[:8])._asdict())
    with pytest.raises(ValueError, match="disparity of .*a.npz"):
        load_stereo_windows(path, height=16, stride=4)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="a rectified pair"):
        load_stereo_windows(path, height=16, stride=4)
    with pytest.raises(ValueError, match="no window of 400 × 64 pixels"):
        load_stereo_windows(height=400, stride=16)


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="candidates="):
        column_smooth_ap(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32), np.eye(2) > 0, np.eye(2) > 0)
    with pytest.raises(TypeError, match="positives="):
        column_smooth_ap(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), np.eye(2), np.eye(2) > 0)
    same = np.eye(2) > 0
    with pytest.raises(ValueError, match="temperature=0 must be"):
        column_smooth_ap(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), same, ~same, temperature=0)
