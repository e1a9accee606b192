"""The launcher of this process: whether there is one, when it ends, how it starts again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
from datetime import timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from training.command import AGAIN
from training.stream import forget_unwritten

_LIBC = ctypes.CDLL(None)
_LAUNCHER = re.compile(  # bin/torchrun, accelerate.commands.launch, …/torch/distributed/run.py
    r"(.*/)?(accelerate|accelerate-launch|torchrun"
    r"|(accelerate[./]commands|torch[./]distributed)[./]\w+(\.py)?)"
)
"""A program, script or module that launches."""


def follow_launcher() -> None:
    """End when the launcher ends, from the first moment on: each process has its own session.

    A launcher that is killed would leave processes that wait for it for an hour.
    """
    if launched():
        end_with_parent()
    # Set by the launchers of several processes and of one, and by nobody else.
    told = {"TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND"} & os.environ.keys()
    if told and not launched() and _adopted():
        sys.exit(AGAIN)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent ends; on Linux, else nothing.

    Safe between fork and exec: it imports and allocates nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        _LIBC.prctl(1, number)  # PR_SET_PDEATHSIG


def is_later_rank() -> bool:
    """Whether an error needs no second report: before the ranks meet, all find the same."""
    return os.environ.get("RANK", "0") != "0" and not dist.is_initialized()


def meet_again(*, cpu: bool, timeout: timedelta) -> None:
    """After a restart by the launcher, meet the other ranks under names of this attempt.

    Accelerate's launcher keeps one store for all attempts, and PyTorch (2.15) looks up addresses in
    it as if each had its own: ranks would wait for processes that have died.

    Args:
        cpu: whether the ranks compute on CPUs.
        timeout: of collective operations.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    world_size = int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=False,
        timeout=timeout,
    )
    named = dist.PrefixStore(f"viewrank/attempt_{attempt}", store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(
        "gloo" if cpu else "nccl",
        store=named,
        rank=int(os.environ["RANK"]),
        world_size=world_size,
        timeout=timeout,
    )


def launched() -> bool:
    """Whether a launcher started this process, rather than a person's shell or script."""
    words = started_with(os.getppid())
    scripts = (  # of Python: a file, or the module after -m; options may come before it
        word
        for before, word in pairwise(words)
        if not word.startswith("-") and before not in ("-X", "-W")
    )
    return any(map(_LAUNCHER.fullmatch, (*words[:1], *islice(scripts, 1))))


def _adopted() -> bool:
    """Whether this process is an orphan: process 1 takes these, or systemd, each user's its own."""
    parent = os.getppid()
    return parent == 1 or any(Path(word).name == "systemd" for word in started_with(parent)[:1])


def restart() -> NoReturn:
    """Start this program again; of several processes, end this one: the launcher starts them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.exit(AGAIN)
    forget_unwritten()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def started_with(process: int) -> list[str]:
    """Return the words that a process was started with; none where the system does not tell."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:  # no /proc on this system
        return []
    return [word.decode(errors="replace") for word in words]
