"""Choose samples of a shard set as a subset, not copied: `python -m tools.select DIR NAME …`."""

import shlex
import sys
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser
from rich.console import Console

from shards.layout import ShardSet, open_shards
from shards.subset.selection import select
from shards.survey import rows_of
from training.command import run_command
from training.terminal import Section, show


def main() -> None:
    """Parse the flags, write the subset, and sum up."""
    flags = vars(_parser().parse_args())
    shard_set = open_shards(flags.pop("dir"))
    command = shlex.join(["python", "-m", "tools.select", *sys.argv[1:]])
    chosen = select(shard_set, flags.pop("name"), command=command, **flags)
    subsets = chosen if isinstance(chosen, tuple) else (chosen,)
    show([_summary(shard_set, subset) for subset in subsets], Console())


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.select",
        description="Choose samples of a shard set as a subset over the same tars, "
        "DIR/subsets/NAME. All criteria must hold.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("dir", metavar="DIR", type=str, help="Shard set, local or a URL.")
    parser.add_argument("name", metavar="NAME", type=str, help="Of the subset.")
    parser.add_argument(
        "--fraction", type=float, help="Share of what all other flags choose, such as 0.1."
    )
    parser.add_argument("--per_class", type=int, help="At most so many samples of each class.")
    parser.add_argument("--classes", nargs="+", type=str, help="Names of classes, or labels.")
    parser.add_argument("--fold", type=int, help="Samples of this fold (STL-10: 0 to 9).")
    parser.add_argument(
        "--ids",
        type=Path,
        help="Text file, one stable id or one key a line. A number without leading zeros is an id; "
        "id=42 and key=42 leave no doubt.",
    )
    parser.add_argument(
        "--where",
        nargs="+",
        type=str,
        metavar="FIELD=VALUE",
        help="Samples with these values in KEY.json, such as split=train.",
    )
    parser.add_argument(
        "--rest",
        metavar="NAME2",
        type=str,
        help="Write what --fraction (or, without it, --per_class) leaves as a second subset.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Of --fraction and --per_class.")
    parser.add_argument(
        "--stratified",
        type=bool,
        default=True,
        help="Take the fraction of each class, at least one sample of each.",
    )
    return parser


def _summary(whole: ShardSet, subset: ShardSet) -> Section:
    manifest = subset.manifest
    counts = np.zeros(len(manifest.classes), dtype=np.int64)
    for shard in manifest.shards:
        labels = np.array([row.label for row in rows_of(subset, shard)])
        counts += np.bincount(labels[labels >= 0], minlength=len(counts))
    present = counts[counts > 0]
    classes = "none"
    if len(present):
        least, most = int(present.min()), int(present.max())
        each = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        classes = f"{len(present):,} of {len(counts):,}, {each} samples each"
    return Section(
        f"subset {subset.root.rpartition('/')[2]}",
        [
            ("samples", f"{len(subset):,} of {len(whole):,} ({len(subset) / len(whole):.2%})"),
            ("classes", classes),
            ("shards", f"parts of {len(manifest.shards):,} of {len(whole.manifest.shards):,} tars"),
            ("duplicates", f"{manifest.account.duplicates:,}"),
            ("next", f"--shards {shlex.quote(subset.root)}"),
        ],
    )


if __name__ == "__main__":
    run_command(main)
