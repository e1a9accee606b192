"""Hears what the interpreter does while a damaged file is read."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EVIL = "fuzz_evil"
"""A module that only a damaged recipe names."""
STARTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")
CHANGES = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod")


class Sentry:
    """Sees what the interpreter does on behalf of a case; once hooked in, it stays."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.connects = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    @contextmanager
    def watching(self, inside: Path, *, connects: bool = False) -> Iterator[None]:
        """Note what is done outside a folder, or by code that a file brought.

        Args:
            inside: the folder.
            connects: whether a connection is what was asked for.
        """
        self.inside, self.connects, self.seen = inside, connects, []
        try:
            yield
        finally:
            self.inside = None

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in (
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "subprocess.Popen",
            "pickle.find_class",
        ):
            self.seen.append(f"{event} {arguments[0]!r}")
        elif event == "socket.connect" and not self.connects:
            self.seen.append(f"{event} {arguments[1]!r}")
        elif event == "import" and EVIL in str(arguments[0]):
            self.seen.append(f"{event} {arguments[0]}")
        elif event in CHANGES and arguments[-1] not in (-1, None) and event != "os.truncate":
            folder = Path(f"/proc/self/fd/{arguments[-1]}").resolve()  # as shutil.rmtree does
            self._outside(event, folder / str(arguments[0]))
        elif event in CHANGES or (event == "open" and _writes(arguments)):
            self._outside(event, arguments[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._outside(event, arguments[1])

    def _outside(self, event: str, name: Any) -> None:
        path = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        assert self.inside is not None
        allowed = (str(self.inside), "/dev/", "/proc/self/")
        if path and not str(Path(path).absolute().resolve()).startswith(allowed):
            self.seen.append(f"{event} {path}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    path, mode, flags = arguments
    if not isinstance(path, str | bytes):
        return False  # a descriptor that is open already
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & 3)
