"""Repair a damaged shard set without touching its good samples.

damaged index    ─▶ made again from tar and table
damaged table    ─▶ made again from the tar
damaged tar      ─▶ bad samples leave the index and the table; their bytes go to quarantine/
damaged manifest ─▶ made again from plan and tables
missing tar      ─▶ only a copy helps
"""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from shards.health.recovery import files_of, index_line, rows_of_tar, segment_of
from shards.health.verification import (
    CHANGED,
    Problem,
    bad_rows,
    load_index,
    load_table,
    read_manifest,
    undecodable,
)
from shards.image import encode_jpeg, encode_png
from shards.layout import MANIFEST, PLAN, QUARANTINE, REASONS, SUBSETS, Manifest, Shard
from shards.outage import Unreachable
from shards.shard_table import (
    Quarantined,
    SampleRow,
    Seen,
    ShardTable,
    read_quarantined,
    write_table,
)
from shards.storage import Folder, Location, folder_at
from shards.tar import file_of, hash_file, index_text
from shards.writing.prepare import Preparation
from shards.writing.summary import summarise
from shards.writing.writing_plan import WritingPlan


@dataclass(frozen=True)
class Repair:
    """What was repaired, and what could not be."""

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
        root: the shard set; no subset.
        deep: also quarantine samples that have the bytes that were written, but do not decode.
        progress: called with the shards done and their total.

    Raises:
        ValueError: it is a subset or an indexed set, neither manifest nor plan can be read, or
            `deep` is asked for and the decoder does not work.
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
    if manifest.indexed:
        raise ValueError(
            f"{folder} is an index of tars that others wrote: bring these back as they were; or "
            "remove it and make it again, without what cannot be read any more: "
            f"{manifest.command or 'python -m tools.index'}"
        )
    if deep and not _decoder_works():
        raise ValueError(
            "the decoder does not read a sound image, so it cannot tell which are damaged. Is "
            "nvidia-nvimgcodec installed for this machine?"
        )
    plan_lost = PLAN not in folder.sizes() or any(problem.file == PLAN for problem in problems)
    if plan_lost:
        folder.write(PLAN, _plan(manifest).to_json().encode())
    folder.clean()
    result, shards, categories = Repair([], [], []), [], len(manifest.categories)
    for done, shard in enumerate(manifest.shards):
        if progress is not None:
            progress(done, len(manifest.shards))
        shards.append(_repair_shard(folder, shard, deep, categories, result))
    if shards != manifest.shards:
        manifest = _summed_up(folder, manifest, shards, result)
        result.unrepaired.extend(_subsets_before(folder))
    if manifest.to_json().encode() != _read(folder, MANIFEST):
        folder.write(MANIFEST, manifest.to_json().encode())
        result.rebuilt.append(MANIFEST)
    if plan_lost:
        result.rebuilt.append(PLAN)
    return result


def _summed_up(folder: Folder, manifest: Manifest, shards: list[Shard], result: Repair) -> Manifest:
    """Return the manifest of the repaired shards, and write the list of quarantined samples."""
    plan = WritingPlan.from_json(folder.read(PLAN).decode())
    try:
        summary = summarise(folder, plan)
    except ValueError:  # a shard could not be repaired: the manifest still names it
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


def _subsets_before(folder: Folder) -> list[Problem]:
    """Return a problem for each subset, as it was selected before the repair."""
    _, folders, _ = next(folder.walk())
    subsets = next(folder_at(folder.path(SUBSETS)).walk())[1] if SUBSETS in folders else []
    what = "was selected before: remove it and select it again"
    return [Problem(f"{SUBSETS}/{name}", what) for name in sorted(subsets)]


