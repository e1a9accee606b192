"""Read the samples of a source, and tell a file that cannot be read from a place that is away.

    error ─┬▶ of the place, or the place does not answer ─▶ wait, try again; at last end the writing
           ├▶ of this machine: no open files, no memory ──▶ end the writing
           └▶ of the file ────────────────────────────────▶ count it, go on at once

To wait for a file that is absent, empty or on a bad sector would not bring it; to go on while a
disk is away would lose all images on it. So the place itself is asked, whatever the error says: an
absent file looks the same on a disk that is not mounted.
"""

import errno
import os
import time

from shards.source.source import NoImage, Sample, Source

# A network or a mount that is away, whatever file was asked for.
_OF_THE_PLACE = {
    *(errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ECONNREFUSED, errno.ECONNRESET),
    *(errno.ECONNABORTED, errno.EPIPE, errno.ESHUTDOWN),
}
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
# Where the place answers, these say for certain that the file is at fault.
_OF_THE_FILE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
}
_PAUSES = (1.0, 5.0, 25.0)  # seconds between attempts, while a place is away
_DOUBTFUL = 20  # images in a row with errors such as EIO: the disk is at fault, not the images


class SourceGone(OSError):
    """The place of the images, or this machine, is at fault; the writing cannot go on now."""


class Reader:
    """Reads samples one after the other."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._doubtful = 0  # errors in a row that may be the place's, while it answered

    def __call__(self, position: int) -> Sample:
        """Return the sample at a position.

        Raises:
            SourceGone: the source is away, and did not come back.
            OSError: any other: the sample itself cannot be read.
            ValueError: the source refuses to go on.
        """
        pauses, answered = iter(_PAUSES), False
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
                if self._is_away(error):
                    pause, answered = next(pauses, None), False
                    if pause is None:
                        raise _gone(f"sample {position}", error) from None
                    time.sleep(pause)
                elif answered:  # before and after: the place was there when the file was not
                    self._count(error)
                    raise
                else:
                    answered = True
            else:
                self._doubtful = 0
                return sample

    def _is_away(self, error: OSError) -> bool:
        if error.errno in _OF_THE_PLACE or isinstance(error, ConnectionError | TimeoutError):
            return True
        try:
            return not self._source.reachable()
        except OSError:
            return True

    def _count(self, error: OSError) -> None:
        """Count errors that the place may have made, though it seems to answer from memory."""
        self._doubtful = 0 if error.errno in _OF_THE_FILE else self._doubtful + 1
        if self._doubtful == _DOUBTFUL:
            raise _gone(f"{_DOUBTFUL} images in a row", error) from None


def _gone(what: str, error: OSError) -> SourceGone:
    return SourceGone(
        error.errno,
        f"{what} cannot be read ({error}): the source seems to be gone. Complete shards stay; "
        "bring the source back and repeat the command.",
    )


def _shortage(error: OSError) -> SourceGone:
    advice = (
        "Allow more open files (ulimit -n)"
        if error.errno in (errno.EMFILE, errno.ENFILE)
        else "Free memory, or take fewer --workers"
    )
    return SourceGone(
        error.errno,
        f"this machine cannot read any image now ({os.strerror(error.errno or 0)}). {advice}, and "
        "repeat the command; complete shards stay.",
    )
