"""What cannot be made is left out and named: a run has taken days, and the rest is worth having."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shards.one_line import one_line


@contextmanager
def leaving_out(what: str, remarks: list[str]) -> Iterator[None]:
    """Go on after an error inside.

    Args:
        what: is not made then.
        remarks: gets a line that says so, with the reason.
    """
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        remarks.append(f"no {what}: {kind}{one_line(' '.join(str(error).split()))}")
