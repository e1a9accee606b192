"""Return freed memory to the system: glibc keeps it. Elsewhere nothing happens here.

glibc gives threads arenas of their own, by default eight for each core, and keeps up to 64 MiB at
the end of each. Every evaluation starts new threads, which get other arenas than those before:
memory grows until all arenas have been used.
"""

import contextlib
import ctypes
import os

from pipeline.control_groups import cores

_M_ARENA_MAX = -8


def limit_arenas() -> None:
    """Limit threads to one arena a core; call this before they begin to allocate."""
    if "MALLOC_ARENA_MAX" not in os.environ:  # the user's own choice
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, cores())


def give_back() -> None:
    """Give free memory back to the system; call this after rare work, such as an evaluation.

    Takes milliseconds; memory that is needed again is asked for again.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
