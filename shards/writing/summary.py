"""A shard set's manifest, made from its plan and the tables of its shards."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from shards.duplicates import count_copies
from shards.layout import (
    FORMAT,
    INDEXED_FORMAT,
    PLAN,
    QUARANTINE,
    REASONS,
    Account,
    Manifest,
    Shard,
)
from shards.shard_table import Quarantined, SampleRow, Seen, key_hash, read_table
from shards.storage import Folder
from shards.writing.writing_plan import WritingPlan


@dataclass(frozen=True)
class Summary:
    """The sum of all shards' tables."""

    manifest: Manifest
    quarantined: list[Quarantined]
    empty: list[str]
    """Names of shards without a usable sample."""

    def write_reasons(self, folder: Folder) -> None:
        """Write the list of quarantined samples, a line each; nothing if there are none."""
        if self.quarantined:
            lines = [json.dumps(asdict(one), ensure_ascii=False) for one in self.quarantined]
            folder.write(f"{QUARANTINE}/{REASONS}", "\n".join([*lines, ""]).encode())


def summarise(folder: Folder, plan: WritingPlan) -> Summary:
    """Read all tables of a folder, one after the other, and sum them up.

    Memory: 32 bytes a sample, for equal keys and equal images.

    Raises:
        ValueError: no sample was usable, two have the same key, a table is damaged or missing.
    """
    total, shards, empty = Seen(), [], []
    left = plan.samples - plan.skip
    found = min(left, plan.limit or left)
    kept = found if plan.kept is None else plan.kept
    keys, contents = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.uint64)]
    written = 0
    for shard, seen, rows in _tables(folder):
        total.add(seen)
        (shards if shard.samples else empty).append(shard)
        if written + len(rows) > found:
            raise ValueError(f"{folder} holds the tables of more than {found:,} samples.")
        keys.append(np.array([key_hash(row.key) for row in rows], dtype=np.uint64))
        hashes = bytes.fromhex("".join(row.content[:16] for row in rows))
        contents.append(np.frombuffer(hashes, dtype=np.uint64))
        written += len(rows)
    _refuse_equal_keys(folder, np.concatenate(keys))
    del keys
    if written + len(total.quarantined) != kept:
        raise ValueError(
            f"{folder} holds the tables of {written + len(total.quarantined):,} samples; expected "
            f"{kept:,}: some are missing. Copy them again."
        )
    if not written and total.quarantined:
        first = total.quarantined[0]
        raise ValueError(
            f"none of {found:,} images can be used; {first.origin} is {first.reason} "
            f"({first.detail}). See {folder.path(QUARANTINE)}."
        )
    if not written:
        raise ValueError(f"{folder} holds no tables, and {PLAN} says that no sample is to be kept.")
    account = Account(
        found=found,
        written=written,
        repaired=total.repaired,
        quarantined=len(total.quarantined),
        dropped=found - kept,
        duplicates=count_copies(np.concatenate(contents)),
    )
    manifest = _manifest(plan, shards, total, account)
    return Summary(manifest, total.quarantined, [shard.name for shard in empty])


def _manifest(plan: WritingPlan, shards: list[Shard], seen: Seen, account: Account) -> Manifest:
    how = plan.preparation
    reencoded = how.encoding == "raw" or how.encoding.startswith("jpeg")
    return Manifest(
        format=INDEXED_FORMAT if plan.indexed else FORMAT,
        source=plan.source,
        split=plan.split,
        samples=account.written,
        classes=plan.classes,
        encoding=how.encoding,
        resize_shorter=how.resize_shorter or 0,
        extensions=sorted(seen.extensions),
        orientation="pixels" if reencoded else "decoder",
        shards=shards,
        statistics=seen.statistics(),
        account=account,
        remarks=dict(sorted(seen.remarks.items())),
        seed=plan.seed,
        command=plan.command,
        parent="",
        partners=plan.partners,
        indexed=plan.indexed,
        categories=plan.categories,
    )


def _tables(folder: Folder) -> Iterator[tuple[Shard, Seen, list[SampleRow]]]:
    names = [name for name in folder.sizes() if name.endswith(".jsonl")]
    for name in sorted(names, key=lambda name: (len(name), name)):  # 100000 comes after 99999
        try:
            table = read_table(folder.read(name))
        except ValueError as error:
            raise ValueError(f"{folder.path(name)} {error}") from None
        if f"{table.shard.name}.jsonl" != name:
            raise ValueError(f"{folder.path(name)} is the table of shard {table.shard.name}")
        yield table.shard, table.seen, table.rows


def _refuse_equal_keys(folder: Folder, keys: NDArray[np.uint64]) -> None:
    """Refuse two samples of one key: readers would take them for one, or drop one."""
    keys.sort()
    repeated = set(keys[1:][keys[1:] == keys[:-1]].tolist())
    if not repeated:
        return
    seen: dict[str, int] = {}
    for _, _, rows in _tables(folder):
        for row in rows:
            if key_hash(row.key) not in repeated:
                continue
            if row.key in seen:
                raise ValueError(
                    f"samples {seen[row.key]} and {row.id} of the source have the same key "
                    f"{row.key!r}; keys must be unique. Rename one of them."
                )
            seen[row.key] = row.id
