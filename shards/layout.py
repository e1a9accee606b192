"""The files of a shard set: their names, the manifest, and how to open a set.

A shard set is a folder, local or in an object store:

    00000.tar  00000.idx  00000.jsonl  00001.tar  …  manifest.json  plan.json  [quarantine/…]

A tar holds samples: the image as KEY.jpg, KEY.png or KEY.rgb (bare pixels, with KEY.shape.i64:
height, width, 3), KEY.y.i64 (label), KEY.id.i64 (stable id) and KEY.json. Numbers are 8 bytes,
little endian. In a pair set (see `shards.source.pairs`) each sample also carries another image, its
partner: KEY.partner.jpg, .png, or .rgb with KEY.partner.shape.i64. The .idx beside a tar is DALI's
text index, version 1.2; the .jsonl is the shard's table (see `shards.shard_table`). The manifest is
written last: its presence means that all else is complete.

In a multi-label set, whose manifest names categories, each sample carries KEY.y.u8 too, a byte
for each category: 0 absent, 1 present, 2 not counted. That is an object that its annotator called
difficult, or all of an image without annotations. The label, KEY.y.i64, is -1.

Of an indexed set (see `shards.writing.indexing`) others wrote the tars, and they stay where they
are: NNNNN.tar is a link to one. Ids and labels are in the index then (see `shards.named_numbers`).
Its JPEGs and PNGs may have any names in the tar; the index calls them jpg and png.

A subset (see `shards.subset.selection`) is a shard set in a folder SET/subsets/NAME. It has indexes
and tables there, and uses the tars of the set two folders up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Annotated

from msgspec import Meta

from shards.sealed_json import seal, unseal
from shards.storage import Folder, Location, folder_at, is_remote
from shards.typed_json import from_values, to_values

FORMAT = 2
INDEXED_FORMAT = 3  # of indexed sets: versions that look for ids in tars refuse them
MANIFEST = "manifest.json"
PLAN = "plan.json"
QUARANTINE = "quarantine"
REASONS = "reasons.jsonl"  # in quarantine/, a line a quarantined sample
SUBSETS = "subsets"
PARTNER = "partner."  # begins the extensions of a sample's second image
CATEGORIES = "y.u8"  # the extension of what says which categories are in an image
ABSENT, PRESENT, UNKNOWN = 0, 1, 2  # its values
PARENT = "../.."  # from a subset to its set, the only way out of a shard set's folder
INDEX_VERSION = "v1.2"
_LEAST = 512  # bytes of a sample in a tar: one header

# Types that reading checks and the schema states. `extra_json_schema` is for the schema alone:
# `Manifest.from_json` checks these fields, with other messages.
Count = Annotated[int, Meta(ge=0)]
Channels = Annotated[list[float], Meta(min_length=3, max_length=3)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Digits = Annotated[str, Meta(extra_json_schema={"pattern": "^[0-9]+$"})]
Format = Annotated[int, Meta(extra_json_schema={"enum": [FORMAT, INDEXED_FORMAT]})]
Parent = Annotated[str, Meta(extra_json_schema={"enum": ["", PARENT]})]
Encoding = Annotated[str, Meta(pattern=r"^(original|png|raw|jpeg:([1-9][0-9]?|100))$")]
Extension = Annotated[str, Meta(pattern="^(jpg|png|rgb)$")]
Orientation = Annotated[str, Meta(pattern="^(decoder|pixels)$")]


@dataclass(frozen=True)
class File:
    """A file of a shard as it was written."""

    bytes: Count
    """Size of the file."""
    sha256: Sha256
    """Of the file, in hexadecimal."""


@dataclass(frozen=True)
class Shard:
    """One tar file with its index and table."""

    name: Digits
    """File name without extension, such as "00000"."""
    samples: Count
    """Samples in its index."""
    tar: File
    index: File
    table: File


@dataclass(frozen=True)
class Statistics:
    """Sizes of all images, colours of some."""

    median_shorter_side: float
    """In pixels, as shown."""
    min_width: Count
    """In pixels, as shown."""
    max_width: Count
    """In pixels, as shown."""
    min_height: Count
    """In pixels, as shown."""
    max_height: Count
    """In pixels, as shown."""
    mean: Channels
    """Per channel, RGB, in 0..1; every image has the same weight, whatever its size."""
    std: Channels
    """Per channel, RGB, in 0..1, over the pixels of the data set."""
    images: Count
    """How many images, evenly spread over the shards, gave mean and std."""


@dataclass(frozen=True)
class Account:
    """Where every sample of the source went: found = written + quarantined + dropped."""

    found: Count
    """Samples that were to be written: all of the source, or the limit."""
    written: Count
    """Samples in the tars and indexes."""
    repaired: Count
    """Of those written: not the source's own bytes under their own extension (see remarks)."""
    quarantined: Count
    """Unusable; their bytes and reasons are in quarantine/."""
    dropped: Count
    """Copies of another sample that were left out on request."""
    duplicates: Count
    """Of those written: images whose bytes an earlier sample has too."""


