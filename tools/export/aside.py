"""A file or folder that gets its name when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards import durable


@contextmanager
def aside(path: Path, *, folder: bool) -> Iterator[Path]:
    """Give the path of a file or folder to write, which becomes `path` if no error is raised.

    Args:
        path: a file, which is replaced; or a folder that does not exist or is empty.
        folder: which of the two.

    Raises:
        OSError: the disk refused.
    """
    if folder:
        path = path.resolve()  # a link stays one
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        partial.mkdir(parents=True)
        try:
            yield partial
            durable.sync(partial)
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    else:
        # Programs go by the end of a name.
        with durable.replaced(path, suffix=f"partial{path.suffix}") as partial:
            yield partial
    durable.sync(path.parent)
