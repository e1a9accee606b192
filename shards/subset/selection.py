"""Subsets of a shard set: new indexes and tables over the same tars; no image is copied.

    tables ─▶ classes · ids · fold · where ─▶ per_class ─▶ fraction ─▶ SET/subsets/NAME
                    [all must hold]                            └─────▶ SET/subsets/REST

The draw depends on the seed and the stable ids alone, not on how the set was shuffled or cut into
shards. With one seed, a larger draw holds a smaller one. Memory: about 40 bytes a sample.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards import durable
from shards.duplicates import count_copies
from shards.layout import (
    MANIFEST,
    PARENT,
    SUBSETS,
    Account,
    Manifest,
    Shard,
    ShardSet,
    open_shards,
)
from shards.shard_index import lines_of
from shards.shard_table import SampleRow, Seen, plain, write_table
from shards.storage import Folder, LocalFolder, folder_at
from shards.subset.criterion import Classes, Criterion, Fields, Listed, Mask
from shards.survey import rows_of
from shards.tar import file_of, index_text

LOCK = ".lock"  # in subsets/
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_UNFINISHED = re.compile(rf"\.{_NAME.pattern}\.\d+(-[0-9a-f]{{8}})?")
_BLOCK = 2**18  # samples drawn at once
Quota = Callable[[NDArray[np.integer]], NDArray[np.floating] | int]


def select(
    shard_set: ShardSet,
    name: str,
    *,
    fraction: float | None = None,
    per_class: int | None = None,
    classes: list[str] | None = None,
    fold: int | None = None,
    ids: Path | None = None,
    where: list[str] | None = None,
    seed: int = 0,
    stratified: bool = True,
    rest: str | None = None,
    command: str = "",
) -> ShardSet | tuple[ShardSet, ShardSet]:
    """Write a subset of a shard set as SET/subsets/NAME. All criteria must hold.

    Args:
        shard_set: the whole set, not a subset.
        name: of the subset: letters, digits, "_", "-", ".".
        fraction: share of the samples that fit the other criteria, above 0 and up to 1; drawn by
            the seed.
        per_class: at most this many samples of each class, drawn by the seed.
        classes: names of classes, or labels.
        fold: samples whose metadata have this number in "folds" (STL-10).
        ids: a text file with one stable id or one key a line. A number without leading zeros is an
            id; id=42 and key=42 say which is meant.
        where: FIELD=VALUE on the samples' metadata; a list fits if it has the value.
        seed: of per_class and fraction, 0 to 2**32 - 1.
        stratified: take the fraction of every class, and at least one sample of each.
        rest: name of a second subset, of what the fraction (or, without one, per_class) leaves. A
            stratified fraction leaves a sample or more of each class that has two; a single one is
            in the larger subset. per_class may leave none of a class.
        command: noted in the manifests.

    Returns:
        The subset; with `rest`, both.

    Raises:
        ValueError: a criterion is unusable, or no sample fits.
        FileExistsError: a subset of this name exists.
    """
    names = [name] if rest is None else [name, rest]
    _check(shard_set, names, fraction=fraction, per_class=per_class, seed=seed)
    criteria = _criteria(shard_set, classes, fold, ids, where)
    if not criteria and fraction is None and per_class is None:
        raise ValueError(
            "nothing says what to select; give fraction, per_class, classes, fold, ids or where."
        )

    candidates, sample_ids, labels = _candidates(shard_set, criteria)
    if not candidates.any():
        raise ValueError(f"no sample of {shard_set.root} fits all criteria together; drop one.")
    order = _draw(sample_ids, seed)
    chosen = candidates
    if per_class is not None:
        chosen = _first(order, chosen & (labels >= 0), labels, lambda _: per_class)
    if fraction is not None:
        candidates = chosen if per_class is not None else candidates
        # Labels without classes are no strata: a set of copies numbers its originals by them.
        by_class = stratified and bool(shard_set.manifest.classes)
        strata = labels if by_class else np.zeros_like(labels)

        def number(counts: NDArray[np.integer]) -> NDArray[np.floating]:
            some = np.maximum(np.rint(fraction * counts), 1)
            if rest is None or fraction == 1:
                return some
            return np.where(counts > 1, np.minimum(some, counts - 1), fraction >= 0.5)

        chosen = _first(order, chosen, strata, number)
    masks = [chosen] if rest is None else [chosen, candidates & ~chosen]
    for subset, mask in zip(names, masks, strict=True):
        if not mask.any():
            raise ValueError(f"subset {subset} would be empty; change fraction or per_class.")
    del order, sample_ids, labels
    with _beside_others(shard_set), _written(shard_set, names) as folders:
        _write(shard_set, folders, masks, seed, command)
    opened = [open_shards(_folder(shard_set, subset)) for subset in names]
    return opened[0] if rest is None else (opened[0], opened[1])


def _check(
    shard_set: ShardSet,
    names: list[str],
    *,
    fraction: float | None,
    per_class: int | None,
    seed: int,
) -> None:
    """Refuse settings that fit no set, before any file is read."""
    if shard_set.manifest.parent:
        above = shard_set.tar_folder
        whole = os.path.normpath(above.location) if isinstance(above, LocalFolder) else above
        raise ValueError(
            f"{shard_set.root} is a subset, and subsets have none. Select from {whole}, with the "
            f"criteria of both; its own: {shard_set.manifest.command or 'unknown'}"
        )
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name for a subset; expected letters, digits, _, - and ., such as "
                "train-10."
            )
        folder = _folder(shard_set, name)
        if _is_there(shard_set, folder):
            raise FileExistsError(f"{folder} already exists. Give another name, or remove it.")
    if len(set(names)) < len(names):
        raise ValueError(f"the subset and the rest are both called {names[0]}; give two names.")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}; expected more than 0 and up to 1.")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class={per_class}; expected 1 or more.")
    if per_class is not None and not shard_set.manifest.classes:
        raise ValueError(f"per_class={per_class}, but {shard_set.root} has no classes.")
    if len(names) > 1 and fraction is None and per_class is None:
        raise ValueError(f"rest={names[1]} is what a draw leaves; give fraction or per_class too.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}; expected a number from 0 to {2**32 - 1}.")


def _criteria(
    shard_set: ShardSet,
    classes: list[str] | None,
    fold: int | None,
    ids: Path | None,
    where: list[str] | None,
) -> list[Criterion]:
    criteria: list[Criterion] = []
    if classes is not None:
        criteria.append(Classes(shard_set, classes))
    if ids is not None:
        criteria.append(Listed(shard_set, ids))
    if fold is not None or where:
        criteria.append(Fields(shard_set, where or [], fold))
    return criteria


def _candidates(
    shard_set: ShardSet, criteria: list[Criterion]
) -> tuple[Mask, NDArray[np.int64], NDArray[np.int64]]:
    """Return, in the order of the tars, which samples fit all criteria, and all ids and labels."""
    samples = len(shard_set)
    fit = np.ones(samples, dtype=bool)
    ids, labels = (np.empty(samples, dtype=np.int64) for _ in range(2))
    start = 0
    for shard in shard_set.manifest.shards:
        rows, end = rows_of(shard_set, shard), start + shard.samples
        ids[start:end] = [row.id for row in rows]
        labels[start:end] = [row.label for row in rows]
        for criterion in criteria:  # the last one reads the tars, for the samples left only
            fit[start:end] = criterion(shard, rows, fit[start:end])
        start = end
    for criterion in criteria:
        criterion.finish()
    return fit, ids, labels


def _draw(ids: NDArray[np.int64], seed: int) -> NDArray[np.integer]:
    """Return all positions in an order that depends on the seed and the ids alone."""
    order = np.argsort(ids, kind="stable").astype(np.int32 if len(ids) < 2**31 else np.int64)
    # RandomState, not default_rng: its stream is promised never to change (NEP 19).
    np.random.RandomState(seed).shuffle(order)
    return order


def _first(order: NDArray[np.integer], mask: Mask, strata: NDArray[np.int64], quota: Quota) -> Mask:
    """Return the mask of the first quota(counts) samples of each stratum, in the order."""
    least = int(strata.min())
    counts = np.bincount(strata[mask] - least, minlength=int(strata.max()) - least + 1)
    quotas, taken = np.broadcast_to(quota(counts), counts.shape), np.zeros_like(counts)
    chosen = np.zeros_like(mask)
    for start in range(0, len(order), _BLOCK):
        left = order[start : start + _BLOCK]
        left = left[mask[left]]
        left = left[np.argsort(strata[left], kind="stable")]
        of = strata[left] - least
        here = np.bincount(of, minlength=len(counts))
        number_in_stratum = np.arange(len(left)) - (np.cumsum(here) - here - taken)[of]
        chosen[left[number_in_stratum < quotas[of]]] = True
        taken += here
    return chosen


def _folder(shard_set: ShardSet, name: str) -> str:
    return shard_set.folder.path(f"{SUBSETS}/{name}")


def _is_there(shard_set: ShardSet, folder: str) -> bool:
    if isinstance(shard_set.folder, LocalFolder):
        return os.path.lexists(folder)
    return MANIFEST in folder_at(folder).sizes()  # a failed attempt may have left other files


@contextlib.contextmanager
def _written(shard_set: ShardSet, names: list[str]) -> Iterator[list[Folder]]:
    """Give folders to write into; they become the subsets if no error is raised inside.

    On a disk they get their names at the end. In an object store the manifests, which are written
    last, make them subsets.
    """
    local = isinstance(shard_set.folder, LocalFolder)
    asides = [f".{name}.{os.getpid()}-{secrets.token_hex(4)}" if local else name for name in names]
    named: list[str] = []
    try:
        for aside in asides:
            shard_set.folder.remove(f"{SUBSETS}/{aside}")
        yield [folder_at(_folder(shard_set, aside)) for aside in asides]
        if local:
            for aside, name in zip(asides, names, strict=True):
                # The first one stays: no folder is renamed over one that holds files.
                os.rename(_folder(shard_set, aside), _folder(shard_set, name))
                named.append(name)
    except BaseException:
        for name in [*asides, *named]:
            with contextlib.suppress(OSError):
                shard_set.folder.remove(f"{SUBSETS}/{name}")
        raise


def _beside_others(shard_set: ShardSet) -> contextlib.AbstractContextManager[None]:
    """Be one of those who select from a set; the first removes what killed ones have left.

    In an object store there is nothing to remove: a subset of the name replaces its files.
    """
    if not isinstance(shard_set.folder, LocalFolder):
        return contextlib.nullcontext()
    subsets = Path(shard_set.folder.path(SUBSETS))
    subsets.mkdir(exist_ok=True)

    def clean() -> None:
        for left in subsets.iterdir():
            if _UNFINISHED.fullmatch(left.name) and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)

    return durable.shared(subsets / LOCK, clean=clean)


def _write(
    shard_set: ShardSet, folders: list[Folder], masks: list[Mask], seed: int, command: str
) -> None:
    """Write indexes and tables, then the manifests."""
    totals, listed = [Seen() for _ in folders], [[] for _ in folders]
    contents = [np.empty(int(mask.sum()), dtype="V16") for mask in masks]
    start = 0
    for shard in shard_set.manifest.shards:
        wanted = [np.flatnonzero(mask[start : start + shard.samples]).tolist() for mask in masks]
        start += shard.samples
        if not any(wanted):
            continue
        rows, lines = rows_of(shard_set, shard), lines_of(shard_set, shard)
        for number, (folder, here) in enumerate(zip(folders, wanted, strict=True)):
            if here:
                chosen = [rows[i] for i in here]
                at = totals[number].samples
                for i, row in enumerate(chosen, start=at):
                    contents[number][i] = np.void(bytes.fromhex(row.content))
                entry, seen = _write_shard(folder, shard, chosen, [lines[i] for i in here])
                totals[number].add(seen)
                listed[number].append(entry)
    manifests = [
        _manifest(shard_set.manifest, shards, seen, hashes, seed, command)
        for shards, seen, hashes in zip(listed, totals, contents, strict=True)
    ]
    for folder, manifest in zip(folders, manifests, strict=True):
        folder.write(MANIFEST, manifest.to_json().encode())


def _write_shard(
    folder: Folder, shard: Shard, rows: list[SampleRow], lines: list[str]
) -> tuple[Shard, Seen]:
    seen = Seen()
    for row in rows:
        seen.see(row)
    index = index_text(lines)
    text, entry = write_table(shard.name, shard.tar, file_of(index), seen, rows)
    folder.write(f"{shard.name}.idx", index)
    folder.write(f"{shard.name}.jsonl", text)
    return entry, seen


def _manifest(
    whole: Manifest,
    shards: list[Shard],
    seen: Seen,
    contents: NDArray[np.void],
    seed: int,
    command: str,
) -> Manifest:
    """Return a subset's manifest. Colours, which take decoding, are those of the whole set."""
    colours, samples = whole.statistics, seen.samples
    return replace(
        whole,
        samples=samples,
        extensions=sorted(seen.extensions),
        shards=shards,
        statistics=replace(
            seen.statistics(), mean=colours.mean, std=colours.std, images=colours.images
        ),
        account=Account(
            found=samples,
            written=samples,
            repaired=seen.repaired,
            quarantined=0,
            dropped=0,
            duplicates=count_copies(contents.view(np.uint64)[::2].copy()),
        ),
        remarks=dict(sorted(seen.remarks.items())),
        seed=seed,
        command=plain(command),
        parent=PARENT,
    )
