"""Commands that start others: each is shown as a person would type it, and can be run alone."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

from training.run.stop import SIGNALS

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

    Whoever asks this process to end asks the child, which may train: it saves, and leaves.

    Args:
        command: program and words.
        shown: the same, as a person would type it.
    """
    from training.launch import end_with_parent  # here, so that --help takes no seconds

    print(f"\n$ {shlex.join(shown)}", flush=True)  # noqa: T201
    process: subprocess.Popen[bytes] | None = None
    received, sent = list[int](), list[int]()

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        hand_on()

    def hand_on() -> None:
        while process is not None and len(sent) < len(received):
            sent.append(received[len(sent)])  # before: another may come meanwhile
            _send(process, sent[-1])

    def suspend(number: int, _: FrameType | None) -> None:
        if process is not None:
            _suspend_with(process, number)

    handlers = {**dict.fromkeys(SIGNALS, forward), signal.SIGTSTP: suspend}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches it only through this process, once
            preexec_fn=end_with_parent,  # it does not outlive this process
        )
        hand_on()  # what came while it was started
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received[:1] == [signal.SIGINT]:
        raise KeyboardInterrupt
    if code < 0:
        code = 128 - code
    if received and code in (0, 128 + signal.SIGTERM):  # 0: it was done before it was asked
        code = 128 + received[0]
    if code:
        sys.exit(code)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    """Ask a child to end as this process was asked.

    A terminal's Ctrl-C reaches all that a command has started. No launcher knows SIGUSR1, and to
    training it is the same as SIGTERM.
    """
    if number == signal.SIGINT:
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, number)
    else:
        process.terminate()


def _suspend_with(process: subprocess.Popen[bytes], number: int) -> None:
    """Suspend a child and this process, on Ctrl-Z; let the child go on when this one does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGSTOP)
        handler = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, handler)
        os.killpg(process.pid, signal.SIGCONT)