def _repair_shard(
    folder: Folder, shard: Shard, deep: bool, categories: int, result: Repair
) -> Shard:
    """Repair one shard and return its new entry; the old one if nothing had to change."""
    name = f"{shard.name}.tar"
    lines, index_problem = load_index(folder, shard, categories=categories)
    table, table_problem = load_table(folder, shard)
    try:
        with folder.open(name) as tar:
            found = hash_file(tar)
            intact = found == shard.tar
            if table is None and not intact:
                what = "and its table are both damaged, so good samples cannot be told from bad"
                result.unrepaired.append(Problem(name, f"{what}: copy one of them again"))
                return shard
            rows = table.rows if table is not None else rows_of_tar(tar, lines)
            decodes = deep or table is None
            good, bad = _sort_out(tar, rows, intact=intact, decode=decodes, categories=categories)
            sound = intact and index_problem is None and table_problem is None
            if sound and not bad:
                return shard
            quarantined = [
                _quarantine(folder, shard, tar, row, reason, result) for row, reason in bad
            ]
    except FileNotFoundError:
        result.unrepaired.append(Problem(name, "is missing: copy it again"))
        return shard
    except Unreachable:
        raise
    except (OSError, tarfile.TarError) as error:
        result.unrepaired.append(Problem(name, f"cannot be read: {error}"))
        return shard
    rows, index = [row for row, _ in good], index_text([line for _, line in good])
    seen = _seen(folder, shard, table, rows)
    seen.quarantined += quarantined
    task = table.task if table is not None else ""
    text, entry = write_table(shard.name, found, file_of(index), seen, rows, task)
    for file, data in ((f"{shard.name}.idx", index), (f"{shard.name}.jsonl", text)):
        if _read(folder, file) != data:
            folder.write(file, data)
            result.rebuilt.append(file)
    return entry


def _sort_out(
    tar: IO[bytes], rows: list[SampleRow], *, intact: bool, decode: bool, categories: int
) -> tuple[list[tuple[SampleRow, str]], list[tuple[SampleRow, str]]]:
    """Return the good rows with their lines of the index, and the bad rows with the reason."""
    changed = set() if intact else {row.key for row in bad_rows(tar, rows)}
    good, bad = [], []
    for row in rows:
        if row.key in changed:
            bad.append((row, CHANGED))
            continue
        segment = segment_of(tar, row)
        reason = undecodable(files_of(segment), categories=categories) if decode else None
        line = index_line(segment, row)
        if reason or not line:
            bad.append((row, reason or "is not where the table says"))
        else:
            good.append((row, line))
    return good, bad


def _quarantine(
    folder: Folder, shard: Shard, tar: IO[bytes], row: SampleRow, reason: str, result: Repair
) -> Quarantined:
    """Keep the bytes that are left of a sample, in a tar for it alone."""
    file = f"{QUARANTINE}/{shard.name}/damaged-{row.offset}-{row.key.replace('/', '-')}.tar"
    folder.write(file, segment_of(tar, row) + bytes(1024))
    result.quarantined.append(Problem(f"{shard.name}.tar", reason, row.key))
    return Quarantined(row.key, "damaged after writing", reason, file)


def _seen(folder: Folder, shard: Shard, table: ShardTable | None, rows: list[SampleRow]) -> Seen:
    """Return what is known of a shard's good samples and of its earlier quarantine."""
    seen = Seen()
    for row in rows:
        seen.see(row)
    if table is None:  # without it, no colours are known
        seen.quarantined = _quarantined_before(folder, shard)
    else:  # colours of removed samples stay in the averages
        seen.measured, seen.sum = table.seen.measured, table.seen.sum
        seen.sum_of_squares = table.seen.sum_of_squares
        seen.quarantined = list(table.seen.quarantined)
    return seen


def _quarantined_before(folder: Folder, shard: Shard) -> list[Quarantined]:
    """Return the samples of a shard that the writer quarantined, where its table is lost."""
    name = f"{QUARANTINE}/{REASONS}"
    try:
        listed = read_quarantined(_read(folder, name))
    except ValueError as error:
        raise ValueError(f"{folder.path(name)} {error}. Remove it.") from None
    return [one for one in listed if one.file.startswith(f"{QUARANTINE}/{shard.name}/")]


def _decoder_works() -> bool:
    """Whether certainly sound images decode."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    return not any(
        undecodable({extension: data})
        for extension, data in (("png", encode_png(pixels)), ("jpg", encode_jpeg(pixels, 90)))
    )


def _plan(manifest: Manifest) -> WritingPlan:
    """Return a plan from which the manifest can be made again if it is damaged one day."""
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
        categories=manifest.categories,
    )


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError:
        return b""
