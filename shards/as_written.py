"""A small file of a shard set, once it is what was written; faults name it and say what to do."""

from collections.abc import Callable
from typing import TypeVar

from shards.layout import File, ShardSet
from shards.tar import file_of

T = TypeVar("T")


def read_as_written(shard_set: ShardSet, name: str, file: File) -> bytes:
    """Return the content of a file of a shard set.

    Args:
        shard_set: it belongs to.
        name: of the file, in the set's folder.
        file: what the manifest says of it.

    Raises:
        ValueError: its hash is another.
        OSError: it cannot be read.
    """
    text = shard_set.folder.read(name)
    if file_of(text) != file:
        path = shard_set.folder.path(name)
        raise ValueError(
            f"{path} is not the file that was written: its SHA-256 differs from the manifest. "
            f"{shard_set.remedy(path)}"
        )
    return text


def checked(shard_set: ShardSet, path: str, check: Callable[[], T]) -> T:
    """Return what a check of a file returns; its errors get the file's path and the remedy.

    Raises:
        ValueError: the check found a fault.
    """
    try:
        return check()
    except ValueError as error:
        raise ValueError(f"{path} {error}. {shard_set.remedy(path)}") from None
