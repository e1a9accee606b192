"""The top of a command: wrong input ends in one line and exit code 2, not in a traceback."""

import os
import sys
from collections.abc import Callable

from shards.one_line import one_line
from shards.outage import is_outage
from training.installed import TRACEBACK, remedy
from training.stream import Lasting, forget_unwritten

AGAIN = 75  # EX_TEMPFAIL: the exit code of which the same command may succeed
LESS_MEMORY = "Lower --batch_size or --views.count, or set --micro_batch_size"


def run_command(main: Callable[[], object], *, silent: Callable[[], bool] = lambda: False) -> None:
    """Run a command's main function; an error that a user can cause becomes one line on stderr.

    Exit code 2 with `error: …` for wrong input, files and disks that fail, and memory or packages
    that are not there; 75 for a place that does not answer, since the same command may succeed
    later; 130 with `interrupted` for Ctrl-C. Whatever else is raised is a defect of ours and keeps
    its traceback; so do all with VIEWRANK_TRACEBACK=1 in the environment.

    Args:
        main: the command.
        silent: asked after an error; true leaves the message to another process.
    """
    try:
        main()
    except BrokenPipeError:  # the reader of the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        if not silent():
            Lasting(sys.stderr).write(f"error: {one_line(_message(error))}\n")
        sys.exit(AGAIN if is_outage(error) else 2)
    except ModuleNotFoundError as error:
        if os.environ.get(TRACEBACK) or not remedy(error):
            raise
        if not silent():
            Lasting(sys.stderr).write(f"error: {remedy(error)}\n")
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if os.environ.get(TRACEBACK) or not out_of_memory(error):
            raise
        if not silent():
            text = " ".join(_message(error).split())
            Lasting(sys.stderr).write(f"error: {text}. {LESS_MEMORY}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        Lasting(sys.stderr).write("interrupted\n")
        sys.exit(130)
    finally:
        forget_unwritten()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or device have no memory left; PyTorch has several."""
    words = ("out of memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
