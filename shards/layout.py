"""What a shard set is on disk, and how to open one: names, index files, tables, manifest.

A shard set is a folder, local or in an object store:

    00000.tar  00000.idx  00000.jsonl  00001.tar  …  manifest.json  plan.json  [quarantine/…]

A tar holds samples: the image as KEY.jpg, KEY.png or KEY.rgb (bare pixels, with KEY.shape.i64:
height, width, 3), KEY.y.i64 (label), KEY.id.i64 (stable id), all numbers 8 bytes little endian, and
KEY.json. In a pair set (see `shards.source.pairs`) each sample also carries another image, its
partner: KEY.partner.jpg, .png, or .rgb with KEY.partner.shape.i64. The .idx beside a tar is DALI's
text index, version 1.2; the .jsonl is the shard's table (see `shards.shard_table`). The manifest is
written last: its presence means that all else is complete.

A subset (see `shards.subset.selection`) is a shard set in a folder SET/subsets/NAME with indexes
and tables of its own, and the tars of the set two folders up.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, get_args, get_origin, get_type_hints

from shards.sealed_json import seal, unseal
from shards.storage import Folder, Location, folder_at, is_remote

FORMAT = 2
MANIFEST = "manifest.json"
PLAN = "plan.json"
QUARANTINE = "quarantine"
REASONS = "reasons.jsonl"  # in it, a line a quarantined sample
SUBSETS = "subsets"
PARTNER = "partner."  # begins the extensions of a sample's second image
PARENT = "../.."  # from a subset to its set, the only way out of a shard set's folder
INDEX_VERSION = "v1.2"


@dataclass(frozen=True)
class File:
    """A file of a shard as it was written."""

    bytes: int
    sha256: str
    """In hexadecimal."""


@dataclass(frozen=True)
class Shard:
    """One tar file with its index and table."""

    name: str
    """File name without extension, such as "00000"."""
    samples: int
    tar: File
    index: File
    table: File


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
class Account:
    """Where every sample of the source went: found = written + quarantined + dropped."""

    found: int
    """Samples that were to be written: all of the source, or the limit."""
    written: int
    repaired: int
    """Of those written: not the source's own bytes under their own extension (see remarks)."""
    quarantined: int
    """Unusable; their bytes and reasons are in quarantine/."""
    dropped: int
    """Copies of another sample that were left out on demand."""
    duplicates: int
    """Of those written: images whose bytes another sample before them has too."""


@dataclass(frozen=True)
class Manifest:
    """All that is known about a shard set without reading its tars."""

    format: int
    source: str
    split: str
    samples: int
    classes: list[str]
    """Names by label; empty if nothing is labelled."""
    encoding: str
    """What images are stored as: original, png, raw or jpeg:QUALITY."""
    resize_shorter: int
    """Largest shorter side, to which larger images were reduced; 0 if none were."""
    extensions: list[str]
    """Image extensions that occur, sorted: jpg and png, or rgb."""
    orientation: str
    """Who turns images upright by EXIF: "decoder" (DALI does), or "pixels" (they were turned)."""
    shards: list[Shard]
    statistics: Statistics
    account: Account
    remarks: dict[str, int]
    """What was repaired or is to be known, with the number of samples."""
    seed: int
    command: str
    """The command that wrote it."""
    parent: str
    """Where the tars are: "" for this folder, "../.." for a subset."""
    partners: bool = False
    """Whether each sample carries a second image, from which half of its views are made."""

    @property
    def raw(self) -> bool:
        """Whether images are bare pixels, which need no decoder."""
        return self.extensions == ["rgb"]

    def to_json(self) -> str:
        """Return the text of manifest.json."""
        values = asdict(self)
        if not self.partners:  # as before there were any: same bytes, same digest
            del values["partners"]
        return seal(values, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read the text of manifest.json.

        Raises:
            ValueError: What is wrong with it, without the name of the file.
        """
        values = {"partners": False, **unseal(text)}
        if values.get("format") != FORMAT:
            raise ValueError(
                f"has format {values.get('format')!r}, but this version of viewrank reads {FORMAT}"
            )
        manifest = from_json(values, Manifest)
        if sum(shard.samples for shard in manifest.shards) != manifest.samples:
            raise ValueError("contradicts itself: samples is not the sum over its shards")
        if manifest.parent not in ("", PARENT):
            raise ValueError(f"has its tars in {manifest.parent!r}; expected '' or {PARENT!r}")
        for shard in manifest.shards:
            if not (
                shard.name.isascii() and shard.name.isdecimal()
            ):  # never a way out of the folder
                raise ValueError(f"names a shard {shard.name!r}; expected digits only")
        return manifest


@dataclass(frozen=True)
class ShardSet:
    """A complete shard set; `open_shards` makes it."""

    folder: Folder
    manifest: Manifest
    replaced: Mapping[str, str] = field(default_factory=dict)
    """{shard: path of another index than its own}; see `shards.health.leave_out`."""

    @property
    def root(self) -> str:
        """The folder, as it is written for people."""
        return self.folder.location

    @property
    def tar_folder(self) -> Folder:
        """Where the tars are: the folder itself, or a subset's set."""
        if not self.manifest.parent:
            return self.folder
        if is_remote(self.root):
            protocol, _, path = self.root.partition("://")
            return folder_at(f"{protocol}://{PurePosixPath(path).parent.parent}")
        path = PurePosixPath(self.root)
        named = path.parts[-2:-1] == (SUBSETS,)  # else it was opened as "." or through a link
        return folder_at(path.parent.parent if named else f"{path}/{PARENT}")

    @property
    def tars(self) -> list[str]:
        """The tar files, in the manifest's order."""
        folder = self.tar_folder
        return [folder.path(f"{shard.name}.tar") for shard in self.manifest.shards]

    @property
    def indexes(self) -> list[str]:
        """The index files, in the same order."""
        return [
            self.replaced.get(shard.name) or self.folder.path(f"{shard.name}.idx")
            for shard in self.manifest.shards
        ]

    def __len__(self) -> int:
        return self.manifest.samples


def open_shards(root: Location) -> ShardSet:
    """Open a shard set, refusing what is incomplete or does not fit together.

    Looks at names and sizes, never into a tar: 10,000 shards take less than a second.

    Args:
        root: The folder that `tools.shard` wrote, local or a URL such as s3://bucket/folder.

    Raises:
        FileNotFoundError: The folder, its manifest or one of its files is missing.
        ValueError: A file is damaged. Either message says what was found and what to do.
    """
    folder = folder_at(root)
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder} is not a folder of shards: it does not exist, or is a file. "
            "Make one: python -m tools.shard"
        )
    try:
        text = folder.read(MANIFEST).decode()
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} {_without_manifest(folder)}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{folder.path(MANIFEST)} is not text. {_remedy(folder)}") from None
    try:
        manifest = Manifest.from_json(text)
    except ValueError as error:
        raise ValueError(f"{folder.path(MANIFEST)} {error}. {_remedy(folder)}") from None

    shard_set = ShardSet(folder, manifest)
    for problem in wrong_sizes(shard_set):
        kind = FileNotFoundError if problem.endswith("is missing") else ValueError
        # A subset's own files are selected again rather than repaired.
        own = manifest.parent and problem.startswith(f"{folder}/")
        raise kind(f"{problem}. {_reselect(folder) if own else _remedy(shard_set.tar_folder)}")
    return shard_set


