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
from dataclasses import asdict, dataclass, replace
from typing import IO

import numpy as np

from shards.copies import count_copies
from shards.image import read_header
from shards.layout import MANIFEST, PLAN, QUARANTINE, Manifest, Shard
from shards.place import Location, Place, place
from shards.prepare import Preparation
from shards.seal import seal
from shards.table import Quarantined, Row, Seen, write_table
from shards.tar import component, components, file_of, hash_file, index_text
from shards.verify import Problem, bad_rows, load_index, load_table, read_manifest, undecodable


@dataclass(frozen=True)
class Repair:
    """What was put right, and what could not be."""

    rebuilt: list[str]
    """Files made again."""
    quarantined: list[Problem]
    """Samples that left the set."""
    unrepaired: list[Problem]


def repair(root: Location, *, progress: Callable[[int, int], None] | None = None) -> Repair:
    """Rebuild indexes, tables and manifest of a shard set, and quarantine damaged samples.

    Good samples keep their bytes and their place in the tars; a sound set stays as it is, byte for
    byte. Broken off, it can be begun again.

    Args:
        root: The shard set; no subset.
        progress: Called with the shards done and their total.

    Raises:
        ValueError: It is a subset, or neither manifest nor plan can be read.
    """
    folder = place(root)
    manifest, problems = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder} cannot be repaired: {'; '.join(map(str, problems))}.")
    if manifest.parent:
        raise ValueError(
            f"{folder} is a subset: repair the set {manifest.parent} above it, then remove the "
            "subset and select it again (python -m tools.select)."
        )
    result = Repair([], [], [])
    shards, lost = [], 0
    for done, shard in enumerate(manifest.shards):
        if progress is not None:
            progress(done, len(manifest.shards))
        kept = _repair_shard(folder, shard, result)
        shards.append(kept)
        lost += shard.samples - kept.samples
    account = replace(
        manifest.account,
        written=manifest.account.written - lost,
        quarantined=manifest.account.quarantined + lost,
    )
    repaired = replace(
        manifest,
        shards=[shard for shard in shards if shard.samples],
        samples=manifest.samples - lost,
        account=account,
    )
    if lost:
        repaired = replace(repaired, account=replace(account, duplicates=_copies(folder, repaired)))
    if repaired.to_json().encode() != _read(folder, MANIFEST):
        folder.write(MANIFEST, repaired.to_json().encode())
        result.rebuilt.append(MANIFEST)
    if any(problem.file == PLAN for problem in problems):
        folder.write(PLAN, _plan(repaired).encode())
        result.rebuilt.append(PLAN)
    return result


def _repair_shard(folder: Place, shard: Shard, result: Repair) -> Shard:
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
            bad = {row.key: "has other bytes than were written" for row in changed}
            good = []
            for row in rows:
                if row.key in bad:
                    continue
                segment = _segment(tar, row)
                reason = undecodable(_files(segment))
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
    index = index_text([line for _, line in good])
    seen = table.seen if table is not None else _seen([row for row, _ in good])
    if quarantined:
        gone = len(quarantined)
        seen = replace(
            seen, samples=seen.samples - gone, quarantined=[*seen.quarantined, *quarantined]
        )
    text, entry = write_table(shard.name, found, file_of(index), seen, [row for row, _ in good])
    for file, data in ((f"{shard.name}.idx", index), (f"{shard.name}.jsonl", text)):
        if _read(folder, file) != data:
            folder.write(file, data)
            result.rebuilt.append(file)
    return entry


def _segment(tar: IO[bytes], row: Row) -> bytes:
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


def _index_line(segment: bytes, row: Row) -> str:
    """Return the line of the index for a sample."""
    entries = []
    for member in _members(segment):
        extension = member.name.rpartition("/")[2].partition(".")[2]
        entries.append(f"{extension} {row.offset + member.offset_data} {member.size} {member.name}")
    return " ".join(entries)


def _quarantine(
    folder: Place, shard: Shard, tar: IO[bytes], row: Row, reason: str, result: Repair
) -> Quarantined:
    """Keep what is left of a sample as a tar of its own."""
    file = f"{QUARANTINE}/{shard.name}/damaged-{row.key.replace('/', '-')}.tar"
    folder.write(file, _segment(tar, row) + bytes(1024))
    result.quarantined.append(Problem(f"{shard.name}.tar", reason, row.key))
    return Quarantined(row.key, "damaged after writing", reason, file)


def _rows(tar: IO[bytes], lines: list[str] | None) -> list[Row]:
    """Return the rows of an intact tar whose table is lost.

    The hash of an image as its source had it is lost with the table; in its place comes that of the
    image as it is stored, which is the same unless it was encoded anew.
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
            Row(
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


def _seen(rows: list[Row]) -> Seen:
    """Return what is known of a shard's images without their table: their sizes."""
    seen = Seen()
    for row in rows:
        seen.see(row)
    return seen


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "little", signed=True)


def _copies(folder: Place, manifest: Manifest) -> int:
    """Count the images whose bytes another one before them has too."""
    contents = []
    for shard in manifest.shards:
        table, _ = load_table(folder, shard)
        if table is not None:
            contents += [bytes.fromhex(row.content) for row in table.rows]
    return count_copies(np.frombuffer(b"".join(contents), dtype="V16"))


def _plan(manifest: Manifest) -> str:
    """Return a plan that gives a manifest's facts again, should that be damaged one day."""
    how = Preparation(encoding=manifest.encoding, resize_shorter=manifest.resize_shorter or None)
    plan = {
        "format": manifest.format,
        "source": manifest.source,
        "split": manifest.split,
        "samples": manifest.account.found,
        "fingerprint": "",
        "classes": manifest.classes,
        "seed": manifest.seed,
        "samples_per_shard": max(shard.samples for shard in manifest.shards),
        "limit": None,
        "drop_duplicates": manifest.account.dropped > 0,
        "preparation": asdict(how),
        "command": manifest.command,
    }
    return seal(plan, indent=1)


def _read(folder: Place, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError:
        return b""
