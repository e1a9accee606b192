"""Start the program as its users do, and read what it left behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from shards.layout import ShardSet
from tests.forked import Forked
from training.monitor import records
from training.run import checkpoint

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TWO = ["launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
# Tiny, and with all that could break a resume: multi-crop, blur, dropout-free batch norm, clipping.
RECIPE = """
views: {count: 2, size: 24, policy: {class_path: SimCLRViews}}
more_views:
- {count: 2, size: 16, policy: {class_path: SwAVViews, init_args: {small: true, blur_window: 3}}}
batch_size: 8
method:
  class_path: JointEmbedding
  init_args:
    encoder: {class_path: SmallResNet, init_args: {width: 4}}
    objective: {class_path: SmoothAP}
    hidden_size: 16
    embedding_size: 8
learning_rate: 0.01
warmup_epochs: 0.5
clip_gradient_norm: 1.0
shuffle_buffer: 16
log_every: 1
profile_seconds: 0
check_memory: false
"""


def arguments(shard_set: ShardSet, run: Path, *more: str) -> list[str]:
    recipe = run.parent / "recipe.yaml"
    recipe.write_text(RECIPE)
    files = ["--config", str(recipe), "--shards", str(shard_set.root), "--run", str(run)]
    return ["train.py", *files, *more]


def start(program: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a program; one of ours, with the usual environment, without its seconds of imports."""
    if program[0] == sys.executable and not environment:
        return Forked(program[1:], {**os.environ, **CPU})
    return subprocess.Popen(
        program,
        cwd=ROOT,
        env={**os.environ, **CPU, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(program: list[str], **environment: str) -> tuple[int, str, str]:
    process = start(program, **environment)
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def train(shard_set: ShardSet, run: Path, *more: str) -> tuple[int, str, str]:
    return finish([sys.executable, *arguments(shard_set, run, *more)])


def losses(run: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in records(run) if "loss" in r]


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.newest(run)
    assert saved is not None
    return saved.method()


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(at >= step for at, _ in losses(run)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL the launcher and all that it started, if they have not ended."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def texts(value: Any) -> list[str]:
    """Return every string in nested JSON, names of fields aside."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []
