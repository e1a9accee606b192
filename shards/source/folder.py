"""Image files in class folders, or all in one folder."""

import os
import re
from pathlib import Path

from shards.image import decode, encode_png, extension_of
from shards.source.source import Sample, Source, key_from

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm", "pgm", "pbm")
EXTENSIONS += ("pnm", "jpe", "jfif", "dib", "jp2", "tga", "avif")
_SPLIT = re.compile(r"(train|val|valid|validation|dev|test|unlabel+ed)[-_]?(\d{4})?", re.IGNORECASE)


class Folder(Source):
    """Image files in class folders, or all in one folder.

    Layout: ROOT/[SPLIT/]CLASS/**/*.jpg, the label being the class folder's place in
    alphabetical order; or ROOT/[SPLIT/]*.jpg without labels. JPEG and PNG files keep their bytes;
    whatever else Pillow reads is stored as lossless PNG. Names that start with a dot are hidden.
    """

    name = "folder"

    def __init__(self, *, root: Path, split: str = "") -> None:
        """List the files.

        Args:
            root: Folder that holds the class folders or the images.
            split: Folder under root to take, such as train; empty for root itself.
        """
        self.root, self.split = root, split
        top = root / split
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder. Give the images' folder as --root.")
        if not top.is_dir():
            raise FileNotFoundError(
                f"{root} has no folder {split!r}; it holds {_some(_list(root)[0])}. "
                "Give one of them as --split, or leave --split out."
            )
        folders, images, passed = _list(top)
        if folders and all(_SPLIT.fullmatch(folder) for folder in folders) and not images:
            raise ValueError(
                f"{top} holds {_some(folders)}, which look like splits, not like classes. "
                f"Choose one: --split {'/'.join(filter(None, [split, folders[0]]))}"
            )

        self.classes: list[str] = []
        self.files: list[str] = []  # relative to top, "/" between folders
        self.labels: list[int] = []
        if images:
            self.files, self.labels = images, [-1] * len(images)
        without = []
        for folder in sorted(folders):
            inside, other = _walk(top, folder)
            passed += other
            if inside and images:
                raise ValueError(
                    f"{top} holds both images ({images[0]}, …) and folders of images ({folder}, …);"
                    " expected class folders or a flat folder. Move one of the two elsewhere."
                )
            if not inside:
                without.append(folder)
                continue
            self.labels += [len(self.classes)] * len(inside)
            self.files += inside
            self.classes.append(folder)
        if not self.files:
            raise ValueError(
                f"{top} holds no images ({', '.join(EXTENSIONS[:6])}, …), neither itself "
                "nor in folders below. Give the folder of images or of class folders as --root."
            )
        # Two files of one folder that differ only in their extension: it becomes part of the key.
        stems: dict[str, int] = {}
        for file in self.files:
            stem = os.path.splitext(file)[0]
            stems[stem] = stems.get(stem, 0) + 1
        self._shared_stems = {stem for stem, count in stems.items() if count > 1}
        if passed:
            self.notes = [f"{passed:,} files passed over: their names are not those of images"]
        if without:
            self.notes = [*self.notes, f"no images, so no class, in {_some(without)}"]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file = self.files[index]
        stem = os.path.splitext(file)[0]
        metadata = {"file": f"{self.split}/{file}" if self.split else file}
        path = self.root / self.split / file
        image = path.read_bytes()
        extension = extension_of(image)
        if extension is None:
            try:
                decoded = decode(image)
                image, extension = encode_png(decoded), "png"
            except ValueError as error:
                raise ValueError(
                    f"{path} cannot be decoded: {error}. Repair or remove it, and run this again."
                ) from None
            metadata["stored_as_png_from"] = f"{decoded.format} {decoded.mode}"
        return Sample(
            key=key_from(file if stem in self._shared_stems else stem),
            image=image,
            extension=extension,
            label=self.labels[index],
            id=index,
            metadata=metadata,
        )


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts 2.jpg before 10.jpg; names alike but for leading zeros stay in order."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts] + [(2, name)]


def _list(folder: Path) -> tuple[list[str], list[str], int]:
    """Return the names of folders and of images in a folder, sorted, and the count of the rest."""
    folders, images, passed = [], [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.name.rpartition(".")[2].lower() in EXTENSIONS:
                images.append(entry.name)
            else:
                passed += 1
    return sorted(folders, key=_natural), sorted(images, key=_natural), passed


def _walk(top: Path, folder: str, above: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """Return the images in and below a folder, relative to top, and the count of other files."""
    real = os.path.realpath(top / folder)
    if real in above:  # a link that leads back up
        return [], 0
    folders, images, passed = _list(top / folder)
    files = [f"{folder}/{image}" for image in images]
    for below in folders:
        inside, other = _walk(top, f"{folder}/{below}", (*above, real))
        files += inside
        passed += other
    return files, passed


def _some(names: list[str]) -> str:
    """Name up to six folders."""
    shown = ", ".join(names[:6]) or "no folders"
    return f"{shown}, … ({len(names)} folders)" if len(names) > 6 else shown
