"""WebDataset tars of any origin: https://github.com/webdataset/webdataset."""

import errno
import hashlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.layout import MANIFEST
from shards.source.beside_tars import (
    Beside,
    are_numbers,
    beside_tars,
    by_name,
    in_common,
    joined_classes,
)
from shards.source.keys import how_much_to_say
from shards.source.labels import Labels
from shards.source.location import find_tars, is_there
from shards.source.source import Names, NoImage, Sample, Source, key_from
from shards.source.tar_samples import ROLES, Convention, Scan, read_sample, scan
from shards.storage import Folder, is_remote

_THREADS = 8  # tars at a time in a store, for which most of the scan is waiting


class WebDataset(Source):
    """WebDataset tars of any origin, img2dataset's and viewrank's own among them.

    A sample is what lies side by side with the same key: KEY.jpg, KEY.json, KEY.cls, …. Texts of
    up to 64 KiB go into the metadata. Tars of files without labels, and those that `tar` makes of
    a folder, will do. Each tar is read through once for its headers, and a second time if it has
    links or repeated names: links are followed within their tar, and of members with one name the
    last one counts, as for tar. Of our own sets the index says what is a sample, so what a repair
    has left out stays out; those whose manifests name different classes are joined by name.
    """

    name = "webdataset"

    def __init__(
        self,
        *,
        root: str | Path,
        split: str = "",
        image: str | None = None,
        keys: Literal["auto", "first_dot", "last_dot"] = "auto",
        label: str | None = None,
    ) -> None:
        """Scan the tars.

        Args:
            root: Folder of tars, one tar, or a pattern such as data/{000..009}.tar or data/*.tar;
                local, or such as s3://….
            split: Folder under root to take, if root is a folder.
            image: Component that is the image, such as jpg or left.jpg; where samples differ,
                several with ";" between, best first. Default: the only one that is an image.
            keys: Where the key of a sample ends in a file's name. WebDataset's convention is the
                first dot: 1.left.jpg is component left.jpg of sample 1. If dots belong to the
                names, as in IMG.2020.01.jpg, it is the last_dot. auto takes the first, unless
                that would put several images into a sample whose names do not recur in others
                like left.jpg and right.jpg: on average in fewer than two, or more than 32 names.
            label: Component that holds the label as a number or a name: cls, or json:FIELD for a
                field of a JSON component; or folder, for the first folder that not all samples
                have in common. Default: y.i64 or cls, where there is one.
        """
        self.split = split
        self._tars = find_tars(root, split)
        beside = {folder: beside_tars(folder) for folder in dict.fromkeys(f for f, _ in self._tars)}
        categories = in_common([each.categories for each in beside.values()])
        alternatives = tuple(filter(None, (image or "").lower().replace(" ", "").split(";")))
        undecided = keys == "auto" and not any("." in name for name in alternatives)
        convention = Convention(
            keys == "last_dot", alternatives, label, bool(categories), undecided
        )
        scans = self._scan(convention, beside)
        decided = undecided and _is_last_dot(scans)
        if undecided:
            convention = Convention(decided, alternatives, label, bool(categories))
        if decided:
            scans = self._scan(convention, beside)
        self._last_dot, self._label = convention.last_dot, label
        self.categories = [] if self._last_dot else categories
        _refuse_several(scans, self._tars, convention)

        self._keys = Names()
        self._first = array("q")  # the first sample of each tar, and the end
        self._starts, self._spans, self._image_offsets = array("q"), array("I"), array("I")
        self._contents = [found.contents for found in scans]
        ids = array("q")
        labels = Labels(f"{label or 'y.i64 or cls'} in the tars of {self._tars[0][0]}")
        named = {folder: each.classes for folder, each in beside.items()}
        joined = joined_classes(named) if label in (None, "y.i64") else None
        for (folder, _), found in zip(self._tars, scans, strict=True):
            self._first.append(len(self._keys))
            for index in range(len(found.keys)):
                self._keys.append(found.keys[index])
                read = found.labels[index]
                labels.append(read if joined is None else by_name(read, folder, named, joined))
            found.keys, found.labels = Names(), []  # all tars together take gigabytes
            self._starts.extend(found.starts)
            self._spans.extend(found.spans)
            self._image_offsets.extend(found.image_offsets)
            ids.extend(found.ids)
        self._first.append(len(self._keys))
        if not len(self._keys):
            raise _without_images(scans, self._tars, convention)

        complete = len(ids) == len(self._keys)
        whole = complete and len(np.unique(np.asarray(ids))) == len(ids)
        self._ids = ids if whole else None
        names = in_common([*named.values()]) if joined is None else [*joined]
        numbers, self.classes = self._named(labels, scans, names)
        self._labels = numbers if self.classes else None
        self._tar_names = _short_names(self._tars)
        self._levels = how_much_to_say(len(self), self._name, 3)
        self.notes = self._remarks(scans, decided)
        self.notes += self._more_than_listed(beside)
        if joined:
            self.notes.append(
                f"the tars of different folders have different classes, {len(joined):,} in all: "
                "labels were joined by name"
            )
        if complete and not whole:
            self.notes.append("the same ids occur in several places: samples get new numbers")

    def _scan(self, convention: Convention, beside: dict[Folder, Beside]) -> list[Scan]:
        def scanned(tar: tuple[Folder, str]) -> Scan:
            folder, name = tar
            return scan(folder, name, convention, beside[folder].lines(name))

        # Headers of local tars are soon there, and threads would only wait for each other.
        threads = _THREADS if any(is_remote(folder.location) for folder, _ in self._tars) else 1
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(scanned, self._tars))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        tar = self._tar(index)
        folder, name = self._tars[tar]
        image, path, metadata, places, categories = read_sample(
            folder,
            name,
            self._starts[index],
            self._spans[index],
            self._image_offsets[index],
            self._last_dot,
            self._contents[tar],
        )
        if self._ids is not None and isinstance(metadata.get("json"), dict):
            metadata = metadata["json"]  # a shard set of our own: what its source knew
        if self.categories and len(categories) != len(self.categories):
            found = f"has {len(categories)} categories for {len(self.categories)} in the manifest"
            raise NoImage(errno.EINVAL, found, f"{name}/{path}")
        level = 0 if self._levels is None else self._levels[index]
        return Sample(
            key=key_from(self._name(index, int(level))),
            image=image,
            label=self.label(index),
            id=index if self._ids is None else self._ids[index],
            metadata={"file": f"{name}/{path.removeprefix('./')}", **metadata},
            extension=path.rpartition(".")[2],
            places=places,
            categories=categories if self.categories else b"",
        )

    def tars(self) -> Iterator[tuple[Folder, str, range]]:
        """Yield folder and name of each tar, and the positions of its samples."""
        for (folder, name), between in zip(self._tars, pairwise(self._first), strict=True):
            yield folder, name, range(*between)

    def label(self, index: int) -> int:
        """Return the label of a sample, without its image."""
        return -1 if self._labels is None else int(self._labels[index])

    def reachable(self) -> bool:
        """Whether the folders of all tars are there."""
        return all(map(is_there, {folder.location for folder, _ in self._tars}))

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        digest = hashlib.blake2b(self._keys.digest(), digest_size=16)
        for numbers in (self._first, self._starts, self._spans, self._image_offsets):
            digest.update(numbers)
        digest.update(repr(self._contents).encode())
        digest.update("\n".join(name for _, name in self._tars).encode("utf-8", "surrogateescape"))
        digest.update(repr((self.classes, self._label)).encode("utf-8", "surrogateescape"))
        for numbers in (self._labels, self._ids):
            digest.update(b"" if numbers is None else numbers.tobytes())
        return digest.digest()

    def _tar(self, index: int) -> int:
        return bisect_right(self._first, index) - 1

    def _name(self, index: int, level: int) -> str:
        """Return the key; from level 1 on with its tar, at level 2 with its place there."""
        key = self._keys[index]
        if level == 0:
            return key
        tar = self._tar(index)
        within = f"/{index - self._first[tar]}" if level == 2 else ""
        return f"{self._tar_names[tar]}/{key}{within}"

    def _named(
        self, labels: Labels, scans: list[Scan], names: list[str]
    ) -> tuple[NDArray[np.int32], list[str]]:
        """Return the label of each sample, and the classes; numbers may have names."""
        if self._label == "folder":
            labels = Labels(f"the folders in the tars of {self._tars[0][0]}")
            for folder in _folders_that_differ(self._keys):
                labels.append(folder)
            return labels.finish()
        numbers, classes = labels.finish()
        if self._label is not None and not classes:
            components = sum((found.components for found in scans), Counter[str]())
            raise ValueError(
                f"no sample in the tars of {self._tars[0][0]} has a label {self._label}; there are "
                f"{_counted(components)}. Choose one as --label, or json:FIELD, or leave it out."
            )
        if classes and are_numbers(classes) and self._label in (None, "y.i64"):
            classes = names if len(names) >= len(classes) else classes
        return numbers, classes

    def _more_than_listed(self, beside: dict[Folder, Beside]) -> list[str]:
        """Return a note if tars of our own sets gave more samples than these list."""
        more = []
        for (folder, name), between in zip(self._tars, pairwise(self._first), strict=True):
            shard, samples = beside[folder].shards.get(name), len(range(*between))
            if shard is not None and samples > shard.samples:
                more.append(f"{name} has {samples:,} samples, {shard.samples:,} by its {MANIFEST}")
        if not more:
            return []
        others = f" (and {len(more) - 1:,} more tars)" if len(more) > 1 else ""
        return [f"{more[0]}{others}, and no .idx that fits: what a repair left out comes in again"]

    def _remarks(self, scans: list[Scan], decided: bool) -> list[str]:
        notes = []
        if decided:
            notes.append(
                "keys end at the last dot of a file's name, because what follows the first differs "
                "from image to image (--keys first_dot for WebDataset's convention)"
            )
        damaged = [
            f"{name} {scans[tar].damage} ({self._first[tar + 1] - self._first[tar]:,} samples "
            "before that were taken)"
            for tar, (_, name) in enumerate(self._tars)
            if scans[tar].damage
        ]
        notes += damaged[:8]
        if len(damaged) > 8:
            notes.append(f"{len(damaged) - 8:,} more tars are damaged")
        without = sum(found.without_image for found in scans)
        apart = sum(found.apart for found in scans)
        if without:
            notes.append(
                f"{without:,} samples passed over: they have no image"
                + (
                    f"; that of {apart:,} lies elsewhere in the tar (tar --sort=name keeps the "
                    "files of a sample side by side)"
                    if apart
                    else ""
                )
            )
        if links := sum(found.links for found in scans):
            notes.append(
                f"{links:,} links that lead to no file of their tar, and other entries without "
                "content, passed over"
            )
        if again := sum(len(found.contents.replaced) for found in scans):
            notes.append(
                f"{again:,} members have the name of an earlier one of their tar, whose content "
                "they replace, as when it is unpacked"
            )
        left = sum((found.left for found in scans), Counter[str]())
        if left:
            notes.append(f"components that are no text, and stay behind: {_counted(left)}")
        labels = self._labels
        if labels is not None and (count := int((labels < 0).sum())):
            notes.append(f"{count:,} samples have no label")
        if self._levels is not None:
            notes.append(
                f"{int((self._levels > 0).sum()):,} keys occur in several places: the name of the "
                "tar was put before them"
            )
        return notes


