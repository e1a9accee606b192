"""Commands that start others: each is shown as a person would type it, and can be run alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

PROGRAM = "viewrank"


def run(name: str, *words: str) -> None:
    """Run one of viewrank's commands as a child process; exit with its code if it fails.

    Args:
        name: of the command, such as shard; train is train.py.
        words: its command line.
    """
    start([sys.executable, "-m", PROGRAM, name, *words], shown=[PROGRAM, name, *words])


def start(command: list[str], *, shown: list[str]) -> None:
    """Run a command as a child process; exit with its code if it fails.

    Args:
        command: program and words.
        shown: the same, as a person would type it.
    """
    print(f"\n$ {shlex.join(shown)}", flush=True)  # noqa: T201
    with subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # it got the same, and may be saving
            process.wait()
            raise
    if code:
        sys.exit(code)
