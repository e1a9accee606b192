"""train.py in forked processes, which have all imports already."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import train
from training.command import run_command

ROOT = Path(__file__).parent.parent.parent


def start(words: list[str]) -> int:
    """Return the process of `python train.py WORDS`, which this process has forked."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code: object = 1
    try:
        os.chdir(ROOT)
        sys.argv = ["train.py", *words]
        run_command(train.main)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def finish(words: list[str]) -> None:
    """Run `python train.py WORDS`.

    Raises:
        RuntimeError: it did not end well.
    """
    _, status = os.waitpid(start(words), 0)
    if code := os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"train.py ended with {code}")
