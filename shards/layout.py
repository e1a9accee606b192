"""What a shard set is on disk, and how to open one: names, index files, manifest.

A shard set is a folder:

    00000.tar  00000.idx  00001.tar  00001.idx  …  manifest.json

A tar holds samples, each as KEY.jpg or KEY.png, KEY.y.i64 (label), KEY.id.i64 (stable id), both
8 bytes little endian, and KEY.json. The .idx beside it is DALI's text index, version 1.2. The
manifest is written last: its presence means that all else is complete.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

FORMAT = 1
MANIFEST = "manifest.json"
INDEX_VERSION = "v1.2"


@dataclass(frozen=True)
class Shard:
    """One tar file with its index."""

    name: str
    """File name without extension, such as "00000"."""
    samples: int
    bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar, in hexadecimal."""


@dataclass(frozen=True)
class Statistics:
    """What the images are like: sizes of all of them, colours of some."""

    median_shorter_side: float
    min_width: int
    max_width: int
    min_height: int
    max_height: int
    mean: list[float]
    """Per channel, RGB, in 0..1; every image counts alike, whatever its size."""
    std: list[float]
    """Per channel, RGB, in 0..1, over the pixels of the data set."""
    images: int
    """How many images, evenly spread over the shards, gave mean and std."""


@dataclass(frozen=True)
class Manifest:
    """All that is known about a shard set without reading its tars."""

    format: int
    source: str
    split: str
    samples: int
    classes: list[str]
    """Names by label; empty if nothing is labelled."""
    extensions: list[str]
    """Image extensions that occur, sorted."""
    shards: list[Shard]
    statistics: Statistics
    seed: int
    command: str
    """The command that wrote it."""

    def to_json(self) -> str:
        """Return the text of manifest.json."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read the text of manifest.json.

        Raises:
            ValueError: What is wrong with it, without the name of the file.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON ({error})") from None
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError('has no "format", so it does not describe a shard set')
        if values["format"] != FORMAT:
            raise ValueError(
                f"has format {values['format']!r}, but this version of viewrank reads {FORMAT}"
            )
        manifest = _from_json(values, Manifest, "")
        if sum(shard.samples for shard in manifest.shards) != manifest.samples:
            raise ValueError("contradicts itself: samples is not the sum over its shards")
        return manifest


@dataclass(frozen=True)
class ShardSet:
    """A complete shard set; `open_shards` makes it."""

    root: Path
    manifest: Manifest

    @property
    def tars(self) -> list[Path]:
        """The tar files, in the manifest's order."""
        return [self.root / f"{shard.name}.tar" for shard in self.manifest.shards]

    @property
    def indexes(self) -> list[Path]:
        """The index files, in the same order."""
        return [self.root / f"{shard.name}.idx" for shard in self.manifest.shards]

    def __len__(self) -> int:
        return self.manifest.samples


def open_shards(root: Path) -> ShardSet:
    """Open a shard set, refusing what is incomplete or does not fit together.

    Looks at names, sizes and the first line of each index, never into a tar: 10,000 shards take
    less than a second.

    Args:
        root: The folder that `tools.shard` wrote.

    Raises:
        FileNotFoundError: The folder, its manifest or one of its files is missing.
        ValueError: A file is damaged. Either message says what was found and what to do.
    """
    again = "Write it again: python -m tools.shard"
    root = Path(root)
    if not root.is_dir():
        found = "is a file, not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(
            f"{root} {found}; expected a folder of shards. Make one: python -m tools.shard"
        )
    try:
        text = (root / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{root} {_without_manifest(root)}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{root / MANIFEST} is not JSON (not even text). {again}") from None
    try:
        manifest = Manifest.from_json(text)
    except ValueError as error:
        raise ValueError(f"{root / MANIFEST} {error}. {again}") from None

    for shard in manifest.shards:
        tar, index = f"{root}/{shard.name}.tar", f"{root}/{shard.name}.idx"
        try:
            size = Path(tar).stat().st_size
            with open(index, "rb") as file:
                line = file.readline(64)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error.filename} is missing, but {MANIFEST} lists it "
                f"(1 of {len(manifest.shards):,} shards). Copy it again, or write the shards "
                "again: python -m tools.shard"
            ) from None
        if size != shard.bytes:
            state = "truncated" if size < shard.bytes else "not the tar that was written"
            raise ValueError(
                f"{tar} has {size:,} bytes, but {MANIFEST} says {shard.bytes:,}: it is {state}. "
                "Copy it again, or write the shards again: python -m tools.shard"
            )
        expected = f"{INDEX_VERSION} {shard.samples}"
        if line != f"{expected}\n".encode():
            found = line.decode("ascii", "replace").strip()
            raise ValueError(
                f"{index} starts with {found!r}, but {MANIFEST} expects {expected!r}. "
                f"Make it again from its tar: wds2idx {tar} {index}"
            )
    return ShardSet(root, manifest)


def _without_manifest(root: Path) -> str:
    """Say what a folder without a manifest is, and what to do."""
    names = sorted(path.name for path in root.iterdir())
    tars = [name for name in names if name.endswith(".tar")]
    if not names:
        return "is empty; expected a shard set. Make one: python -m tools.shard"
    if not tars:
        return (
            f"holds no shards ({names[0]}, …) and no {MANIFEST}; expected a shard set. Give the "
            "--out folder of python -m tools.shard, or make one with it."
        )
    return (
        f"holds {len(tars):,} tar files but no {MANIFEST}, which is written last: writing did not "
        "finish, or they come from elsewhere. Write them with python -m tools.shard"
    )


def _from_json(value: Any, kind: Any, where: str) -> Any:
    """Check a JSON value against a type, dataclasses included, and build it."""
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
        if not isinstance(value, dict):
            raise ValueError(f"is damaged: {where or 'all'} is not an object")
        missing = [field.name for field in fields(kind) if field.name not in value]
        if missing:
            raise ValueError(f"lacks {', '.join(f'{where}{name}' for name in missing)}")
        hints = _hints(kind)
        return kind(**{n: _from_json(value[n], hints[n], f"{where}{n}.") for n in hints})
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise ValueError(f"is damaged: {where[:-1]} is {value!r}, expected a list")
        (inner,) = get_args(kind)
        return [_from_json(item, inner, f"{where[:-1]}[{i}].") for i, item in enumerate(value)]
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ValueError(f"is damaged: {where[:-1]} is {value!r}, expected {kind.__name__}")
    return value


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    """Type hints of a dataclass, worked out once: 10,000 shards ask for the same."""
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]