def _is_last_dot(scans: list[Scan]) -> bool:
    """Whether the images of samples that have several are told apart by parts of file names."""
    several = sum((found.several for found in scans), Counter[str]())
    return len(several) > ROLES or several.total() < 2 * len(several)


def _refuse_several(
    scans: list[Scan], tars: list[tuple[Folder, str]], convention: Convention
) -> None:
    if convention.image:
        return
    for found, (folder, name) in zip(scans, tars, strict=True):
        if found.example:
            key, images = found.example
            raise ValueError(
                f"sample {key} in {folder.path(name)} has several images: "
                f"{', '.join(images[:12])}{', …' if len(images) > 12 else ''}. Choose one: --image "
                f"{images[0]}"
                + ("" if convention.last_dot else "; or, if dots belong to keys: --keys last_dot")
            )


def _without_images(
    scans: list[Scan], tars: list[tuple[Folder, str]], convention: Convention
) -> ValueError:
    where = tars[0][0].path(tars[0][1]) + (f", … ({len(tars):,} tars)" if len(tars) > 1 else "")
    components = sum((found.components for found in scans), Counter[str]())
    damage = next((f"; {found.damage}" for found in scans if found.damage), "")
    what = f"component {' or '.join(convention.image)}" if convention.image else "image"
    return ValueError(
        f"{where}: no sample has an {what}".replace("an component", "a component")
        + f"; there are {_counted(components)}{damage}. Choose the image: --image COMPONENT"
    )


