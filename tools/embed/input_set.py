"""What features are made of: a shard set, or the temporary one of a folder or table of images.

A temporary set costs a copy of the images and a look at each. For that, damaged files and strange
formats become what they become in any shard set, and the pipeline reads one thing only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from shards.engine import LocalWorkers
from shards.layout import MANIFEST, PLAN, QUARANTINE, REASONS, ShardSet, open_shards
from shards.shard_table import read_quarantined
from shards.storage import is_remote
from shards.writing.prepare import Preparation
from shards.writing.write import write
from shards.writing.writing_plan import is_of
from tools.shard import progress_shown

if TYPE_CHECKING:
    from shards.source.source import Source

SHARDS = "shards"  # in OUT.partial
LONGEST = 200.0  # sides' ratio: resized, a longer strip would take gigabytes
_TABLES = (".csv", ".tsv", ".parquet")


def is_shard_set(data: str) -> bool:
    """Whether a location is a shard set, or is to be refused as one that is not whole."""
    if is_remote(data) or not Path(data).exists():
        return True
    if Path(data).is_file():
        return False
    names = os.listdir(data)
    return MANIFEST in names or PLAN in names or any(name.endswith(".tar") for name in names)


def open_input(data: str, folder: Path, *, workers: int) -> ShardSet:
    """Open a shard set; of a folder or a table of images, one that is made in OUT.partial first.

    Args:
        data: a shard set, a folder of images, or a CSV or Parquet table of them.
        folder: OUT.partial.
        workers: how many processes make a set.

    Raises:
        ValueError: it is none of these, or holds no image.
        OSError: it cannot be read, or there is no room for the temporary set.
    """
    if is_shard_set(data):
        return open_shards(data)
    made = folder / SHARDS
    source = _source(data)
    if (made / MANIFEST).exists():
        shard_set = open_shards(made)
        if not is_of(shard_set, source):
            raise ValueError(
                f"{made} is a copy of other images than {data} holds now. Remove {folder}, and it "
                "is made again; or give another --out."
            )
        return shard_set
    sys.stderr.write(
        f"{data} is no shard set: its {len(source):,} images are copied into {made}, which is "
        "removed at the end\n"
    )
    with progress_shown(Console(stderr=True)) as progress:
        return write(
            source,
            made,
            max_missing=1.0,  # they are named, and do not end it
            preparation=Preparation(min_side=1, max_aspect=LONGEST),
            engine=LocalWorkers(workers),
            command="python -m tools.embed",
            progress=progress,
        )


def quarantined(shard_set: ShardSet) -> list[str]:
    """Return which images could not be put into a temporary set, each in a line."""
    try:
        text = shard_set.folder.read(f"{QUARANTINE}/{REASONS}")
    except FileNotFoundError:
        return []
    return [f"{each.origin}: {each.reason} ({each.detail})" for each in read_quarantined(text)]


def _source(data: str) -> Source:
    """Return a folder or a table of images as a data set."""
    from shards.source import ImageFolder, Table

    path = Path(data)
    if path.is_file() and path.suffix.lower() not in _TABLES:
        raise ValueError(
            f"{data} is a file; DATA is a shard set, a folder of images, or a table: "
            f"{', '.join(_TABLES)}."
        )
    table = path.is_file() or any(name.endswith(".parquet") for name in os.listdir(data))
    kind = "table" if table else "folder"
    try:
        return Table(table=data) if table else ImageFolder(root=data)
    except ValueError as error:  # it may speak of flags that python -m tools.shard has
        within = ", and so will a folder within" if not table else ""
        raise ValueError(
            f"{error} (These are flags of python -m tools.shard {kind}; its shard set will do as "
            f"DATA{within}.)"
        ) from None
