"""Bytes on disk: what a shard set is, how it is written, checked and opened.

`shards.as_webdataset` gives one to programs that know WebDataset and not viewrank.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.streaming import as_webdataset as as_webdataset


def __getattr__(name: str) -> Any:
    if name != "as_webdataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shards.streaming import as_webdataset  # here, because webdataset imports torch

    return as_webdataset