def _counted(components: Counter[str]) -> str:
    shown = ", ".join(f"{name} ({count:,})" for name, count in components.most_common(8))
    return (shown or "no components") + (", …" if len(components) > 8 else "")


def _short_names(tars: list[tuple[Folder, str]]) -> list[str]:
    """Name each tar by its stem, or by its path where two have the same."""
    stems = [name.rpartition(".")[0] for _, name in tars]
    if len(set(stems)) == len(stems):
        return stems
    paths = [folder.path(stem) for (folder, _), stem in zip(tars, stems, strict=True)]
    return [path.rpartition("://")[2].strip("/") for path in paths]


def _folders_that_differ(keys: Names) -> Iterator[str]:
    """Give the first folder of each key that is not common to all; "" where there is none."""
    common = keys[0].split("/")[:-1]
    shallowest = len(common)
    for index in range(len(keys)):
        folders = keys[index].split("/")[:-1]
        shallowest = min(shallowest, len(folders))
        same = (pair[0] == pair[1] for pair in zip(common, folders, strict=False))
        common = common[: next((i for i, equal in enumerate(same) if not equal), len(folders))]
    depth = len(common)
    if shallowest == depth:  # some lie in the last common folder itself
        depth = max(0, depth - 1)

    for index in range(len(keys)):
        folders = keys[index].split("/")[:-1]
        yield folders[depth] if depth < len(folders) else ""
