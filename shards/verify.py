"""Compare a shard set with what its manifest says was written, and find what does not decode."""

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

from .image import FORMATS, decode
from .layout import ShardSet


def changed_tars(shard_set: ShardSet) -> Iterator[Path]:
    """Yield the tars whose bytes differ from those that were written; reads every tar."""
    for shard, tar in zip(shard_set.manifest.shards, shard_set.tars, strict=True):
        with tar.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                yield tar


def undecodable(tar: Path) -> Iterator[tuple[str, str]]:
    """Yield name and reason of every image of a tar that cannot be decoded."""
    with tarfile.open(tar) as members:
        for member in members:
            extension = member.name.rpartition(".")[2]
            if extension not in FORMATS:
                continue
            file = members.extractfile(member)
            try:
                decode(file.read() if file else b"", extension)
            except ValueError as error:
                yield member.name, str(error)


def explain_failure(shard_set: ShardSet) -> str | None:
    """Return what is wrong with a shard set that could not be read, in a sentence; None if nothing.

    Reads tars until it finds the first that is not what was written, and decodes that one.
    """
    for tar in changed_tars(shard_set):
        found = f"{tar} is not what was written: its sha256 differs from manifest.json"
        try:
            for name, reason in undecodable(tar):
                return f"{found}, and {name} in it cannot be decoded ({reason})"
        except tarfile.TarError as error:
            return f"{found}, and it is no intact tar ({error})"
        return found
    return None
