"""What the terminal shows is what metrics.jsonl holds."""

import errno
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training.monitor import Monitor, keep_records, records
from training.stream import Tee

RECORD = {
    "step": 10,
    "loss": 0.51234,
    "batch_ap": 0.25,
    "images_per_second": 1234.5,
    "views_per_second": 4938.0,
    "data_wait": 0.0123,
    "memory_gib": 1.5,
    "seconds_left": 3725.0,
}


def test_plain_lines_hold_every_figure_without_a_terminal(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=False, width=40)
    with Monitor(tmp_path, main=True, step=0, total_steps=100, console=console) as monitor:
        monitor.step(RECORD)
        monitor.evaluation({"step": 10, "evaluation": "final", "knn_top1": 0.75})
    shown = text.getvalue()
    figures = ("step 10/100", "loss 0.5123", "AP 0.250", "1,234 images/s", "4,938 views/s")
    for words in (*figures, "1.2%", "1.5 GiB", "1:02:05 left", "k-NN 75.0 %"):
        assert words in shown
    assert len(shown.splitlines()) == 2  # no line is folded
    assert [record["step"] for record in records(tmp_path)] == [10, 10]
    assert records(tmp_path)[0] == RECORD


def test_what_looks_like_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    text = io.StringIO()
    with Monitor(
        tmp_path, main=True, step=0, total_steps=1, console=Console(file=text, width=40)
    ) as monitor:
        monitor.say("no k-NN: error in [/opt/dali/a.cc:89]; see runs/x[abl] :smile:")
    assert text.getvalue() == "no k-NN: error in [/opt/dali/a.cc:89]; see runs/x[abl] :smile:\n"


def test_on_a_terminal_warnings_are_shown_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, log = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", Tee(io.StringIO(), log))
    console = Console(file=text, force_terminal=True, width=80)
    with Monitor(tmp_path, main=True, step=0, total_steps=1, console=console):
        sys.stderr.write("warning: a damaged image\n")
    assert "warning: a damaged image" in text.getvalue()
    assert log.getvalue() == "warning: a damaged image\n"


def test_a_run_that_ends_by_the_time_has_no_last_step(tmp_path: Path) -> None:
    for terminal, words in ((False, "step 10  loss"), (True, "step 10")):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=200)
        with Monitor(tmp_path, main=True, step=0, total_steps=None, console=console) as monitor:
            monitor.step(RECORD)
            monitor.advance(10, 0.25)
        assert words in text.getvalue() and "10/" not in text.getvalue()


def test_other_ranks_show_and_store_nothing(tmp_path: Path) -> None:
    with Monitor(tmp_path, main=False, step=0, total_steps=100) as monitor:
        monitor.step(RECORD)
    assert records(tmp_path) == []


def test_records_after_the_checkpoint_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "lo')  # cut off by a kill
    keep_records(path, up_to=2)
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_records_wait_for_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor(tmp_path, main=True, step=0, total_steps=9, console=Console(quiet=True))
    monitor.step(RECORD | {"step": 1})
    path = tmp_path / "metrics.jsonl"
    real = Path.open

    def full(self: Path, *words: Any, **more: Any) -> Any:
        if self == path:
            with real(self, "ab") as file:
                file.write(b'{"step": 2, "lo')  # as much as there was room for
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        monitor.step(RECORD | {"step": 2})
        monitor.step(RECORD | {"step": 3})
    assert capsys.readouterr().err.count("No space left") == 1
    monitor.step(RECORD | {"step": 4})
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4]
