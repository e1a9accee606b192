"""One run of a comparison: train.py as a child process, and the figures in the run's folder.

A run is finished when its encoder and its final evaluation exist. All is read from the run's own
files, so that no second record can disagree with them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from training import exported
from training.launch import end_with_parent
from training.monitor import records
from training.run import checkpoint

ROOT = Path(__file__).resolve().parents[2]
TICK = 0.5  # seconds between two looks at a child


class Stopped(BaseException):
    """A signal asked this program to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Failed(Exception):
    """A child process failed; the text holds its exit status and its last message."""


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


def finished(run: Path) -> bool:
    """Whether a run has reached its end."""
    return (run / exported.NAME).exists() and bool(_finals(records(run)))


def drop_checkpoints(run: Path) -> None:
    """Remove the checkpoints of a run that will not continue."""
    shutil.rmtree(run / checkpoint.FOLDER, ignore_errors=True)


def result(run: Path, *, batch_size: int, views: int) -> dict[str, Any]:
    """Return the figures of a finished run.

    Speed and waiting leave out the first record, which includes the start of the pipeline. The
    seconds of an evaluation between two records are interpolated.

    Args:
        run: the run's folder.
        batch_size: samples in a step.
        views: views of a sample.
    """
    found = records(run)
    steps = [record for record in found if "loss" in record]
    final = _finals(found)[-1]
    first, last, laps = steps[0], steps[-1], steps[1:]
    if not laps:  # a single record
        first, laps = {"step": 0, "seconds": 0.0}, steps
    spent = last["seconds"] - first["seconds"]
    waited = sum(
        lap["data_wait"] * (lap["seconds"] - before["seconds"])
        for before, lap in pairwise([first, *laps])
    )
    online = [r for r in found if r.get("evaluation") == "online" and r["step"] < last["step"]]

    def figures(record: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in record.items() if k not in ("step", "evaluation")}

    known_steps = [0, *(record["step"] for record in steps)]
    known_seconds = [0.0, *(record["seconds"] for record in steps)]

    def at(step: int) -> dict[str, Any]:
        seconds = float(np.interp(step, known_steps, known_seconds))
        return {"step": step, "seconds": seconds, "image_views": step * batch_size * views}

    return {
        "steps": last["step"],
        "seconds": last["seconds"],
        "image_views": last["step"] * batch_size * views,
        "images_per_second": (last["step"] - first["step"]) * batch_size / spent,
        "data_wait": waited / spent,
        "memory_gib": max(record["memory_gib"] for record in steps),
        "loss": last["loss"],
        "final": figures(final),
        "curve": [at(point["step"]) | figures(point) for point in [*online, final]],
    }


def _finals(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in found if record.get("evaluation") == "final"]


# ── the child ─────────────────────────────────────────────────────────────────────────────────────


def launch(processes: int) -> list[str]:
    """Return the first words of a command that trains with this many processes.

    One process starts without a launcher, which would read the user's settings of Accelerate.
    """
    program = "train.py" if Path("train.py").resolve() == ROOT / "train.py" else ROOT / "train.py"
    if processes == 1:
        return [sys.executable, str(program)]
    accelerate = str(Path(sys.executable).parent / "accelerate")
    several = ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", "0"]
    return [accelerate, "launch", "--quiet", *several, str(program)]


def call(command: Sequence[str], log: Path, on_tick: Callable[[], None]) -> None:
    """Run a child process to its end; its output goes to a file.

    Args:
        command: what to run.
        log: file that its output is appended to.
        on_tick: called twice a second.

    Raises:
        Failed: the child failed; the text has its exit status and its last error.
        Stopped: a signal came; the child has saved and ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("a") as output:
        begin = output.tell()
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"},
            start_new_session=True,  # Ctrl-C reaches it only through this program, once
            preexec_fn=end_with_parent,  # no run outlives this program
        )
        try:
            while True:
                try:
                    code = child.wait(TICK)
                    break
                except subprocess.TimeoutExpired:
                    on_tick()
        except BaseException:
            _end(child)
            raise
    if code:
        raise Failed(f"{_status(code)}: {last_word(log, begin)}")


def last_word(log: Path, begin: int = 0) -> str:
    """Return the last line of a log that names an error; without one, the last line."""
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and not line.startswith("File ")]
    return ((errors or lines)[-1:] or ["it wrote nothing"])[0]


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask a child to save and end, and wait; a second signal ends it at once."""
    try:
        child.terminate()
        child.wait()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise


def _status(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
