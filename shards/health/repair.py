"""Put a damaged shard set right without touching its good samples.

damaged index ─▶ made again from tar and table        damaged table ─▶ made again from the tar
damaged tar   ─▶ bad samples leave the index and the table; their bytes go to quarantine/
damaged manifest ─▶ made again from plan and tables   missing file  ─▶ only a copy helps
"""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO

import msgspec
import numpy as np

from shards.health.verification import (
    CHANGED,
    Problem,
    bad_rows,
    load_index,
    load_table,
    read_manifest,
    undecodable,
)
from shards.image import encode_jpeg, encode_png, read_header
from shards.layout import MANIFEST, PLAN, QUARANTINE, REASONS, SUBSETS, Manifest, Shard
from shards.shard_table import Quarantined, SampleRow, Seen, write_table
from shards.storage import Folder, Location, folder_at
from shards.tar import component, components, file_of, hash_file, index_text
from shards.writing.prepare import Preparation
from shards.writing.summary import summarise
from shards.writing.writing_plan import WritingPlan


@dataclass(frozen=True)
class Repair:
    """What was put right, and what could not be."""

    rebuilt: list[str]
    """Files made again."""
    quarantined: list[Problem]
    """Samples that left the set."""
    unrepaired: list[Problem]


def repair(
    root: Location,
    *,
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Repair:
    """Rebuild indexes, tables and manifest of a shard set, and quarantine damaged samples.

    Good samples keep their bytes and offsets in the tars; a sound set stays as it is, byte for
    byte. After an interruption the same call can be made again.

    Args:
        root: The shard set; no subset.
        deep: Also quarantine what has the bytes that were written, but does not decode.
        progress: Called with the shards done and their total.

    Raises:
        ValueError: It is a subset, neither manifest nor plan can be read, or `deep` is asked for
            and the decoder does not work.
    """
    folder = folder_at(root)
    manifest, problems = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder} cannot be repaired: {'; '.join(map(str, problems))}.")
    if manifest.parent:
        raise ValueError(
            f"{folder} is a subset: repair the set {manifest.parent} above it, then remove the "
            "subset and select it again (python -m tools.select)."
        )
    if deep and not _decoder_works():
        raise ValueError(
            "the decoder does not read a sound image, so it cannot tell which are damaged. Is "
            "nvidia-nvimgcodec installed for this machine?"
        )
    if any(problem.file == PLAN for problem in problems):
        folder.write(PLAN, _plan(manifest).to_json().encode())
    result, shards = Repair([], [], []), []
    for done, shard in enumerate(manifest.shards):
        if progress is not None:
            progress(done, len(manifest.shards))
        shards.append(_repair_shard(folder, shard, deep, result))
    if shards != manifest.shards:
        manifest = _summed_up(folder, manifest, shards, result)
        names = next(folder.walk())[1]
        subsets = next(folder_at(folder.path(SUBSETS)).walk())[1] if SUBSETS in names else []
        result.unrepaired.extend(
            Problem(f"{SUBSETS}/{name}", "was selected before: remove it and select it again")
            for name in sorted(subsets)
        )
    if manifest.to_json().encode() != _read(folder, MANIFEST):
        folder.write(MANIFEST, manifest.to_json().encode())
        result.rebuilt.append(MANIFEST)
    if any(problem.file == PLAN for problem in problems):
        result.rebuilt.append(PLAN)
    return result


def _summed_up(folder: Folder, manifest: Manifest, shards: list[Shard], result: Repair) -> Manifest:
    """Return the manifest of what is there now, and list all that is in quarantine."""
    plan = WritingPlan.from_json(folder.read(PLAN).decode())
    try:
        summary = summarise(folder, plan)
    except ValueError:  # a shard could not be repaired: the manifest goes on naming it
        samples = sum(shard.samples for shard in shards)
        gone = manifest.samples - samples
        account = replace(
            manifest.account,
            written=samples,
            quarantined=manifest.account.quarantined + gone,
        )
        return replace(manifest, shards=shards, samples=samples, account=account)
    summary.write_reasons(folder)
    if summary.quarantined:
        result.rebuilt.append(f"{QUARANTINE}/{REASONS}")
    return summary.manifest


