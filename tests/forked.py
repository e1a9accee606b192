"""Start programs by forking a process that has imported them: a start takes no seconds.

Tests start train.py and the tools some eighty times, and each would import PyTorch, Accelerate and
DALI first. One process for each of pytest's has them imported, computes nothing, and forks for
each start; what it forks becomes pytest's own child, as if pytest had started it. What tests of
the start itself are about (launchers, environments, missing packages) is started as users do.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans of descendants become this process's children
_LARGEST = 1 << 20
_server: tuple[int, socket.socket] | None = None


class Forked(subprocess.Popen[str]):
    """A program that is forked; as `subprocess.Popen`, with pipes and in a session of its own.

    Args:
        words: script or -m module, and its arguments.
        environment: of the process.
    """

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self._request = {"words": words, "environment": environment}
        pipe = subprocess.PIPE
        super().__init__(words, text=True, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL)

    def _execute_child(self, *given: Any) -> None:
        """Have it forked, where Popen would start it."""
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = given[10:16]
        connection = _connected()
        request = json.dumps(self._request).encode()
        assert len(request) < _LARGEST
        # Only now: orphans of a launcher that a test kills are to have the system's first process.
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)
        socket.send_fds(connection, [request], [c2pwrite, errwrite])
        self.pid = int(connection.recv(32))
        ctypes.CDLL(None).prctl(_SUBREAPER, 0)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # pyright: ignore[reportAttributeAccessIssue]


def _connected() -> socket.socket:
    """Return the socket of this process's server, which is started when it is first needed."""
    global _server
    if _server is None or _server[0] != os.getpid():
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(there.fileno())],
            cwd=ROOT,
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
        )
        there.close()
        _server = os.getpid(), here
    return _server[1]


def serve(descriptor: int) -> None:
    """Fork for each request, until the other end is closed. Returns in the forked processes."""
    server = socket.socket(fileno=descriptor)
    while True:
        request, descriptors, _, _ = socket.recv_fds(server, _LARGEST, 2)
        if not request:
            os._exit(0)
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            process = os.fork()
            if process:
                os.write(writing, str(process).encode())
                os._exit(0)  # so that the process is an orphan, which pytest's process gets
            server.close()
            os.close(reading)
            os.close(writing)
            _become(json.loads(request), descriptors)
            return
        os.close(writing)
        os.waitpid(between, 0)
        server.send(os.read(reading, 32))
        for each in (reading, *descriptors):
            os.close(each)


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Be as a process that was started for a program."""
    os.setsid()
    for place, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python begins
    words = request["words"]
    sys.orig_argv[1:] = words
    module = words[0] == "-m"
    sys.argv = words[module:]
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(ROOT)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    os.chdir(ROOT)
    ours = ("train", "evaluation.suite", "model.encoder.small_resnet")
    # torchvision imports torch's compiler, which takes longer than all else.
    for name in (*ours, "nvidia.dali.fn", "nvidia.dali.pipeline", "torchvision.models"):
        import_module(name)
    serve(int(sys.argv[1]))
