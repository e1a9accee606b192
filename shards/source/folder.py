"""Image files in class folders, or all in one folder."""

import hashlib
import os
import shlex
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shards.layout import MANIFEST, PLAN, QUARANTINE
from shards.one_line import few, one_line
from shards.source.labels import natural
from shards.source.source import Names, Sample, Source, key_from
from shards.source.usual_names import is_leftover, is_split, splits_among
from shards.storage import folder_at

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm", "pgm", "pbm")
EXTENSIONS += ("pnm", "jpe", "jfif", "dib", "jp2", "j2k", "jpx", "tga", "avif", "heic", "heif")
EXTENSIONS += ("jxl", "qoi", "ico", "pcx", "apng", "mpo", "jfi")
_SPLITS = 3  # folders of splits that are remembered


class ImageFolder(Source):
    """Image files in class folders, or all in one folder.

    Layout: ROOT/[SPLIT/]CLASS/**/*.jpg, the label being the class folder's place in
    alphabetical order, 2 before 10; or ROOT/[SPLIT/]*.jpg without labels. Every file with the name
    of an image is a sample, whatever is in it. Names that start with a dot are hidden, and folders
    that systems make, such as @eaDir and __MACOSX, are left out.
    """

    name = "folder"

    def __init__(
        self,
        *,
        root: str | Path,
        split: str = "",
        class_of: Literal["first", "deepest"] | None = None,
    ) -> None:
        """List the files.

        Args:
            root: Folder that holds the class folders or the images; local, or such as s3://….
            split: Folder under root to take, such as train; empty for root itself.
            class_of: Folder that names an image's class: of a/airfield/x.jpg, a is the first and
                a/airfield the deepest. Default: the first, if folders do not look like splits.
        """
        above = folder_at(os.fspath(root))
        self.split = split.strip("/")
        self.origin = str(above)
        if not above.exists():
            raise FileNotFoundError(f"{above} is not a folder. Give the images' folder as --root.")
        self._place = folder_at(above.path(self.split)) if self.split else above
        if not self._place.exists():
            folders = [name for name in next(above.walk())[1] if not is_leftover(name)]
            raise FileNotFoundError(
                f"{above} has no folder {split!r}; it holds "
                f"{few(sorted(folders, key=natural), what='folders')}. Give one of them as "
                "--split, or leave --split out."
            )

        self.classes: list[str] = []
        self._class_of = class_of
        self._names = Names()  # of files, without their folders
        self._long = array("q")  # samples whose key is made of the whole name of the file
        self._folders = Names()  # folders with images, relative to the split's
        self._first = array("q")  # the first sample of each
        self._label = array("i")  # of each
        listed = self._list()
        if not self._first:
            raise ValueError(
                f"{self._place} holds no images ({few(EXTENSIONS)}), neither itself nor in folders "
                "below; hidden names do not count. Give the folder of images or of class folders "
                "as --root."
            )
        self._check_splits(listed)
        self.notes = self._remarks(listed)

    def _list(self) -> "_Listed":
        """Add all images, and return what else was found."""
        listed = _Listed()
        for folder, folders, files in self._place.walk():
            listed.leftovers.update(name for name in folders if is_leftover(name))
            # The walk goes on with this list, in this order.
            folders[:] = sorted(to_walk(folders, files), key=natural)
            images = sorted((name for name in files if is_image(name)), key=natural)
            listed.passed.update(_ending(name) for name in files if not is_image(name))
            splits = splits_among(folders)
            if splits and len(listed.splits) < _SPLITS:
                listed.splits[folder] = splits
            if not folder:
                if folders and not images and (splits or all(map(is_split, folders))):
                    self._refuse_splits("", splits or folders)
                listed.without = list(folders)
            elif images:
                self._add_class(folder, listed)
            self._add(folder, images)
        listed.without = [name for name in listed.without if name not in listed.tops]
        return listed

    def _add_class(self, folder: str, listed: "_Listed") -> None:
        """Make a folder with images the newest class, or find that it belongs to it."""
        first, slash, _ = folder.partition("/")
        if self._first and self._folders[0] == "":
            raise ValueError(
                f"{self._place} holds both images ({one_line(self._names[0])}, …) and folders of "
                f"images ({one_line(first)}, …); expected class folders or a flat folder. Move "
                "one of the two elsewhere."
            )
        name = folder if self._class_of == "deepest" else first
        if not self.classes or self.classes[-1] != name:
            self.classes.append(name)
        listed.tops.add(first)
        if slash and not listed.deep:
            listed.deep = folder
        listed.direct += not slash

    def _check_splits(self, listed: "_Listed") -> None:
        """Refuse folders that look like splits and would be taken for classes, or all for one."""
        tops = sorted(listed.tops, key=natural)
        if tops and all(map(is_split, tops)):  # what lies beside them has no images
            self._refuse_splits("", tops)
        for folder, names in listed.splits.items():
            if folder and (self._class_of == "deepest" or tops == [folder]):
                self._refuse_splits(folder, names)

    def _refuse_splits(self, folder: str, names: list[str]) -> None:
        if self._class_of == "first":
            return
        where = self._place.path(folder) if folder else self._place
        first = "/".join(filter(None, [self.split, folder, names[0]]))
        raise ValueError(
            f"{where} holds {few(names, what='folders')}, which look like splits, not like "
            f"classes. Choose one: --split {shlex.quote(first)}; or, if they are classes: "
            "--class_of first"
        )

    def _remarks(self, listed: "_Listed") -> list[str]:
        notes = []
        if passed := listed.passed:
            kinds = few(f"{count:,} {kind}" for kind, count in passed.most_common())
            notes.append(
                f"{passed.total():,} files passed over: their names are not those of images "
                f"({kinds})"
            )
        if listed.leftovers:
            notes.append(
                f"{listed.leftovers.total():,} folders left out, which a system made: "
                f"{few(sorted(listed.leftovers))}"
            )
        if listed.without:
            notes.append(f"no images, so no class, in {few(listed.without, what='folders')}")
        deeper = len(self._folders) > len(self.classes) and not listed.direct
        if self._class_of is None and listed.deep and deeper:
            notes.append(
                f"all images lie deeper than the {len(self.classes):,} class folders, such as in "
                f"{one_line(listed.deep)}: --class_of deepest makes these the classes"
            )
        elif len(self.classes) == 1:
            notes.append(f"all images are of one class: {few(self.classes)}")
        if len(self.classes) > 1 and (alone := [name for name in self.classes if is_split(name)]):
            notes.append(
                f"taken for a class: {few(alone)}; if it is a split, choose it: --split "
                f"{shlex.quote('/'.join(filter(None, [self.split, alone[0]])))}"
            )
        for folder, names in listed.splits.items():
            if folder:
                shown = few(names, what="folders")
                notes.append(f"{one_line(folder)} holds {shown}, which look like splits")
        return notes

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        file = self._file(index)
        place = bisect_left(self._long, index)
        is_long = self._long[place : place + 1] == array("q", [index])
        return Sample(
            key=key_from(file if is_long else os.path.splitext(file)[0]),
            image=self._place.read(file),
            label=self.label(index),
            id=index,
            metadata={"file": f"{self.split}/{file}" if self.split else file},
            extension=file.rpartition(".")[2],
        )

    def label(self, index: int) -> int:
        """Return the label of a sample, without its image."""
        return self._label[self._folder(index)]

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        return hashlib.blake2b(
            self._names.digest() + self._folders.digest() + self._first.tobytes(),
            digest_size=16,
        ).digest()

    def _folder(self, index: int) -> int:
        return bisect_right(self._first, index) - 1

    def _file(self, index: int) -> str:
        name, folder = self._names[index], self._folders[self._folder(index)]
        return f"{folder}/{name}" if folder else name

    def _add(self, folder: str, images: list[str]) -> None:
        """Add the images of a folder as samples."""
        if not images:
            return
        self._folders.append(folder)
        self._first.append(len(self._names))
        self._label.append(len(self.classes) - 1)
        # Files that differ in their extension alone: it becomes part of the key. So it does where
        # a name less its extension is another file's: a.jpg and a.jpg.png beside a.png.
        stems = Counter(os.path.splitext(name)[0] for name in images)
        names = set(images)
        for name in images:
            stem = os.path.splitext(name)[0]
            if stems[stem] > 1 or stem in names:
                self._long.append(len(self._names))
            self._names.append(name)


