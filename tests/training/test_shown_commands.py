"""What is asked of a command that starts others reaches the one that works, once."""

import fcntl
import os
import pty
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from training.command import run_command
from training.shown_commands import start

# Like training: it writes down what it is asked, takes a while to save, and leaves.
CHILD = """
import pathlib, signal, sys, time
log, asked = pathlib.Path(sys.argv[1]).open("a", buffering=1), []
def ask(number, _):
    asked.append(number)
    log.write(f"{signal.Signals(number).name}\\n")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, ask)
log.write("ready\\n")
while not asked:
    time.sleep(0.01)
time.sleep(0.3)
log.write("saved\\n")
sys.exit(128 + asked[0])
"""


class Parent:
    """A process that starts a command, and then says "the next one"; its child is ready."""

    def __init__(self, folder: Path, child: str, terminal: int | None) -> None:
        self._out, self._log = folder / "out", folder / "log"
        self.process = os.fork()
        if self.process == 0:
            self._work(child, terminal)
        wait_for(lambda: "ready" in self.heard())

    def _work(self, child: str, terminal: int | None) -> None:
        code: object = 1
        try:
            if terminal is None:
                os.setpgid(0, 0)
            else:
                os.setsid()
                fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            sys.stdout = sys.stderr = self._out.open("w")
            command = [sys.executable, "-c", child, str(self._log)]
            run_command(lambda: start(command, shown=["work"]))
            code = 0
            sys.stdout.write("the next one\n")
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            os._exit(code)  # pyright: ignore[reportArgumentType]

    def heard(self) -> list[str]:
        """Return what the child wrote down."""
        return self._log.read_text().split() if self._log.exists() else []

    def end(self) -> tuple[int, list[str]]:
        """Return how it ended, and the lines that it wrote."""
        found: list[tuple[int, int]] = []

        def ended() -> bool:
            found.append(os.waitpid(self.process, os.WNOHANG))
            return found[-1][0] != 0

        wait_for(ended)
        return os.waitstatus_to_exitcode(found[-1][1]), self._out.read_text().split("\n")[2:-1]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Parent]]:
    begun: list[Parent] = []

    def begin(child: str = CHILD, terminal: int | None = None) -> Parent:
        begun.append(Parent(tmp_path, child, terminal))
        return begun[-1]

    yield begin
    for parent in begun:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(parent.process, signal.SIGKILL)
            os.waitpid(parent.process, 0)


Begin = Callable[..., Parent]


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "heard", "says"),
    [
        (signal.SIGTERM, "SIGTERM", []),
        (signal.SIGUSR1, "SIGTERM", []),  # which launchers know
        (signal.SIGINT, "SIGINT", ["interrupted"]),
    ],
)
def test_a_child_that_is_asked_to_end_saves_and_is_waited_for(
    number: signal.Signals, heard: str, says: list[str], begin: Begin
) -> None:
    parent = begin()
    os.kill(parent.process, number)
    assert parent.end() == (128 + number, says)
    assert parent.heard() == ["ready", heard, "saved"]


def test_ctrl_c_in_a_terminal_interrupts_the_child_once(begin: Begin) -> None:
    ours, theirs = pty.openpty()
    parent = begin(terminal=theirs)
    os.write(ours, b"\x03")
    assert parent.end() == (130, ["interrupted"])
    assert parent.heard() == ["ready", "SIGINT", "saved"]
    for side in (ours, theirs):
        os.close(side)


def test_a_child_does_not_outlive_its_parent(begin: Begin) -> None:
    parent = begin()
    os.kill(parent.process, signal.SIGKILL)
    wait_for(lambda: "saved" in parent.heard())
    assert parent.heard() == ["ready", "SIGTERM", "saved"]


def test_ctrl_z_suspends_both_until_both_go_on(begin: Begin) -> None:
    parent = begin()
    tasks = Path(f"/proc/{parent.process}/task/{parent.process}/children")
    both = [parent.process, *map(int, tasks.read_text().split())]

    def states() -> str:
        found = (Path(f"/proc/{process}/stat").read_text() for process in both)
        return "".join(text.rpartition(")")[2].split()[0] for text in found)

    os.kill(parent.process, signal.SIGTSTP)
    wait_for(lambda: states() == "TT")
    os.kill(parent.process, signal.SIGCONT)
    wait_for(lambda: "T" not in states())
    os.kill(parent.process, signal.SIGTERM)
    assert parent.end() == (128 + signal.SIGTERM, [])
    assert parent.heard() == ["ready", "SIGTERM", "saved"]


@pytest.mark.parametrize(
    ("work", "code", "says"),
    [
        ("sys.exit(3)", 3, []),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, []),
        ("pass", 0, ["the next one"]),
    ],
)
def test_its_code_is_the_child_s(work: str, code: int, says: list[str], begin: Begin) -> None:
    ready = "import os, pathlib, signal, sys; pathlib.Path(sys.argv[1]).write_text('ready');"
    assert begin(ready + work).end() == (code, says)
