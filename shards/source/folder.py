"""Image files in class folders, or all in one folder."""

import hashlib
import os
import re
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from shards.source.labels import natural
from shards.source.source import Names, Sample, Source, key_from
from shards.storage import folder_at

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm", "pgm", "pbm")
EXTENSIONS += ("pnm", "jpe", "jfif", "dib", "jp2", "j2k", "jpx", "tga", "avif", "heic", "heif")
EXTENSIONS += ("jxl", "qoi", "ico", "pcx", "apng", "mpo", "jfi")
_SPLIT = re.compile(r"(train|val|valid|validation|dev|test|unlabel+ed)[-_]?(\d{4})?", re.IGNORECASE)


class ImageFolder(Source):
    """Image files in class folders, or all in one folder.

    Layout: ROOT/[SPLIT/]CLASS/**/*.jpg, the label being the class folder's place in
    alphabetical order, 2 before 10; or ROOT/[SPLIT/]*.jpg without labels. Every file with the name
    of an image is a sample, whatever is in it. Names that start with a dot are hidden.
    """

    name = "folder"

    def __init__(self, *, root: str | Path, split: str = "") -> None:
        """List the files.

        Args:
            root: Folder that holds the class folders or the images; local, or such as s3://….
            split: Folder under root to take, such as train; empty for root itself.
        """
        above = folder_at(os.fspath(root))
        self.split = split.strip("/")
        self.origin = str(above)
        if not above.exists():
            raise FileNotFoundError(f"{above} is not a folder. Give the images' folder as --root.")
        self._place = folder_at(above.path(self.split)) if self.split else above
        if not self._place.exists():
            raise FileNotFoundError(
                f"{above} has no folder {split!r}; it holds "
                f"{some(sorted(next(above.walk())[1], key=natural))}. "
                "Give one of them as --split, or leave --split out."
            )

        self.classes: list[str] = []
        self._names = Names()  # of files, without their folders
        self._long = array("q")  # samples whose key is made of the whole name of the file
        self._folders = Names()  # folders with images, relative to the split's
        self._first = array("q")  # the first sample of each
        self._label = array("i")  # of each
        passed: Counter[str] = Counter()
        without: list[str] = []
        for folder, folders, files in self._place.walk():
            folders.sort(key=natural)  # the walk goes on in this order
            images = sorted((name for name in files if is_image(name)), key=natural)
            passed.update(_ending(name) for name in files if not is_image(name))
            if not folder:
                self._check_top(folders, images)
                without = list(folders)  # until an image is found in one
            elif images:
                name = folder.partition("/")[0]
                if self._first and self._folders[0] == "":
                    raise ValueError(
                        f"{self._place} holds both images ({self._names[0]}, …) and folders of "
                        f"images ({name}, …); expected class folders or a flat folder. Move one "
                        "of the two elsewhere."
                    )
                if not self.classes or self.classes[-1] != name:
                    self.classes.append(name)
                    without.remove(name)
            self._add(folder, images)
        if not self._first:
            raise ValueError(
                f"{self._place} holds no images ({', '.join(EXTENSIONS[:6])}, …), neither itself "
                "nor in folders below. Give the folder of images or of class folders as --root."
            )
        self.notes = []
        if passed:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in passed.most_common(6))
            self.notes.append(
                f"{passed.total():,} files passed over: their names are not those of images "
                f"({kinds}{', …' if len(passed) > 6 else ''})"
            )
        if without:
            self.notes.append(f"no images, so no class, in {some(without)}")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        file, label = self._file(index), self._label[self._folder(index)]
        place = bisect_left(self._long, index)
        is_long = self._long[place : place + 1] == array("q", [index])
        return Sample(
            key=key_from(file if is_long else os.path.splitext(file)[0]),
            image=self._place.read(file),
            label=label,
            id=index,
            metadata={"file": f"{self.split}/{file}" if self.split else file},
            extension=file.rpartition(".")[2],
        )

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

    def _check_top(self, folders: list[str], images: list[str]) -> None:
        if folders and all(_SPLIT.fullmatch(folder) for folder in folders) and not images:
            raise ValueError(
                f"{self._place} holds {some(folders)}, which look like splits, not like classes. "
                f"Choose one: --split {'/'.join(filter(None, [self.split, folders[0]]))}"
            )

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


def is_image(name: str) -> bool:
    """Whether a file has the name of an image: the end is known, in whatever case."""
    return name.rpartition(".")[2].lower() in EXTENSIONS and "." in name


def some(names: Iterable[str]) -> str:
    """Name up to six folders."""
    names = list(names)
    shown = ", ".join(names[:6]) or "no folders"
    return f"{shown}, … ({len(names)} folders)" if len(names) > 6 else shown


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"
