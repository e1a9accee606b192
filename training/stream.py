"""Text streams that outlive their disk and their reader."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


class Lasting(io.TextIOBase):
    """A stream to which a run goes on writing when the disk is full or nobody reads any more.

    Args:
        stream: where it goes; what cannot be written there is lost, and nothing else. None, which
            Python has for a standard stream that was closed (>&-): nowhere.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits, if it can be written."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def fileno(self) -> int:
        """Return the file's number."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The file's encoding."""
        return self._stream.encoding


class Tee(Lasting):
    """A stream that also writes to a file, which may fail without anybody noticing.

    Args:
        stream: where it goes.
        log: the file.
    """

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        super().__init__(stream)
        self._log = log

    def write(self, text: str) -> int:
        """Write what can be written."""
        written = super().write(text)  # first: the log's disk may be one that never answers
        with suppress(OSError, ValueError):
            self._log.write(text)
        return written

    def beside(self, stream: TextIO) -> Tee:
        """Return what writes to the same file, and to another stream."""
        return Tee(stream, self._log)


def forget_unwritten() -> None:
    """Drop what a standard stream could not write: Python's end would make exit code 120 of it."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                with suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
