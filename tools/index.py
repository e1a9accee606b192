"""Make a shard set over existing WebDataset tars without copying them.

    python -m tools.index /data/laion

trains 100 TB where they lie: index, table and manifest go into a folder, the tars stay as they are.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from typing import Literal

from rich.console import Console

from shards.engine import LocalWorkers
from shards.storage import folder_at, is_remote
from shards.writing.missing import MAX_MISSING
from shards.writing.output import refuse_occupied
from shards.writing.prepare import MAX_MEGAPIXELS, Preparation
from tools.shard import kept_on_interrupt, progress_shown, sum_up
from training.command_line import run_function

INSIDE = "index"  # the folder in that of the tars, unless --out names another


def main(
    folder: str,
    *,
    out: str | None = None,
    split: str = "",
    image: str | None = None,
    keys: Literal["auto", "first_dot", "last_dot"] = "auto",
    label: str | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    min_side: int = 8,
    max_aspect: float = 20.0,
    max_missing: float = MAX_MISSING,
    workers: int | None = None,
) -> None:
    """Make a shard set over existing WebDataset tars, which are read once and stay as they are.

    Every image is decoded once. What cannot be trained as it is (damaged, WebP, CMYK, 16 bits, …)
    is left out and listed. Samples keep the order of the tars: if that is sorted, tools.shard
    webdataset, which copies and shuffles, trains better. After a kill, the same command continues.

    Args:
        folder: folder of tars, one tar, or a pattern such as data/{000..009}.tar.
        out: folder to make, for the index; by default, FOLDER/index. It holds a link to each tar.
        split: folder in it to take, if it is a folder.
        image: component that is the image, such as jpg; where samples differ, several with ";"
            between, best first. By default, the only one that is an image.
        keys: where the key of a sample ends in a file's name: at the first dot, as WebDataset has
            it, or at the last; auto decides.
        label: component that holds the label: cls, or json:FIELD for a field of a JSON component;
            or folder, for the first folder that not all samples have in common. By default, y.i64,
            as tools.shard writes it, or else cls, where there is one.
        max_megapixels: larger images are left out.
        min_side: images with a shorter side of fewer pixels are left out.
        max_aspect: images more elongated than this are left out.
        max_missing: largest share of the samples that may be left out because training cannot read
            them; of a class, half or this share, whichever is larger. More ends the indexing, and
            the same command with a larger share finishes it.
        workers: number of processes; by default, one for each core of this machine.
    """
    from shards.source import WebDataset
    from shards.writing.indexing import index_tars, refuse_unlinkable

    if out is None:
        if not (is_remote(folder) or os.path.isdir(folder)):
            raise ValueError(f"{folder} is no folder, in which the index could be; give --out.")
        out = os.path.join(folder, split, INSIDE)
    refuse_unlinkable(out, [folder_at(folder)] if is_remote(folder) else [])
    refuse_occupied(out)
    engine = LocalWorkers(workers if workers is not None else len(os.sched_getaffinity(0)))
    preparation = Preparation(
        max_megapixels=max_megapixels, min_side=min_side, max_aspect=max_aspect
    )
    source = WebDataset(root=folder, split=split, image=image, keys=keys, label=label)
    begin = time.monotonic()
    with kept_on_interrupt(out), progress_shown(Console(stderr=True)) as progress:
        shard_set = index_tars(
            source,
            out,
            preparation=preparation,
            max_missing=max_missing,
            engine=engine,
            command=shlex.join(["python", "-m", "tools.index", *sys.argv[1:]]),
            progress=progress,
        )
    sum_up(shard_set, source, time.monotonic() - begin)


if __name__ == "__main__":
    run_function(main)
