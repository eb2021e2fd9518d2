"""The engine: strips of a viewer depend on nothing but his own session, and every wait has an end."""

from concurrent import futures
import itertools
import threading
import time
from typing import Any

import numpy as np
import pytest

from eqjax import outpaint, panorama
from eqjax.serving.engine import Engine
from eqjax.serving.errors import EngineClosed, EngineFailed, Full, StripTimeout, UnknownSession, WrongOrder
from eqjax.serving.steering import Steering
from tests.compilations import count_compilations
from tests.sampling.small_models import local_model, published_model

OPTIONS: dict[str, Any] = dict(num_flow_steps=2, strip_columns=6)
CAT, DOG = Steering(0, 0, guidance_scale=3.0), Steering(1, 1, guidance_scale=3.0)
# The local tokenizer sees this many columns to both sides.
HALO = local_model().require("tokenizer").halo_columns or 0


class Clock:
    """A clock that stands still."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module", name="engine")
def _engine():
    with Engine(local_model(), num_slots=8, max_sessions=40, idle_seconds=1e6, **OPTIONS) as engine:
        yield engine


@pytest.fixture(scope="module", name="photo")
def _photo():
    return np.random.default_rng(0).integers(0, 256, (16, 10, 3), np.uint8)


def draw(engine, count, seed=3, steering=CAT, side="right", photo=None):
    """Returns strips of a session of its own."""
    session = engine.open(seed=seed, photo=photo)
    strips = [engine.strip(session.id, side, i, steering) for i in range(count)]
    engine.drop(session.id)
    return strips


def largest_difference(image, other):
    return np.abs(np.asarray(image, int) - np.asarray(other, int)).max()


@pytest.mark.parametrize("make_model", [local_model, pytest.param(published_model, marks=pytest.mark.slow)])
def test_strips_are_those_of_a_panorama(make_model, engine):
    model = make_model()
    expected = panorama(
        model, 0, seed=3, num_flow_steps=2, solver="adams_bashforth", guidance_scale=3.0, guidance_schedule="constant"
    )
    whole = np.concatenate(list(itertools.islice(expected, 9)), axis=1)
    if make_model is local_model:
        strips = draw(engine, 4)
    else:
        with Engine(model, num_slots=2, max_sessions=2, **OPTIONS) as other:
            strips = draw(other, 4)
    assert {strip.shape for strip in strips} == {(16, 12, 3)} and {strip.dtype for strip in strips} == {np.dtype("u1")}
    image = np.concatenate(strips, axis=1)
    assert largest_difference(image, whole[:, : image.shape[1]]) <= 1


def test_a_viewer_among_seven_others_sees_to_the_bit_what_he_sees_alone(engine, photo):
    steerings = [Steering(i % 3, (i + 1) % 3, i / 4, 2.0 + i, 0.8 + i / 10) for i in range(5)]

    def watch(i):
        session = engine.open(seed=i, photo=photo if i % 3 == 0 else None)
        sides = session.sides[:: 1 if i % 2 else -1]
        strips = {side: [engine.strip(session.id, side, n, steerings[(i + n) % 5]) for n in range(5)] for side in sides}
        engine.drop(session.id)
        return strips

    alone = [watch(i) for i in range(8)]
    with futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(watch, range(8)))
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for side in one:
            np.testing.assert_array_equal(one[side], other[side])
    assert len({strips["right"][0].tobytes() for strips in alone}) == 8


def test_a_steering_changes_the_columns_sampled_for_its_strip_and_none_before(engine):
    assert engine.lookahead_columns == HALO
    session = engine.open(seed=3)
    before, change = draw(engine, 12), 2
    steered = [engine.strip(session.id, "right", i, CAT if i < change else DOG) for i in range(12)]
    image, other = np.concatenate(before, axis=1), np.concatenate(steered, axis=1)
    sampled = 2 * (OPTIONS["strip_columns"] * change + HALO)  # In pixels, before the steering.
    # A column shows through those before it as far as the decoder sees.
    np.testing.assert_array_equal(image[:, : sampled - 2 * HALO], other[:, : sampled - 2 * HALO])
    assert (image[:, sampled : sampled + 2] != other[:, sampled : sampled + 2]).any()
    np.testing.assert_array_equal(np.concatenate(draw(engine, 4, steering=Steering(0, 1, 1.0, 3.0)), 1),
                                  np.concatenate(draw(engine, 4, steering=DOG), 1))  # fmt: skip
    half, hot, free = (
        draw(engine, 1, steering=s)[0]
        for s in (Steering(0, 1, 0.5, 3.0), Steering(0, 0, 0, 3.0, 1.5), Steering(0, 0, 0, 1.0))
    )
    assert len({strip.tobytes() for strip in (before[0], half, hot, free)}) == 4


def test_a_photograph_continues_to_both_sides_as_in_outpaint(engine, photo):
    steering = Steering(1, 1, guidance_scale=3.0)
    kwargs: dict[str, Any] = dict(guidance_scale=3.0, guidance_schedule="constant")
    whole = outpaint(
        engine.model, photo, "dog", left=40, right=40, seed=7, num_flow_steps=2, solver="adams_bashforth", **kwargs
    )
    session = engine.open(seed=7, photo=photo)
    assert session.sides == ("left", "right") and session.seed == 7
    np.testing.assert_array_equal(session.photo, photo[:, 2:-2])
    right = [engine.strip(session.id, "right", i, steering) for i in range(3)]
    left = [engine.strip(session.id, "left", i, steering) for i in range(3)]
    image = np.concatenate([*left[::-1], session.photo, *right], axis=1)
    start = 2 * 40 + 2 - 3 * 12  # The strips begin with the photograph's outermost columns.
    different = np.abs(image.astype(int) - whole[:, start : start + image.shape[1]]).max((0, 2)) > 1
    seams = [34, 35, 42, 43]  # There outpaint fades reconstructions that leave the range of pixels.
    assert not set(np.flatnonzero(different)) - set(seams)
    rebuilt = outpaint(
        engine.model, photo, "dog", right=40, seed=7, keep_pixels=False, num_flow_steps=2, solver="adams_bashforth",
        **kwargs,
    )  # fmt: skip
    weight = np.array([0.75, 0.25])[:, None]
    assert largest_difference(right[0][:, :2], np.round(weight * photo[:, 8:] + (1 - weight) * rebuilt[:, 8:10])) <= 1


def test_photographs_of_tokenizers_without_halo_continue_as_panoramas():
    model = published_model()
    photo = np.random.default_rng(0).integers(0, 256, (16, 26, 3), np.uint8)
    options: dict[str, Any] = dict(num_flow_steps=2, solver="adams_bashforth", guidance_scale=3.0)
    strips = panorama(model, 1, seed=7, prefix=model.encode(photo[None]), guidance_schedule="constant", **options)
    whole = np.concatenate(list(itertools.islice(strips, 9)), axis=1)
    with Engine(model, num_slots=2, max_sessions=2, **OPTIONS) as engine:
        image = np.concatenate(draw(engine, 3, seed=7, steering=DOG, photo=photo), axis=1)
    assert largest_difference(image[:, 2:], whole[:, 26 : 26 + 34]) <= 1
    assert (image[:, :2] != whole[:, 24:26]).any()  # The seam.


def test_the_last_three_strips_can_be_asked_for_again(engine):
    session = engine.open(seed=5)
    strips = [engine.strip(session.id, "right", i, CAT) for i in range(4)]
    for i in (1, 2, 3):
        assert engine.strip(session.id, "right", i, DOG) is strips[i]
    for i in (0, 5):
        with pytest.raises(WrongOrder, match=f"strip {i} of .* the next one is 4, .*1, 2, 3. are") as caught:
            engine.strip(session.id, "right", i, CAT)
        assert caught.value.expected == 4
    with pytest.raises(ValueError, match="read-only"):
        strips[0][:] = 0


def test_all_who_ask_for_one_strip_get_the_same(engine):
    session, drawn = engine.open(seed=6), engine.status().strips
    with futures.ThreadPoolExecutor(8) as pool:
        strips = list(pool.map(lambda i: engine.strip(session.id, "right", 0, (CAT, DOG)[i % 2]), range(8)))
    assert all(strip is strips[0] for strip in strips) and engine.status().strips == drawn + 1


def test_sessions_that_nobody_uses_are_dropped():
    clock = Clock()
    with Engine(local_model(), num_slots=8, max_sessions=2, idle_seconds=60.0, clock=clock, **OPTIONS) as engine:
        first, second = engine.open(seed=1), engine.open(seed=2)
        clock.now += 50
        engine.strip(second.id, "right", 0, CAT)
        with pytest.raises(Full, match="all 2 places are taken: try again in 10 s") as caught:
            engine.open(seed=3)
        assert caught.value.retry_after == 10
        clock.now += 11
        assert engine.status().sessions == 1
        with pytest.raises(UnknownSession, match="dropped after a pause"):
            engine.strip(first.id, "right", 0, CAT)
        assert engine.open(seed=3).id not in (first.id, second.id)
        assert engine.strip(second.id, "right", 1, CAT).shape == (16, 12, 3)


def test_a_bounded_number_of_strips_waits(engine, monkeypatch):
    gate = hold(engine, monkeypatch)
    monkeypatch.setattr(engine, "_max_queue", 2)
    sessions = [engine.open(seed=i) for i in range(4)]
    with futures.ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(engine.strip, sessions[0].id, "right", 0, CAT)]
        gate.reached.wait(60)
        waiting += [pool.submit(engine.strip, session.id, "right", 0, CAT) for session in sessions[1:3]]
        wait_until(lambda: engine.status().waiting == 2)
        with pytest.raises(Full, match="2 strips are waited for: try again in 1 s") as caught:
            engine.strip(sessions[3].id, "right", 0, CAT)
        assert caught.value.retry_after == 1
        gate.opened.set()
        assert all(future.result(60).shape == (16, 12, 3) for future in waiting)


def test_a_strip_that_takes_too_long_is_there_later(engine, monkeypatch):
    gate = hold(engine, monkeypatch)
    session = engine.open(seed=3)
    with pytest.raises(StripTimeout, match="strip 0 was not drawn in 0.05 s: ask for it again"):
        engine.strip(session.id, "right", 0, CAT, timeout=0.05)
    gate.opened.set()
    np.testing.assert_array_equal(engine.strip(session.id, "right", 0, DOG, timeout=60), draw(engine, 1)[0])


def test_a_step_that_fails_is_an_error_for_those_who_wait_and_changes_no_session(engine, monkeypatch):
    session, programs, expected = engine.open(seed=3), engine._artist._programs, draw(engine, 5)
    np.testing.assert_array_equal(engine.strip(session.id, "right", 0, CAT), expected[0])
    decode = programs.decode
    monkeypatch.setattr(programs, "decode", lambda _: 1 / 0)
    with pytest.raises(EngineFailed, match=r"could not be drawn \(ZeroDivisionError\)") as caught:
        engine.strip(session.id, "right", 1, DOG)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    monkeypatch.setattr(programs, "encode", lambda _: 1 / 0)
    with pytest.raises(EngineFailed, match="the photo could not be encoded"):
        engine.open(seed=1, photo=np.zeros((16, 8, 3), np.uint8))
    monkeypatch.setattr(programs, "decode", decode)
    for i in range(1, 5):  # The columns that failed to be decoded would show in the last ones.
        np.testing.assert_array_equal(engine.strip(session.id, "right", i, CAT), expected[i])


def test_dropping_and_closing_wake_those_who_wait(monkeypatch):
    engine = Engine(local_model(), num_slots=8, max_sessions=4, **OPTIONS)
    with pytest.raises(EngineClosed, match="not started"):
        engine.open(seed=0)
    said: list[str] = []
    engine.start(said.append)
    assert len(said) >= 3 and "room for 4 viewers" in said[-1]
    gate = hold(engine, monkeypatch)
    with futures.ThreadPoolExecutor(3) as pool:
        sessions = [engine.open(seed=i) for i in range(3)]
        waiting = [pool.submit(engine.strip, sessions[0].id, "right", 0, CAT)]
        gate.reached.wait(60)
        waiting += [pool.submit(engine.strip, session.id, "right", 0, CAT) for session in sessions[1:]]
        wait_until(lambda: engine.status().waiting == 2)
        engine.drop(sessions[1].id)
        with pytest.raises(UnknownSession):
            waiting[1].result(60)
        closing = pool.submit(engine.close)
        for future in (waiting[0], waiting[2]):  # Also the one that is being drawn.
            with pytest.raises(EngineClosed, match="was closed"):
                future.result(60)
        gate.opened.set()
        closing.result(60)
    with pytest.raises(EngineClosed):
        engine.open(seed=0)
    engine.close()


def test_an_error_outside_of_steps_ends_the_engine_and_no_wait(monkeypatch):
    engine = Engine(local_model(), num_slots=8, max_sessions=4, **OPTIONS).start()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    session = engine.open(seed=1)
    monkeypatch.setattr(engine._artist, "step", lambda _: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(EngineClosed, match="ended by an error"):
        engine.strip(session.id, "right", 0, CAT)
    with pytest.raises(EngineClosed):
        engine.open(seed=0)
    engine.close()


def test_serving_compiles_nothing(engine, photo):
    session = engine.open(seed=1, photo=photo)  # Eager functions of this test's own compile here.
    with count_compilations() as compiled:
        for width in (6, 7, 40, 128):
            other = engine.open(seed=width, photo=np.zeros((16, width, 3), np.uint8))
            for side in other.sides:
                engine.strip(other.id, side, 0, Steering(2, 1, 0.25))
        for i in range(4):
            engine.strip(session.id, "left", i, Steering(i % 3, (i + 1) % 3, 0.3 * i, 1.0 + i, 0.5))
    assert not compiled


def test_the_measured_speed_bounds_the_sessions():
    with Engine(local_model(), num_slots=8, columns_per_second=1e9, **OPTIONS) as engine:
        status = engine.status()
        assert engine.max_sessions == status.max_sessions == 1 and status.columns_per_second > 1
        assert status.strips == status.sessions == status.waiting == 0 and status.latency == 0


def test_an_engine_describes_itself(engine):
    assert (engine.height, engine.column_width, engine.strip_columns, engine.strip_width) == (16, 2, 6, 12)
    assert engine.class_names == ("cat", "dog", "eel")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(seed=-1), "seed=-1 must be an integer ≥ 0"),
        (dict(seed="x"), "seed='x' must be an integer"),
        (dict(seed=1, photo=np.zeros((16, 20), np.uint8)), "photo"),
        (dict(seed=1, photo=np.zeros((16, 20, 3))), "photo"),
        (dict(seed=1, photo=np.zeros((0, 20, 3), np.uint8)), "photo"),
        (dict(seed=1, photo=np.zeros((16, 1, 3), np.uint8)), "less than a column of 2"),
        (dict(seed=1, photo=np.zeros((16, 5, 3), np.uint8)), "the photo is 4 pixels wide .* expected 6 … 128"),
        (dict(seed=1, photo=np.zeros((16, 131, 3), np.uint8)), "the photo is 130 pixels wide .* expected 6 … 128"),
    ],
)
def test_a_bad_argument_of_open_is_refused_by_name(engine, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        engine.open(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(side="left"), r"side='left' is not one of this session's sides, \['right'\]"),
        (dict(side=None), "side=None is not one"),
        (dict(index=-1), "index=-1 must be an integer ≥ 0"),
        (dict(index=0.5), "index=0.5 must be an integer"),
        (dict(steering=Steering(0, 3)), "second_class=3 must be an integer ≥ 0 and ≤ 2"),
        (dict(steering=(0, 1)), "steering=.* must be an eqjax.serving.steering.Steering"),
    ],
)
def test_a_bad_argument_of_strip_is_refused_by_name(engine, change, message):
    session = engine.open(seed=1)
    with pytest.raises((TypeError, ValueError), match=message):
        engine.strip(**{"session_id": session.id, "side": "right", "index": 0, "steering": CAT, **change})
    engine.drop(session.id)
    for unknown in (session.id, "", "x" * 1000):
        with pytest.raises(UnknownSession):
            engine.strip(unknown, "right", 0, CAT)
        with pytest.raises(UnknownSession):
            engine.drop(unknown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_slots=0), "num_slots=0 must be an integer ≥ 1"),
        (dict(strip_columns=None), "strip_columns=None must be"),
        (dict(num_flow_steps=0), "num_flow_steps=0 must be"),
        (dict(max_sessions=0), "max_sessions=0 must be"),
        (dict(idle_seconds=0), "idle_seconds=0 must be a finite number > 0"),
        (dict(model=3), "model=3 must be a model"),
        (dict(model=local_model(window_size=None)), "sees all columns"),
    ],
)
def test_a_bad_option_is_refused_by_name(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Engine(**{"model": local_model(), **options})


class Gate:
    """Where the engine's thread waits."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()


def hold(engine, monkeypatch):
    """Returns a gate at which the engine waits before it samples."""
    gate, sample = Gate(), engine._artist._programs.sample

    def wait(rows):
        gate.reached.set()
        assert gate.opened.wait(60)
        return sample(rows)

    monkeypatch.setattr(engine._artist._programs, "sample", wait)
    return gate


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
