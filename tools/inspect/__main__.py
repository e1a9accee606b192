"""Show what is in a shard set or subset, as a report and a contact sheet.

    python -m tools.inspect data/mine --out sheet.png

The report comes from manifest, tables and indexes; only the images of the contact sheet are read.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from shards import durable
from shards.duplicates import groups_of_copies
from shards.layout import MANIFEST, QUARANTINE, REASONS, SUBSETS, Manifest, ShardSet, open_shards
from shards.one_line import one_line
from shards.shard_table import SampleRow, read_quarantined
from shards.storage import LocalFolder, folder_at
from shards.survey import Survey, rows_at, survey
from tools.inspect.sheet import contact_sheet, pictures
from training.command_line import run_function
from training.terminal import Section, aspect_bins, bar, bars, bins_of, show

_CLASSES = 25  # more are shown by the largest and smallest alone
_ENDS = 10
_GROUPS = 3  # of copies
_KEYS = 4  # of a group
_CHECKED = 100_000  # groups of copies whose labels are compared


def main(dir: str, *, out: Path | None = None, samples: int = 48, seed: int = 0) -> None:
    """Show what is in a shard set or subset; with --out, draw a contact sheet too.

    Args:
        dir: shard set, a folder or a URL.
        out: PNG to write, with images and histograms.
        samples: number of images on it, drawn at random.
        seed: seed of the draw.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}; expected 1 or more.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}; expected a number from 0 to {2**32 - 1}.")
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"out={out}; expected a name that ends with .png.")
    durable.check_writable(out=out)
    shard_set = open_shards(dir)
    found = survey(shard_set)
    show(list(report(shard_set, found)), Console())
    if out is not None:
        shown = pictures(shard_set, samples, seed)
        with durable.replaced(out, suffix=str(os.getpid())) as aside:
            contact_sheet(shard_set, found, shown).save(aside, format="PNG")
        print(f"\ncontact sheet of {len(shown)} samples: {one_line(str(out))}")
    elif sys.stdout.isatty():
        print("see some of them: --out FILE.png")


def report(shard_set: ShardSet, found: Survey) -> Iterator[Section]:
    """Yield the sections of the report."""
    manifest = shard_set.manifest
    yield Section(shard_set.root, _overview(shard_set, found))
    if manifest.remarks:
        rows = sorted(manifest.remarks.items(), key=lambda item: -item[1])
        yield Section("remarks", [(remark, f"{count:,}") for remark, count in rows])
    if manifest.account.quarantined:
        yield Section(*_quarantine(shard_set))
    if manifest.classes:
        yield Section(*_classes(manifest, found))
    yield Section("shorter side, pixels", bars(bins_of(np.minimum(found.widths, found.heights))))
    yield Section("width : height, nearest", bars(aspect_bins(found.widths, found.heights)))
    yield Section("bytes an image", bars(bins_of(found.image_bytes)))
    yield from _copies(shard_set, found)
    if rows := list(_subsets(shard_set)):
        yield Section("subsets", rows)


def _overview(shard_set: ShardSet, found: Survey) -> list[tuple[str, ...]]:
    manifest = shard_set.manifest
    account, statistics = manifest.account, manifest.statistics
    counts = sorted({shard.samples for shard in manifest.shards})
    tars = sum(shard.tar.bytes for shard in manifest.shards)
    size = f"{tars / 1e6:,.1f} MB" + (f" in {_above(shard_set)}" if manifest.parent else "")
    least, median, most = np.percentile(found.image_bytes, [0, 50, 100])
    extensions = ", ".join(f"{name} {count:,}" for name, count in sorted(found.extensions.items()))
    reduced = f", shorter side at most {manifest.resize_shorter}" * bool(manifest.resize_shorter)
    upright = {"decoder": "turned upright by the decoder (EXIF)", "pixels": "pixels are upright"}
    whole = " of the whole set" if manifest.parent else ""
    rows = {
        "source": f"{manifest.source} {manifest.split}".strip(),
        "subset of": _above(shard_set) if manifest.parent else "",
        "samples": f"{manifest.samples:,}",
        "shards": f"{len(manifest.shards):,} of {_span(counts[0], counts[-1])} samples, {size}",
        "encoding": f"{manifest.encoding}{reduced}: {extensions}",
        "partners": "a second image in each sample: a pair set" if manifest.partners else "",
        "categories": _categories(manifest),
        "orientation": upright.get(manifest.orientation, manifest.orientation),
        "width": f"{_span(statistics.min_width, statistics.max_width)} px",
        "height": f"{_span(statistics.min_height, statistics.max_height)} px",
        "shorter side": f"median {statistics.median_shorter_side:,g} px",
        "bytes an image": f"min {least:,.0f}, median {median:,.0f}, "
        f"p99 {np.percentile(found.image_bytes, 99):,.0f}, max {most:,.0f}",
        "mean, std": f"{_channels(statistics.mean)}, {_channels(statistics.std)} "
        f"(RGB, 0 to 1, of {statistics.images:,} images{whole})",
        "account": f"{account.found:,} found = {account.written:,} written + "
        f"{account.quarantined:,} quarantined + {account.dropped:,} dropped",
        "of the written": f"{account.repaired:,} repaired, {account.duplicates:,} duplicates",
        "written by": manifest.command,
    }
    return [(label, text) for label, text in rows.items() if text]


