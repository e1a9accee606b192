"""A shard set as a `webdataset.WebDataset`: how to use one without viewrank.

    from shards import as_webdataset

    for sample in as_webdataset("data/mine", shuffle=1000):
        sample["image"], sample["label"], sample["id"], sample["json"]

A stream reads its tars from front to back and loses a few samples' worth of shuffling for that.
Training wants any sample at any time, so viewrank itself reads by the index (`pipeline.read`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any, cast

import numpy as np
from PIL import Image
from webdataset.cache import FileCache, StreamingOpen
from webdataset.compat import WebDataset
from webdataset.gopen import gopen_schemes
from webdataset.shardlists import split_by_node

from shards.image import open_with_pillow, upright_pixels
from shards.layout import CATEGORIES, PARTNER, ShardSet, open_shards
from shards.named_numbers import numbers_in
from shards.shard_index import lines_of
from shards.storage import Location, is_remote
from shards.tar import components, key_of, label_bytes, read_part

_IMAGES = ("jpg", "png", "rgb")


def as_webdataset(root: Location, *, shuffle: int = 0, **options: Any) -> WebDataset:
    """Return the samples of a shard set or subset, decoded, as a stream.

    Each sample is a dict: "image", an upright RGB `PIL.Image`; "label", −1 where there is none;
    "id"; "json", what the source knew besides; "partner", of pair sets; "categories", of multi-
    label sets, a byte each (see `shards.layout`); and webdataset's "__key__" and "__url__". The
    workers of a DataLoader, and nodes, get shards of their own: a set has each sample once if there
    are at least as many shards as workers.

    Args:
        root: the folder, local or a URL such as s3://bucket/folder.
        shuffle: samples held for shuffling, on top of the order of the shards; 0: as they are
            stored, which is a random order already, the same each time.
        options: further arguments of `webdataset.WebDataset`, such as `resampled=True`.

    Raises:
        FileNotFoundError: there is no such shard set, or a file of it is missing.
        ValueError: a file is damaged.
    """
    shard_set = open_shards(root)
    if is_remote(shard_set.root):
        protocol = shard_set.root.partition("://")[0]
        gopen_schemes[protocol] = _open  # webdataset's own need a command line tool
    settings = {"shardshuffle": len(shard_set.tars) if shuffle else False, "empty_check": False}
    settings["nodesplitter"] = split_by_node
    stream = WebDataset(shard_set.tars, **{**settings, **options})
    # Tars may hold more than the set, as those of a subset or a repaired one, and names that
    # webdataset passes over: the index says what is a sample.
    opening = [isinstance(stage, StreamingOpen | FileCache) for stage in stream.pipeline]
    del stream.pipeline[opening.index(True) :]  # which make samples of the tars' members
    stream.append(_ByIndex(shard_set))
    if shuffle:
        stream = stream.shuffle(shuffle)
    return cast(WebDataset, stream.map(_decoded))


class _ByIndex:
    """Reads the samples that the index names, in the order of the tars."""

    def __init__(self, shard_set: ShardSet) -> None:
        self._shard_set = shard_set

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the samples of each shard whose tar has the "url"."""
        indexed = self._shard_set.manifest.indexed
        shard_of = dict(zip(self._shard_set.tars, self._shard_set.manifest.shards, strict=True))
        for each in shards:
            shard = shard_of[each["url"]]
            with self._shard_set.tar_folder.open(f"{shard.name}.tar") as tar:
                for line in lines_of(self._shard_set, shard):
                    parts, found = list(components(line)), {"json": b"{}"}
                    if indexed:  # the tars are others', and the index has id and label
                        number, label = map(label_bytes, numbers_in(parts[0][3]))
                        found |= {"id.i64": number, "y.i64": label}
                    for extension, offset, size, _ in parts:
                        found[extension] = read_part(tar, offset, size)
                    yield {"__key__": key_of(line), "__url__": each["url"], **found}


def _decoded(sample: dict[str, Any]) -> dict[str, Any]:
    found = {name: sample[name] for name in ("__key__", "__url__")}
    found["image"] = _image(sample, "")
    if any(name.startswith(PARTNER) for name in sample):
        found["partner"] = _image(sample, PARTNER)
    found["label"] = int.from_bytes(sample["y.i64"], "little", signed=True)
    found["id"] = int.from_bytes(sample["id.i64"], "little", signed=True)
    found["json"] = json.loads(sample["json"])
    if CATEGORIES in sample:
        found["categories"] = np.frombuffer(sample[CATEGORIES], np.uint8)
    return found


def _image(sample: dict[str, Any], prefix: str) -> Image.Image:
    extension = next(each for each in _IMAGES if f"{prefix}{each}" in sample)
    data = sample[f"{prefix}{extension}"]
    if extension == "rgb":
        shape = np.frombuffer(sample[f"{prefix}shape.i64"], "<i8")
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape))
    return Image.fromarray(upright_pixels(open_with_pillow(data))[0])


def _open(url: str, mode: str, *_: Any, **__: Any) -> IO[bytes]:
    import fsspec

    file: Any = fsspec.open(url, mode)
    return file.open()
