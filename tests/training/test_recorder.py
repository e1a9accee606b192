"""Records: what they cost is not taken from training."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from model.method import Output
from training.recorder import Recorder
from training.settings import parse
from training.stopwatch import Stopwatch


def test_the_time_of_trackers_is_no_training_time(tmp_path: Path) -> None:
    stopwatch = Stopwatch(step=0, seconds=0.0)
    clock: list[float] = []

    def log(_: Any) -> None:
        for _ in range(2):
            clock.append(stopwatch.seconds)
            time.sleep(0.01)

    loader = SimpleNamespace(wait_seconds=lambda: 0.0, host_seconds=lambda: 0.0, shard_set=None)
    stubs: dict[str, Any] = {
        "processes": SimpleNamespace(
            device=torch.device("cpu"),
            accelerator=SimpleNamespace(reduce=lambda value, **_: value),
        ),
        "schedule": SimpleNamespace(epoch_at=lambda _: 0.5, seconds_left=lambda *_, **__: 1.0),
        "train_step": None,
        "suite": None,
        "monitor": SimpleNamespace(step=lambda _: None),
        "trackers": SimpleNamespace(log=log),
        "watch": SimpleNamespace(found=0, news=list),
        "bottleneck": SimpleNamespace(loader=loader, update=lambda **_: None),
        "collapse": SimpleNamespace(update=lambda *_, **__: None),
    }
    words = ["--shards", "x", "--run", str(tmp_path), "--steps", "5"]
    recorder = Recorder(config=parse(words).config, stopwatch=stopwatch, **stubs)
    output = Output(loss=torch.tensor(1.0), z_VAD=torch.randn(2, 4, 3))
    recorder.record(1, output, learning_rate=0.1, skipped=0, in_a_row=0)
    assert clock[0] == clock[1]
    time.sleep(0.001)
    assert stopwatch.seconds > clock[1]  # it goes on
