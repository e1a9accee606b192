"""Bytes on disk: what a shard set is, how it is written, checked and opened.

    source/     data sets, one file each: their samples one by one
    writing/    source ─▶ prepared, shuffled and packed samples ─▶ a shard set
    health/     compare a set with what was written; repair it
    subset/     selected samples of a shard set, over the same tars
    engine/     who does the work: this process, several, or a Ray cluster

All rooms share the files beside them: the layout, the files' formats, storage. These files import
no room. `shards.as_webdataset` gives a set to programs that know WebDataset and not viewrank.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.streaming import as_webdataset as as_webdataset


def __getattr__(name: str) -> Any:
    if name != "as_webdataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shards.streaming import as_webdataset  # here, because webdataset imports torch

    return as_webdataset