@dataclass
class _Listed:
    """What a folder holds besides images in classes."""

    passed: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by their ending."""
    leftovers: Counter[str] = field(default_factory=Counter)
    """Folders left out, by their name."""
    splits: dict[str, list[str]] = field(default_factory=dict)
    """Folders that look like splits, by the folder that they are in."""
    tops: set[str] = field(default_factory=set)
    """Folders at the top with an image, themselves or below."""
    without: list[str] = field(default_factory=list)
    """Folders at the top without an image."""
    deep: str = ""
    """A folder of images within a class folder."""
    direct: int = 0
    """Class folders that hold images themselves."""


def to_walk(folders: Iterable[str], files: Iterable[str]) -> list[str]:
    """Return the folders in which images are looked for: not those that systems made, nor we.

    An output may lie among the images. What could not be used is below it under its own name, and
    would be taken for more images when the same command goes on.

    Args:
        folders: that a folder holds.
        files: that it holds.
    """
    written = not {PLAN, MANIFEST}.isdisjoint(files)
    return [n for n in folders if not is_leftover(n) and not (written and n == QUARANTINE)]


def is_image(name: str) -> bool:
    """Whether a file has the name of an image: the end is known, in whatever case."""
    return name.rpartition(".")[2].lower() in EXTENSIONS and "." in name


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"
