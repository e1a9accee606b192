"""Memory that the C library keeps after it was freed: glibc's, on Linux; elsewhere nothing happens.

glibc gives threads arenas of their own, by default eight for each core, and keeps up to 64 MiB at
the end of each. Every evaluation has threads of its own, which come to other arenas than those of
the one before: memory grows until all have been used.
"""

import contextlib
import ctypes
import os

_M_ARENA_MAX = -8


def limit_arenas() -> None:
    """Let threads have one arena for each core; to be called before they begin to allocate."""
    if "MALLOC_ARENA_MAX" not in os.environ:  # the user's own choice
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, len(os.sched_getaffinity(0)))


def give_back() -> None:
    """Give what is free back to the system: after what a run does seldom.

    Takes milliseconds; memory that is needed again is asked for again.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
