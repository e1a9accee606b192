"""Training time: what happens in a pause is counted neither in it nor afterwards."""

from types import SimpleNamespace

import pytest

from training import stopwatch


def test_a_pause_is_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now))
    watch = stopwatch.Stopwatch(step=7, seconds=5.0)
    now += 2
    assert watch.seconds == 7
    with watch.paused():
        now += 30
        assert watch.seconds == 7, "as a checkpoint has it, which is saved in a pause"
    assert watch.seconds == 7
    with pytest.raises(ValueError), watch.paused():
        now += 30
        raise ValueError
    now += 1
    assert watch.seconds == 8
    lap = watch.lap(step=9, wait=0.75, host=0.0)
    assert (lap.steps, lap.seconds, lap.data_wait) == (2, 3.0, 0.25)