@dataclass(frozen=True)
class Manifest:
    """All that is known about a shard set without reading its tars.

    It is written last: its presence means that the set is complete.
    """

    format: Format
    """Version of this layout."""
    source: str
    """Sub-command of tools.shard that wrote it."""
    split: str
    """Part of the source."""
    samples: Count
    """In all shards."""
    classes: list[str]
    """Names by label; empty if nothing is labelled."""
    encoding: Encoding
    """How images are stored: original, png, raw or jpeg:QUALITY."""
    resize_shorter: Count
    """Largest shorter side, to which larger images were reduced; 0 if none were."""
    extensions: list[Extension]
    """Image extensions that occur, sorted: jpg and png, or rgb."""
    orientation: Orientation
    """Who turns images upright by EXIF: "decoder" (DALI does), or "pixels" (they were turned)."""
    shards: list[Shard]
    """In the order that readers take."""
    statistics: Statistics
    account: Account
    remarks: dict[str, Count]
    """Repairs, and what readers should know, with the number of samples."""
    seed: Count
    """Of the shuffle."""
    command: str
    """The command that wrote it."""
    parent: Parent
    """Where the tars are: "" for this folder, "../.." for a subset."""
    partners: bool = False
    """Whether each sample carries a second image, from which half of its views are made."""
    indexed: bool = False
    """Whether others wrote the tars, to which NNNNN.tar are links; ids and labels are in the index
    then."""
    categories: tuple[str, ...] = ()
    """Of a multi-label set: what an image may show, in the order of the bytes of KEY.y.u8.
    Such a set has no classes."""

    @property
    def raw(self) -> bool:
        """Whether images are bare pixels, which need no decoder."""
        return self.extensions == ["rgb"]

    def digest(self) -> str:
        """Return what tells this manifest from every other, and its shards with it."""
        return sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of manifest.json."""
        return seal(to_values(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read the text of manifest.json.

        Raises:
            ValueError: it is damaged; the message does not name the file.
        """
        values = unseal(text)
        if values.get("format") not in (FORMAT, INDEXED_FORMAT):
            raise ValueError(
                f"has format {values.get('format')!r}, but this version of viewrank reads {FORMAT} "
                f"and {INDEXED_FORMAT}"
            )
        manifest = from_values(values, Manifest)
        if manifest.indexed != (manifest.format == INDEXED_FORMAT):
            raise ValueError(
                f"contradicts itself: format {manifest.format} and indexed {manifest.indexed}"
            )
        if sum(shard.samples for shard in manifest.shards) != manifest.samples:
            raise ValueError("contradicts itself: samples is not the sum over its shards")
        if not manifest.samples:
            raise ValueError("lists no samples; expected a shard or more")
        if manifest.categories and (manifest.classes or manifest.indexed):
            what = "classes" if manifest.classes else "indexed"
            raise ValueError(f"contradicts itself: it has categories and is or has {what}")
        if manifest.parent not in ("", PARENT):
            raise ValueError(f"has its tars in {manifest.parent!r}; expected '' or {PARENT!r}")
        for shard in manifest.shards:
            # Never a way out of the folder.
            if not (shard.name.isascii() and shard.name.isdecimal()):
                raise ValueError(f"names a shard {shard.name!r}; expected digits only")
            if shard.samples * _LEAST > shard.tar.bytes:
                raise ValueError(
                    f"lists {shard.samples:,} samples in the {shard.tar.bytes:,} bytes of "
                    f"{shard.name}.tar; a sample takes {_LEAST} or more"
                )
        return manifest


@dataclass(frozen=True)
class ShardSet:
    """A complete shard set; `open_shards` makes it."""

    folder: Folder
    manifest: Manifest
    replaced: Mapping[str, str] = field(default_factory=dict)
    """{shard: path of the index to use instead}; see `shards.health.leave_out`."""

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
        named = path.parts[-2:-1] == (SUBSETS,)  # else the set was opened as "." or through a link
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

    def remedy(self, path: str) -> str:
        """Return what to do about a damaged file of the set, given its full path."""
        # A subset's own files are not repaired: the subset is selected again.
        if self.manifest.parent and path.startswith(f"{self.root}/"):
            return f"Remove the subset {self.root} and select it again: python -m tools.select"
        if self.manifest.indexed:
            return (
                f"The tars of {self.tar_folder} are links to those of others: bring these back as "
                "they were, or remove that folder and make it again: python -m tools.index"
            )
        return _remedy(self.tar_folder)


def open_shards(root: Location) -> ShardSet:
    """Open a shard set; refuse one that is incomplete or whose files do not fit together.

    Compares names and sizes, and reads no tar: 10,000 shards take less than a second.

    Args:
        root: the folder that `tools.shard` wrote, local or a URL such as s3://bucket/folder.

    Raises:
        FileNotFoundError: the folder, its manifest or one of its files is missing.
        ValueError: a file is damaged. Both messages say what was found and what to do.
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
        raise kind(f"{problem}. {shard_set.remedy(problem)}")
    return shard_set


def wrong_sizes(shard_set: ShardSet) -> list[str]:
    """Return a line for each file that is missing or differs in size from the manifest."""
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


def _without_manifest(folder: Folder) -> str:
    """Say what is in a folder without a manifest, and what to do."""
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
        f"holds {len(tars):,} tar files but no {MANIFEST}: they come from elsewhere. Index them "
        f"where they are: python -m tools.index {folder}; or import them, shuffled: python -m "
        f"tools.shard webdataset --root {folder} --out DIR"
    )
