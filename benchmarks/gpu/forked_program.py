"""train.py in forked processes, which have all imports already.

A process that forks one must not have computed with PyTorch before: threads that it would have
started are missing in the other, which waits for them for ever.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import train
from training.command import run_command
from training.launch import end_with_parent
from training.run import failure

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
        end_with_parent(signal.SIGKILL)
        os.chdir(ROOT)
        sys.argv = ["train.py", *words]
        run_command(train.main)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def finish(words: list[str]) -> None:
    """Run `python train.py WORDS`, with --run among them.

    Raises:
        RuntimeError: it did not end well, and why, if it said so.
    """
    _, status = os.waitpid(start(words), 0)
    if code := os.waitstatus_to_exitcode(status):
        why = Path(words[words.index("--run") + 1]) / failure.NAME
        what = json.loads(why.read_text())["what"] if why.exists() else "see the log"
        raise RuntimeError(f"train.py ended with {code}: {what}")