def _categories(manifest: Manifest) -> str:
    names = manifest.categories
    return f"{len(names):,}, several in an image: {', '.join(names)}" if names else ""


def _quarantine(shard_set: ShardSet) -> tuple[str, list[tuple[str, ...]]]:
    """Count the reasons, with the first sample of each."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    name = f"{QUARANTINE}/{REASONS}"
    try:
        listed = read_quarantined(shard_set.folder.read(name))
    except FileNotFoundError:
        return "quarantine", [(f"{shard_set.folder.path(name)} is missing",)]
    except ValueError as error:
        return "quarantine", [(f"{shard_set.folder.path(name)} {error}",)]
    for each in listed:
        counts[each.reason] += 1
        first.setdefault(each.reason, f"{each.origin}: {each.detail}")
    rows = [(reason, f"{count:,}", first[reason]) for reason, count in counts.most_common()]
    return f"quarantine, {shard_set.folder.path(QUARANTINE)}", rows


def _classes(manifest: Manifest, found: Survey) -> tuple[str, list[tuple[str, ...]]]:
    counts = found.class_counts(len(manifest.classes))
    present, unlabelled = counts[counts > 0], int((found.labels < 0).sum())
    title = f"classes: {len(present):,} of {len(counts):,}"
    if len(present):
        ratio = present.max() / present.min()
        title += f", largest : smallest = {ratio:,.1f}"
    title += f", {unlabelled:,} unlabelled" if unlabelled else ""
    order = np.argsort(-counts, kind="stable").tolist()
    if len(order) <= _CLASSES:
        shown: list[int | None] = list(range(len(counts)))
    else:
        shown = [*order[:_ENDS], None, *order[-_ENDS:]]
        title += f", the {_ENDS} largest and smallest"
    largest, wide = int(counts.max()), len(f"{counts.max():,}")
    rows = []
    for label in shown:
        if label is None:
            rows.append(("…", "", "", ""))
        else:
            count, name = int(counts[label]), manifest.classes[label]
            rows.append((f"{label}", name, f"{count:{wide},}", bar(count, largest)))
    return title, rows


def _copies(shard_set: ShardSet, found: Survey) -> Iterator[Section]:
    """Yield what is there more than once; the same image under two labels is called out."""
    groups = groups_of_copies(found.contents)
    if not groups:
        return
    images = sum(map(len, groups))
    largest = groups[:_GROUPS]
    at_odds = [
        group for group in groups[:_CHECKED] if len(np.unique(found.labels[group])) > 1
    ]  # an image that is labelled once and unlabelled once counts too
    positions = [group[:_KEYS] for group in [*largest, *at_odds[:_GROUPS]]]
    rows = rows_at(shard_set, np.unique(np.concatenate(positions)))
    yield Section(
        f"duplicates: {len(groups):,} images occur more than once, {images:,} times in all",
        [(f"{len(group):,} times", _members(shard_set, group, rows)) for group in largest],
    )
    if at_odds:
        yield Section(
            f"WARNING: {len(at_odds):,} of them have DIFFERENT LABELS",
            [
                (f"{len(group):,} times", _members(shard_set, group, rows))
                for group in at_odds[:_GROUPS]
            ],
        )


def _members(shard_set: ShardSet, group: NDArray[np.integer], rows: dict[int, SampleRow]) -> str:
    classes = shard_set.manifest.classes
    keys = []
    for position in group[:_KEYS].tolist():
        row = rows[position]
        named = f" ({classes[row.label]})" if 0 <= row.label < len(classes) else ""
        keys.append(f"{row.key}{named}")
    more = f", and {len(group) - _KEYS:,} more" if len(group) > _KEYS else ""
    return ", ".join(keys) + more


def _subsets(shard_set: ShardSet) -> Iterator[tuple[str, ...]]:
    """Yield name, samples and command of the subsets that can be opened."""
    folder = folder_at(shard_set.folder.path(SUBSETS))
    if shard_set.manifest.parent or not folder.exists():
        return
    _, names, _ = next(folder.walk(), ("", [], []))
    for name in sorted(names):
        try:
            manifest = Manifest.from_json(folder.read(f"{name}/{MANIFEST}").decode())
        except FileNotFoundError:
            continue
        except ValueError as error:
            yield name, "", f"{MANIFEST} {error}"
        else:
            share = manifest.samples / len(shard_set)
            yield name, f"{manifest.samples:,} ({share:.1%})", manifest.command


def _above(shard_set: ShardSet) -> str:
    above = shard_set.tar_folder
    return os.path.normpath(above.location) if isinstance(above, LocalFolder) else above.location


def _span(smallest: int, largest: int) -> str:
    return f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"


def _channels(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    run_function(main)
