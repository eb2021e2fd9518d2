"""Models and panoramas that several threads use at once."""

from concurrent import futures
from typing import Any

import numpy as np

from eqjax import panorama
from tests.sampling.small_models import local_model

OPTIONS: dict[str, Any] = dict(guidance_scale=2.0, num_flow_steps=2)


def test_every_strip_of_a_panorama_goes_to_one_of_eight_threads():
    m = local_model()
    expected = list(panorama(m, 1, seed=3, num_columns=150, strip_columns=5, **OPTIONS))
    strips, states = panorama(m, 1, seed=3, num_columns=150, strip_columns=5, **OPTIONS), []

    def take(_):
        taken = []
        for strip in strips:
            taken.append(strip)
            states.append(strips.state())
        return taken

    with futures.ThreadPoolExecutor(8) as pool:
        taken = [strip for part in pool.map(take, range(8)) for strip in part]
    assert len(taken) == len(expected) > 20 and strips.emitted == 150
    assert {strip.tobytes() for strip in taken} == {strip.tobytes() for strip in expected}
    # A state that was saved between other threads' strips continues like the panorama.
    rest = list(panorama(m, state=states[3]))
    np.testing.assert_array_equal(np.concatenate(rest[-3:], 1), np.concatenate(expected[-3:], 1))


def test_a_model_used_by_eight_threads_gives_the_images_of_one():
    m = local_model()
    seeds = range(8)

    def sample(seed):
        return np.asarray(m.sample(["cat", "dog"], num_columns=3 + 5 * seed, seed=seed, **OPTIONS))

    with futures.ThreadPoolExecutor(8) as pool:  # The first calls of this batch: all threads wait for one compilation.
        together = list(pool.map(sample, seeds))
    for seed, images in zip(seeds, together, strict=True):
        np.testing.assert_array_equal(images, sample(seed))
