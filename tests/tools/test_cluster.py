"""A comparison on a Ray cluster: several runs at a time, and a killed worker's run goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import MakeShardSet
from tests.program import CPU, RECIPE, ROOT, losses

pytestmark = pytest.mark.slow
WORDS = ["--image_views", "4800", "--points", "2", "--seeds", "0", "1"]  # 150 steps


def compared(folder: Path, more: list[str], *engine: str) -> list[str]:
    recipes = [folder / "tiny_ap.yaml", folder / "tiny_xent.yaml"]
    recipes[0].write_text(RECIPE)
    recipes[1].write_text(RECIPE.replace("SmoothAP", "NTXent"))
    words = [*map(str, recipes), *WORDS, "--out", str(folder / "out"), *engine, "--", *more]
    return [sys.executable, "-m", "tools.compare", *words]


def started(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **CPU},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def worker_of(run: Path) -> int | None:
    """Return the parent of the process that trains in a folder."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if "--run" in words and str(run) in words:
                return int(re.findall(r"^PPid:\s+(\d+)", (folder / "status").read_text(), re.M)[0])
    return None


def test_four_runs_on_two_workers_one_of_which_is_killed(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    root = str(make_shard_set(42).root)
    more = ["--shards", root, "--evaluation_test", root, "--evaluation_train", root]
    (tmp_path / "here").mkdir()
    (tmp_path / "ray").mkdir()
    begin = time.monotonic()
    process = started(compared(tmp_path / "ray", more, "--engine", "ray"))
    run = tmp_path / "ray" / "out" / "runs" / "tiny_ap-seed0"
    while not any(step >= 40 for step, _ in losses(run)):
        assert process.poll() is None and time.monotonic() - begin < 240, process.communicate()
        time.sleep(0.1)
    worker = worker_of(run)
    assert worker is not None and "ray" in Path(f"/proc/{worker}/cmdline").read_text()
    os.kill(worker, signal.SIGKILL)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    assert "2 runs at a time on the Ray cluster" in out
    assert (
        "continuing from step"
        in (tmp_path / "ray" / "out" / "logs" / "tiny_ap-seed-0.log").read_text()
    )

    # On one core, as each run on the cluster: sums of two threads have another order.
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    alone = started([*one_core, *compared(tmp_path / "here", more)])
    text, _ = alone.communicate(timeout=400)
    assert alone.returncode == 0, text
    there, here = (
        json.loads((tmp_path / name / "out" / "comparison.json").read_text())["runs"]
        for name in ("ray", "here")
    )
    assert [entry["final"] for entry in there] == [entry["final"] for entry in here]
