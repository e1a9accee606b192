"""Read the samples of a source, and tell a file that cannot be read from a place that is away.

    error ─┬▶ of a server that never answered; others do ─▶ count its files; ask it later
           ├▶ a status such as 500; the server gives more ▶ wait, try again; at last count the file
           ├▶ of the place, or the place does not answer ─▶ wait, try again; at last end the writing
           ├▶ of this machine: no open files, no memory ──▶ end the writing
           └▶ of the file ────────────────────────────────▶ count it, go on at once

To wait for a file that is absent, empty or on a bad sector would not bring it; to go on while a
disk is away would lose all images on it. So the place itself is asked, whatever the error says: an
absent file looks the same on a disk that is not mounted, and a forbidden one where credentials have
run out.
"""

import errno
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from shards.outage import PAUSES, Unreachable, is_outage
from shards.source.source import NoImage, Sample, Source

_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
# Where the place answers, these say for certain that the file is at fault.
_OF_THE_FILE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
}
_OTHERS = 4  # servers that are asked before the network is at fault
_NEAR = 1000  # samples among which they are looked for
_GIVEN_UP = 600.0  # seconds in which a server that does not answer is not asked again
_answered: dict[str, int] = {}  # servers that gave this process a sample, and where the last is
_flawed: set[str] = set()  # servers that fail at some of their files
_refusing: set[str] = set()  # servers that forbid files by themselves, while others do not
_dead: dict[str, float] = {}  # servers that did not, while others did, and when
_DOUBTFUL = 20  # images in a row with errors such as EIO: the place is at fault, not the images


class OutOfResources(OSError):
    """This machine is at fault, which can read no image; the writing cannot go on."""


class Reader:
    """Reads samples one after the other.

    Args:
        source: of the samples.
        waiting: called before each pause, while the source is away.
    """

    def __init__(self, source: Source, *, waiting: Callable[[], object] = lambda: None) -> None:
        self._source, self._waiting = source, waiting
        self._doubtful = 0  # errors in a row that may be the place's, while it answered

    def __call__(self, position: int) -> Sample:
        """Return the sample at a position.

        Raises:
            Unreachable: the source is away, and did not come back.
            OutOfResources: this machine can read nothing.
            OSError: any other: the sample itself cannot be read.
            ValueError: the source refuses to go on.
        """
        url = self._source.url(position)
        server = _server(url)
        if time.monotonic() < _dead.get(server, 0.0):
            raise _lost(server, url)
        pauses, answered = iter(PAUSES), False
        while True:
            try:
                sample = self._source[position]
            except NoImage:
                raise
            except ValueError as error:
                raise ValueError(f"sample {position} of the source: {error}") from None
            except OSError as error:
                if error.errno in _OF_THE_MACHINE:
                    raise _shortage(error) from None
                if self._is_away(error, server, position):
                    pause, answered = next(pauses, None), False
                    if given_up := self._given_up(error, pause, url, position):
                        raise given_up from None
                    assert pause is not None
                    self._waiting()
                    time.sleep(pause)
                elif answered:  # before and after: the place was there when the file was not
                    self._count(error)
                    raise
                else:
                    answered = True
            else:
                self._doubtful = 0
                _answered[server] = position
                _dead.pop(server, None)
                return sample

    def _is_away(self, error: OSError, server: str, position: int) -> bool:
        if is_outage(error):
            return True
        try:
            if not self._source.reachable():
                return True
        except PermissionError:  # an answer: many a store lets nobody list
            return not self._gives_another(server, position)
        except OSError:
            return True
        gave = server in _answered and server not in _refusing
        new = isinstance(error, PermissionError) and gave
        return new and not self._gives_another(server, position)

    def _given_up(
        self, error: OSError, pause: float | None, url: str, position: int
    ) -> OSError | None:
        """Return what to raise instead of waiting for so long; None to wait."""
        server, unreachable = _server(url), error if isinstance(error, Unreachable) else None
        status, busy = (unreachable.status, unreachable.busy) if unreachable else (0, False)
        hangs = unreachable is not None and error.errno == errno.ETIMEDOUT
        enough = pause is None or hangs  # it has been waited for already
        again = server in _flawed and pause != PAUSES[0]
        if status and not busy and (enough or again) and self._gives_another(server, position):
            _flawed.add(server)
            return NoImage(error.errno, error.strerror, url)
        if not enough:
            return None
        refused = isinstance(error, PermissionError)
        if server and refused and self._others_answer(server, position):
            _refusing.add(server)  # no credentials have run out
            return error
        new = server and server not in _answered
        if new and not refused and not busy and self._others_answer(server, position):
            _dead[server] = time.monotonic() + _GIVEN_UP
            return _lost(server, url)
        return _gone(f"sample {position}", error)

    def _gives_another(self, server: str, position: int) -> bool:
        """Whether another sample of the same server can be read now."""
        samples, asked = len(self._source), {position}
        # Not those beside it, which may be as bad.
        anywhere = np.random.RandomState(position % 2**32).randint(0, samples, _NEAR).tolist()
        for other in (_answered.get(server, position), *anywhere):
            if other in asked or other >= samples or _server(self._source.url(other)) != server:
                continue
            asked.add(other)
            self._waiting()
            try:
                self._source[other]
            except OSError as error:
                hangs = isinstance(error, Unreachable) and not error.status
                if hangs or len(asked) > _DOUBTFUL:
                    return False
            else:
                return True
        return False

    def _others_answer(self, server: str, position: int) -> bool:
        """Whether a sample of another server can be read now, so that the network is up."""
        asked = {"", server, *_dead}
        for n in range(position + 1, position + _NEAR):
            other = n % len(self._source)
            there = _server(self._source.url(other))
            if there in asked:
                continue
            asked.add(there)
            self._waiting()
            with suppress(OSError):
                self._source[other]
                return True
            if len(asked) > 2 + len(_dead) + _OTHERS:
                break
        return False

    def _count(self, error: OSError) -> None:
        """Count errors that the place may have made, though it seems to answer from memory."""
        self._doubtful = 0 if error.errno in _OF_THE_FILE else self._doubtful + 1
        if self._doubtful == _DOUBTFUL:
            raise _gone(f"{_DOUBTFUL} images in a row", error) from None


def _server(url: str) -> str:
    return re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]


def _lost(server: str, url: str) -> NoImage:
    return NoImage(errno.EHOSTUNREACH, f"{server} does not answer, others do", url)


def _gone(what: str, error: OSError) -> Unreachable:
    seems, remedy = "seems to be gone", "bring the source back"
    if isinstance(error, PermissionError):
        seems, remedy = "refuses other samples, too", "renew the access to it"
    return Unreachable(
        error.errno,
        f"{what} cannot be read ({error}): the source {seems}. Complete shards stay; {remedy} and "
        "repeat the command.",
    )


def _shortage(error: OSError) -> OutOfResources:
    advice = (
        "Allow more open files (ulimit -n)"
        if error.errno in (errno.EMFILE, errno.ENFILE)
        else "Free memory, or take fewer --workers"
    )
    return OutOfResources(
        error.errno,
        f"this machine cannot read any image now ({os.strerror(error.errno or 0)}). {advice}, and "
        "repeat the command; complete shards stay.",
    )
