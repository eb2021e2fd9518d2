"""Which steps the profiler traces."""

import jax
import pytest

from eqjax.training.fault_tolerance import StepWatch
from eqjax.training.profiler import Profiler


class Watch(StepWatch):
    """Counts how often the steps are awaited."""

    drained = 0

    def drain(self):
        self.drained += 1


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (range(1, 7), ["start 3", "stop 5"]),
        (range(1, 5), ["start 3", "stop end"]),
        (range(4, 7), ["start 4", "stop 5"]),
        (range(5, 9), []),
    ],
)
def test_the_trace_covers_its_steps_as_far_as_the_run_does_them(monkeypatch, tmp_path, steps, expected):
    events, now, watch = [], None, Watch(None)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: events.append(f"start {now}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append(f"stop {now}"))
    with Profiler(str(tmp_path), 3, 2) as profiler:
        for now in steps:
            profiler.before(now, watch)
        now = "end"
    assert events == expected
    assert watch.drained == ("stop 5" in events)


def test_without_a_first_step_nothing_is_traced(monkeypatch, tmp_path):
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: pytest.fail(folder))
    with Profiler(str(tmp_path), None, 10) as profiler:
        for step in range(5):
            profiler.before(step, Watch(None))
