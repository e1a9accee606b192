"""Places that do not answer: a store, a network, a disk that has gone.

Who reads there is told in time, and by an error of its own: the same command may succeed later.
"""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

_NUMBERS = frozenset(
    getattr(errno, name)
    for name in (
        *("ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN"),
        *("ENETUNREACH", "ENETRESET", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED"),
        *("EREMOTEIO", "ENOLINK", "ESHUTDOWN"),
    )
    if hasattr(errno, name)
)
# Parts of types' names: the errors of botocore, aiohttp, google and azure have no more in common.
_WORDS = ("timeout", "connection", "disconnected", "unavailable", "servicere")
PAUSES = (1.0, 5.0, 25.0)
"""Seconds between attempts to read from a place that is away."""
_ANSWER = 120.0
_SHORT = 10.0  # of an answer to whether a place is there
_seconds: float | None = _ANSWER


class Unreachable(OSError):
    """A place does not answer, which is no property of what is asked for; it may answer later."""

    status = 0
    """The HTTP status of a place that is there and says so; 0 if it says nothing."""

    @property
    def busy(self) -> bool:
        """Whether it has too much to do now; any other status may be about one file."""
        return self.status in (429, 503)

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}" if self.filename else str(self.strerror)


def answer_within(seconds: float) -> None:
    """Set for this process, and those that it forks, how long a place may take to answer.

    Args:
        seconds: 120 are never exceeded; 0: it is waited for without end.
    """
    global _seconds
    _seconds = min(seconds, _ANSWER) if seconds else None


def is_outage(error: BaseException) -> bool:
    """Whether an error says that a place does not answer, rather than that it refuses."""
    if isinstance(error, FileNotFoundError | PermissionError | BrokenPipeError):
        return False
    if isinstance(error, Unreachable | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    status = status_of(error)
    if status in (408, 429) or status >= 500:
        return True
    names = " ".join(each.__name__ for each in type(error).__mro__).lower()
    if any(word in names for word in _WORDS):
        return "ssl" not in names and "certificate" not in names
    return error.__cause__ is not None and is_outage(error.__cause__)


def status_of(error: BaseException) -> int:
    """Return the HTTP status, 400 to 599, that an error or its cause tells of; 0 if none."""
    found = (status for status in _statuses(error) if 400 <= status < 600)
    return next(found, 0) or (status_of(error.__cause__) if error.__cause__ is not None else 0)


def _statuses(error: BaseException) -> Iterator[int]:
    """Yield what may be the HTTP status of an answer."""
    response: Any = getattr(error, "response", None)
    found = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    found += [getattr(response, name, None) for name in ("status", "status_code")]
    if isinstance(response, dict):  # botocore's
        found.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for value in found:
        if isinstance(value, int | str) and str(value).isdecimal():
            yield int(value)


@contextmanager
def of_place(place: str, *, whole: bool = False) -> Iterator[None]:
    """Raise errors that mean an outage of a place on a disk as `Unreachable`.

    Args:
        place: as people know it.
        whole: whether the folder itself is asked, of which EIO is an outage too; of a file it is a
            defect of the disk below it.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, Unreachable):
            raise
        if is_outage(error) or (whole and error.errno == errno.EIO):
            text = f"{error.strerror or error}: its disk does not answer, or is not mounted"
            raise Unreachable(error.errno, text, place) from None
        raise


@dataclass
class LastAnswer:
    """When work that may take long has last got on."""

    at: float = field(default_factory=time.monotonic)

    def now(self) -> None:
        """Say that it has just got on."""
        self.at = max(self.at, time.monotonic())

    def allow(self, seconds: float) -> None:
        """Say that it cannot get on sooner than after so long."""
        self.at += seconds


def answered(
    place: str,
    work: Callable[[], T],
    progress: LastAnswer | None = None,
    *,
    alive: Callable[[], bool] | None = None,
    limit: float = _ANSWER,
) -> T:
    """Return what a call returns. If it takes too long, it is left to itself, in its thread.

    Args:
        place: as people know it.
        work: the call.
        progress: of the call; the time that it may take is counted from there.
        alive: asks whether the place is there. As long as it is, the call may take more.
        limit: seconds at most, if `answer_within` says no less.

    Raises:
        Unreachable: the place has not answered in time (see `answer_within`).
    """
    if _seconds is None:
        return work()
    progress, limit = progress or LastAnswer(), min(limit, _seconds)
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=call, name="asks a store", daemon=True)
    thread.start()
    while thread.is_alive():
        if (left := progress.at + limit - time.monotonic()) > 0:
            thread.join(left)
            continue
        if alive is not None:
            try:
                there = answered(place, alive, limit=_SHORT)
            except Unreachable:
                there = False
            except Exception:  # an answer, too
                there = True
            if there or not thread.is_alive():
                progress.now()
                continue
        text = f"{place} has not answered for {limit:g} s. Is it up, and the network?"
        raise Unreachable(errno.ETIMEDOUT, text)
    if errors:
        raise errors[0]
    return results[0]
