"""A shard set over tars that others wrote, which stay where they are: an indexed set.

    tars ─▶ headers ─▶ a task a tar: decode each image once ─▶ link, index, table ─▶ manifest ─▶ OUT
                       [in any order, on several processes]

Nothing of the tars is copied or changed. A tar has no 8-byte ids and labels that DALI could read:
they go into the index (see `shards.named_numbers`). What training's decoder does not read as it is
is left out; `shards.writing.write` would store it anew. After a kill, the same call goes on.

The manifest names no path: OUT/NNNNN.tar is a link, which a person or this file made. Where OUT is
in the folder of the tars, links are relative, so that the folder can be moved.
"""

import hashlib
import os
from collections.abc import Callable

import numpy as np

from shards.engine import Engine, Serial
from shards.layout import INDEXED_FORMAT, MANIFEST, ShardSet, open_shards
from shards.shard_table import plain
from shards.source.webdataset import WebDataset
from shards.storage import Folder, Location, is_remote
from shards.writing.index_tar import IndexTar
from shards.writing.missing import MAX_MISSING, Missing
from shards.writing.output import output_folder
from shards.writing.prepare import Preparation
from shards.writing.write import Progress, do_tasks, finish, tasks_of
from shards.writing.writing_plan import WritingPlan


def index_tars(
    source: WebDataset,
    out: Location,
    *,
    preparation: Preparation | None = None,
    max_missing: float = MAX_MISSING,
    engine: Engine | None = None,
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> ShardSet:
    """Make a shard set over tars without copying them.

    Samples keep the order of the tars; ids are positions in it.

    Args:
        source: the tars.
        out: folder to make; it may exist if it is empty.
        preparation: the checks; images are stored as they are.
        max_missing: as for `shards.writing.write`.
        engine: who does it; by default, this process alone.
        command: noted in the manifest.
        progress: called now and then.

    Raises:
        ValueError: tars or output are in a store, the tars are our own, or too many images cannot
            be trained as they are.
        FileExistsError: `out` is not empty, or is being written by another process.
        OSError: the disk is full or cannot be written.
    """
    preparation, engine = preparation or Preparation(), engine or Serial()
    assert preparation.encoding == "original" and preparation.resize_shorter is None
    tars = [(folder, name, part) for folder, name, part in source.tars() if part]
    refuse_unlinkable(out, [folder for folder, _, _ in tars])
    missing = Missing(max_missing, len(source), source.classes)
    paths = [os.path.abspath(folder.path(name)) for folder, name, _ in tars]
    origin = plain("\n".join(paths)).encode() + source.fingerprint()
    plan = WritingPlan(
        format=INDEXED_FORMAT,
        source=source.name,
        split=plain(source.split),
        samples=len(source),
        fingerprint=hashlib.sha256(origin).hexdigest(),
        classes=[plain(name) for name in source.classes],
        seed=0,
        samples_per_shard=max(len(part) for _, _, part in tars),
        limit=None,
        drop_duplicates=False,
        preparation=preparation,
        indexed=True,
        command=plain(command),
        kept=len(source),
    )
    tasks = tasks_of([np.arange(part.start, part.stop) for _, _, part in tars])
    names = [task.name for task in tasks]
    with output_folder(out, plan) as (folder, plan):
        job = IndexTar(
            source,
            folder,
            preparation,
            tars=dict(zip(names, [tar[:2] for tar in tars], strict=True)),
            targets=dict(zip(names, [_target(path, out) for path in paths], strict=True)),
        )
        do_tasks(job, tasks, missing, engine=engine, stage="indexing", progress=progress)
        finish(folder, plan)
    return open_shards(out)


def refuse_unlinkable(out: Location, folders: list[Folder]) -> None:
    """Refuse what no link can be made to or in, and shard sets of our own.

    Raises:
        ValueError: the message says what to do.
    """
    for place in (os.fspath(out), *(folder.location for folder in folders)):
        if is_remote(place):
            raise ValueError(
                f"{place} is in a store, where there are no links; expected local folders. Mount "
                "the store, or copy the tars: python -m tools.shard webdataset"
            )
    for folder in set(folders):
        if MANIFEST in folder.sizes():
            raise ValueError(
                f"{folder} is a shard set already, or holds the {MANIFEST} of one. Train from it "
                "as it is: --shards"
            )


def _target(tar: str, out: Location) -> str:
    """Return what a link in the output to a tar holds."""
    above, there = os.path.dirname(tar), os.path.realpath(out)
    if there.startswith(f"{os.path.realpath(above)}/"):
        return os.path.relpath(os.path.join(os.path.realpath(above), os.path.basename(tar)), there)
    return tar