def _repair_shard(folder: Folder, shard: Shard, deep: bool, result: Repair) -> Shard:
    """Put one shard right and return its new entry; the old one if nothing had to change."""
    name = f"{shard.name}.tar"
    lines, index_problem = load_index(folder, shard)
    table, table_problem = load_table(folder, shard)
    try:
        with folder.open(name) as tar:
            found = hash_file(tar)
            intact = found == shard.tar
            if table is None and not intact:
                what = "and its table are both damaged, so good samples cannot be told from bad"
                result.unrepaired.append(Problem(name, f"{what}: copy one of them again"))
                return shard
            rows = table.rows if table is not None else _rows(tar, lines)
            changed = [] if intact else bad_rows(tar, rows)
            bad = {row.key: CHANGED for row in changed}
            good = []
            for row in rows:
                if row.key in bad:
                    continue
                segment = _segment(tar, row)
                reason = undecodable(_files(segment)) if deep or table is None else None
                if reason:
                    bad[row.key] = reason
                else:
                    good.append((row, _index_line(segment, row)))
            sound = intact and index_problem is None and table_problem is None
            if sound and not bad:
                return shard
            quarantined = [
                _quarantine(folder, shard, tar, row, bad[row.key], result)
                for row in rows
                if row.key in bad
            ]
    except FileNotFoundError:
        result.unrepaired.append(Problem(name, "is missing: copy it again"))
        return shard
    except (OSError, tarfile.TarError) as error:
        result.unrepaired.append(Problem(name, f"cannot be read: {error}"))
        return shard
    index = index_text([line for _, line in good])
    seen = _seen([row for row, _ in good])
    if table is not None:  # colours of what is gone stay in the averages
        seen.measured, seen.sum = table.seen.measured, table.seen.sum
        seen.sum_of_squares = table.seen.sum_of_squares
        seen.quarantined = list(table.seen.quarantined)
    else:
        seen.quarantined = _quarantined_before(folder, shard)
    seen.quarantined += quarantined
    task = table.task if table is not None else ""
    rows = [row for row, _ in good]
    text, entry = write_table(shard.name, found, file_of(index), seen, rows, task)
    for file, data in ((f"{shard.name}.idx", index), (f"{shard.name}.jsonl", text)):
        if _read(folder, file) != data:
            folder.write(file, data)
            result.rebuilt.append(file)
    return entry


def _segment(tar: IO[bytes], row: SampleRow) -> bytes:
    tar.seek(row.offset)
    return tar.read(row.bytes)


def _members(segment: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(segment + bytes(1024)), mode="r:") as members:
        return members.getmembers()


def _files(segment: bytes) -> dict[str, bytes]:
    """Return the components of a sample's part of a tar by extension."""
    return {
        member.name.rpartition("/")[2].partition(".")[2]: segment[
            member.offset_data : member.offset_data + member.size
        ]
        for member in _members(segment)
    }


def _index_line(segment: bytes, row: SampleRow) -> str:
    """Return the line of the index for a sample."""
    entries = []
    for member in _members(segment):
        extension = member.name.rpartition("/")[2].partition(".")[2]
        entries.append(f"{extension} {row.offset + member.offset_data} {member.size} {member.name}")
    return " ".join(entries)


def _quarantine(
    folder: Folder, shard: Shard, tar: IO[bytes], row: SampleRow, reason: str, result: Repair
) -> Quarantined:
    """Keep what is left of a sample as a tar of its own."""
    file = f"{QUARANTINE}/{shard.name}/damaged-{row.offset}-{row.key.replace('/', '-')}.tar"
    folder.write(file, _segment(tar, row) + bytes(1024))
    result.quarantined.append(Problem(f"{shard.name}.tar", reason, row.key))
    return Quarantined(row.key, "damaged after writing", reason, file)