def wrong_sizes(shard_set: ShardSet) -> list[str]:
    """Return, for each file that is missing or has another size than the manifest says, a line."""
    own = shard_set.folder.sizes()
    above = shard_set.tar_folder.sizes() if shard_set.manifest.parent else own
    wrong = []
    for shard in shard_set.manifest.shards:
        files = [(shard_set.tar_folder, above, "tar", shard.tar)]
        files += [
            (shard_set.folder, own, "idx", shard.index),
            (shard_set.folder, own, "jsonl", shard.table),
        ]
        for folder, sizes, extension, file in files:
            name = f"{shard.name}.{extension}"
            size = sizes.get(name)
            if size is None:
                wrong.append(f"{folder.path(name)} is missing")
            elif size != file.bytes:
                state = "truncated" if size < file.bytes else "not the file that was written"
                wrong.append(
                    f"{folder.path(name)} has {size:,} bytes, but {MANIFEST} says "
                    f"{file.bytes:,}: it is {state}"
                )
    return wrong


def _remedy(folder: Folder) -> str:
    return f"Copy it again, or repair the set: python -m tools.verify {folder} --repair true"


def _reselect(folder: Folder) -> str:
    return f"Remove the subset {folder} and select it again: python -m tools.select"


def _without_manifest(folder: Folder) -> str:
    """Say what a folder without a manifest is, and what to do."""
    names = sorted(folder.sizes())
    tars = [name for name in names if name.endswith(".tar")]
    if PLAN in names:
        return (
            f"holds {len(tars):,} shards but no {MANIFEST}, which is written last: writing did not "
            "finish. Repeat the command that wrote it (python -m tools.shard): it goes on there"
        )
    if not names:
        return "holds no files; expected a shard set. Make one: python -m tools.shard"
    if not tars:
        return (
            f"holds no shards ({names[0]}, …) and no {MANIFEST}; expected a shard set. Give the "
            "--out folder of python -m tools.shard, or make one with it."
        )
    return (
        f"holds {len(tars):,} tar files but no {MANIFEST}: they come from elsewhere. Import them: "
        f"python -m tools.shard webdataset --root {folder} --out DIR"
    )


def from_json(value: Any, kind: Any, where: str = "") -> Any:
    """Check a JSON value against a type, dataclasses included, and build it.

    Raises:
        ValueError: What does not fit, without the name of the file.
    """
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
        if not isinstance(value, dict):
            raise ValueError(f"is damaged: {where or 'all'} is not an object")
        missing = [field.name for field in fields(kind) if field.name not in value]
        if missing:
            raise ValueError(f"lacks {', '.join(f'{where}{name}' for name in missing)}")
        hints = _hints(kind)
        return kind(**{n: from_json(value[n], hints[n], f"{where}{n}.") for n in hints})
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise ValueError(f"is damaged: {where[:-1]} is {value!r}, expected a list")
        (inner,) = get_args(kind)
        return [from_json(item, inner, f"{where[:-1]}[{i}].") for i, item in enumerate(value)]
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"is damaged: {where[:-1]} is {value!r}, expected an object")
        _, inner = get_args(kind)
        return {name: from_json(item, inner, f"{where}{name}.") for name, item in value.items()}
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"is damaged: {where[:-1]} is {value!r}, expected {kind.__name__}")
    return value


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    """Type hints of a dataclass, worked out once: 10,000 shards ask for the same."""
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]