def _rows(tar: IO[bytes], lines: list[str] | None) -> list[SampleRow]:
    """Return the rows of an intact tar whose table is lost.

    The hash of an image as its source had it is lost with the table. The hash of
    the stored image stands in for it; it is the same unless the image was encoded again.
    """
    if lines is None:
        lines = _lines(tar)
    rows = []
    for line in lines:
        files = list(components(line))
        folder, _, base = files[0][3].rpartition("/")
        key = f"{folder}/{base.partition('.')[0]}" if folder else base.partition(".")[0]
        start = min(offset for _, offset, _, _ in files) - tarfile.BLOCKSIZE
        _, last, size, _ = max(files, key=lambda file: file[1])
        end = last + size + -size % tarfile.BLOCKSIZE
        image = next(ext for ext, *_ in files if ext in ("jpg", "png", "rgb"))
        data = component(tar, line, image) or b""
        if image == "rgb":
            shape = component(tar, line, "shape.i64") or b""
            height, width = (int.from_bytes(shape[i : i + 8], "little") for i in (0, 8))
        else:
            header = read_header(data)
            height, width = (header.height, header.width) if header else (0, 0)
        tar.seek(start)
        whole = tar.read(end - start)
        rows.append(
            SampleRow(
                key=key,
                id=_number(component(tar, line, "id.i64")),
                label=_number(component(tar, line, "y.i64")),
                image=image,
                width=width,
                height=height,
                offset=start,
                bytes=len(whole),
                crc32=zlib.crc32(whole),
                content=hashlib.blake2b(data, digest_size=16).hexdigest(),
            )
        )
    return rows


def _lines(tar: IO[bytes]) -> list[str]:
    """Return the lines of the index of an intact tar."""
    lines: dict[str, list[str]] = {}
    tar.seek(0)
    with tarfile.open(fileobj=tar, mode="r:") as members:
        for member in members:
            folder, _, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            entry = f"{extension} {member.offset_data} {member.size} {member.name}"
            lines.setdefault(f"{folder}/{stem}", []).append(entry)
    return [" ".join(entries) for entries in lines.values()]


def _seen(rows: list[SampleRow]) -> Seen:
    """Return what is known of a shard's images without their table: their sizes."""
    seen = Seen()
    for row in rows:
        seen.see(row)
    return seen


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "little", signed=True)


def _quarantined_before(folder: Folder, shard: Shard) -> list[Quarantined]:
    """Return what the writer quarantined of a shard, whose table is lost."""
    name = f"{QUARANTINE}/{REASONS}"
    try:
        listed = msgspec.json.Decoder(Quarantined).decode_lines(_read(folder, name))
    except msgspec.DecodeError as error:
        raise ValueError(f"{folder.path(name)} is damaged: {error}. Remove it.") from None
    return [one for one in listed if one.file.startswith(f"{QUARANTINE}/{shard.name}/")]


def _decoder_works() -> bool:
    """Whether what is certainly sound decodes."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    return not any(
        undecodable({extension: data})
        for extension, data in (("png", encode_png(pixels)), ("jpg", encode_jpeg(pixels, 90)))
    )


def _plan(manifest: Manifest) -> WritingPlan:
    """Return a plan that gives a manifest's facts again, should that be damaged one day."""
    how = Preparation(encoding=manifest.encoding, resize_shorter=manifest.resize_shorter or None)
    return WritingPlan(
        format=manifest.format,
        source=manifest.source,
        split=manifest.split,
        samples=manifest.account.found,
        fingerprint="",
        classes=manifest.classes,
        seed=manifest.seed,
        samples_per_shard=max(shard.samples for shard in manifest.shards),
        limit=None,
        kept=manifest.account.written + manifest.account.quarantined,
        drop_duplicates=manifest.account.dropped > 0,
        preparation=how,
        command=manifest.command,
        partners=manifest.partners,
    )


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError:
        return b""
