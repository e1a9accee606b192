"""Find images that mean the same, and write them as pairs: `python -m tools.mine_pairs`.

The offline half of SPP (see `evaluation.neighbours`): every image is embedded once, un-augmented,
gets one of its most similar others as a partner, and is stored with it. Training on the pair set
cuts views from image and partner in turn, under any method.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from evaluation.features import Features, embed
from evaluation.neighbours import (
    Neighbours,
    choose_partners,
    lower_for,
    nearest_others,
    pair_purity,
    random_purity,
)
from pipeline.images import Images
from shards.engine import LocalWorkers
from shards.layout import ShardSet, open_shards
from shards.source.pairs import Pairs
from shards.storage import is_remote
from shards.writing.output import refuse_occupied
from shards.writing.prepare import Preparation
from shards.writing.write import SAMPLES_PER_SHARD, write
from tools.inspect.sheet import pair_sheet, pictures_at
from tools.shard import progress_shown
from training.command import run_command
from training.terminal import Section, show
from training.trained import Trained, open_encoder

KEPT = 0.5  # share of the images that get a partner, unless said otherwise
SHOWN = 24  # pairs on the sheet
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the table of other thresholds


def main() -> None:
    """Parse the flags, mine, write the pair set and its sheet, and sum up."""
    options = _parser().parse_args()
    if options.keep is not None and options.lower is not None:
        raise ValueError(
            f"keep={options.keep} and lower={options.lower} both say which pairs are similar "
            "enough; give one of them."
        )
    refuse_occupied(options.out)  # before mining takes its time
    shard_set = open_shards(options.shards)
    trained = open_encoder(options.encoder, config=options.config, device=options.device)
    begin = time.monotonic()
    features = _features(shard_set, trained)
    embedded = time.monotonic()
    neighbours = nearest_others(features.h_NF, count=options.candidates, upper=options.upper)
    lower = options.lower
    if lower is None:
        lower = lower_for(neighbours, KEPT if options.keep is None else options.keep)
    best = options.pick == "best"
    partner_N, score_N = choose_partners(neighbours.at_least(lower), best=best, seed=options.seed)
    mined = time.monotonic()

    partners, scores = partner_N.cpu().numpy(), score_N.cpu().numpy()
    source = Pairs(shard_set=shard_set, partners=partners, scores=scores)
    if not np.array_equal(source.ids, features.id_N.cpu().numpy()):
        raise ValueError(f"{shard_set.root} changed while it was read; mine again.")
    pair_set = _write(shard_set, source, options)
    # Beside a folder on a disk; that of a store, here.
    out = Path(options.out).name if is_remote(options.out) else options.out.rstrip("/")
    sheet = options.sheet or Path(f"{out}.png")
    _draw(shard_set, partners, scores, options.seed, sheet)

    seconds = {
        "embedding": embedded - begin,
        "search": mined - embedded,
        "writing": time.monotonic() - mined,
    }
    facts = {
        "images": f"{len(shard_set):,} of {shard_set.root}",
        "encoder": trained.name,
        "time": ", ".join(f"{name} {taken:,.1f} s" for name, taken in seconds.items()),
        "where": pair_set.root,
        "sheet": str(sheet),
        "next": f"python -m tools.preview {shlex.quote(pair_set.root)}",
    }
    sections = [
        Section("pairs", _pairs(partner_N, score_N, features.label_N, lower, options)),
        Section("other thresholds", _other_shares(neighbours, features.label_N, options)),
        Section("pair set", list(facts.items())),
    ]
    show(sections, Console())


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.mine_pairs",
        description="Give each image of a shard set a similar other one as its partner (semantic "
        "positive pairs), and write them as a pair set.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--shards", type=str, required=True, help="Shard set, or a subset of one; or a URL.")
    add(
        "--encoder",
        type=Path,
        required=True,
        help="Who judges what is similar: a run's folder, a checkpoint's, or encoder.safetensors.",
    )
    add(
        "--config",
        type=Path | None,
        help="Recipe that encoder.safetensors was trained with, if no config.yaml is beside it.",
    )
    add("--out", type=str, required=True, help="Folder to make, or a URL such as s3://…")
    add(
        "--keep",
        type=float | None,
        help="Share of the images that get a partner, the most similar ones; sets the lower "
        f"threshold. Default: {KEPT:g}, unless --lower is given.",
    )
    add(
        "--lower",
        type=float | None,
        help="Least cosine of a pair. What it means depends on the encoder; --keep does not.",
    )
    add(
        "--upper",
        type=float,
        default=0.999,
        help="Largest cosine of a pair: what is more similar is a copy, and teaches nothing.",
    )
    add(
        "--candidates",
        type=int,
        default=5,
        help="K: a partner is one of so many most similar images within the thresholds.",
    )
    add(
        "--pick",
        type=Literal["uniform", "best"],
        default="uniform",
        help="Which of the candidates: any, each as probable; or the most similar.",
    )
    add("--seed", type=int, default=0, help="Of the choice, and of the order of the pair set.")
    add("--sheet", type=Path | None, help="PNG of some pairs; default: OUT.png.")
    add("--device", type=Literal["auto", "cpu", "gpu"], default="auto", help="For the encoder.")
    add(
        "--samples_per_shard",
        type=int,
        default=SAMPLES_PER_SHARD,
        help="Upper bound; the counts of the shards differ by at most one.",
    )
    add("--workers", type=int, help="Processes that write; by default, one a core.")
    return parser


def _features(shard_set: ShardSet, trained: Trained) -> Features:
    """Return the features of all images as they are, in the order of the tars."""
    images = Images(shard_set, size=trained.size, device=trained.device, tuning=trained.tuning)
    return embed(trained.encoder, images, autocast=trained.autocast)


def _write(shard_set: ShardSet, source: Pairs, options: Namespace) -> ShardSet:
    workers = options.workers if options.workers is not None else len(os.sched_getaffinity(0))
    try:
        with progress_shown(Console(stderr=True)) as progress:
            return write(
                source,
                options.out,
                seed=options.seed,
                samples_per_shard=options.samples_per_shard,
                # JPEG and PNG files keep their bytes; the limit on pixels was the first writing's.
                preparation=Preparation(
                    encoding="raw" if shard_set.manifest.raw else "original", max_megapixels=1e6
                ),
                engine=LocalWorkers(workers),
                command=shlex.join(["python", "-m", "tools.mine_pairs", *sys.argv[1:]]),
                progress=progress,
            )
    except KeyboardInterrupt:
        out = options.out.rstrip("/")
        place = out if is_remote(out) else f"{out}.partial"
        sys.stderr.write(f"what is complete stays in {place}; the same command goes on there\n")
        raise


def _draw(
    shard_set: ShardSet,
    partners: NDArray[np.integer],
    scores: NDArray[np.floating],
    seed: int,
    path: Path,
) -> None:
    """Draw some pairs, at random."""
    paired = np.flatnonzero(partners != np.arange(len(partners)))
    shown = np.random.RandomState(seed).permutation(paired)[:SHOWN]
    pictures = pictures_at(shard_set, np.concatenate([shown, partners[shown]]))
    pairs = [
        (pictures[i], pictures[int(partners[i])], f"cosine {scores[i]:.3f}") for i in shown.tolist()
    ]
    title = f"{len(shown)} of {len(paired):,} pairs of {shard_set.root}"
    pair_sheet(title, pairs).save(path)


def _pairs(
    partner_N: Tensor, score_N: Tensor, label_N: Tensor, lower: float, options: Namespace
) -> list[tuple[str, ...]]:
    """Return what is known of the pairs."""
    paired_N = partner_N != torch.arange(len(partner_N), device=partner_N.device)
    pairs = int(paired_N.sum())
    rows = [
        ("with a partner", f"{pairs:,} of {len(paired_N):,} images ({pairs / len(paired_N):.1%})"),
        ("thresholds", f"cosine {lower:.4f} to {options.upper:g}"),
        ("partner", f"{options.pick} of up to {options.candidates} candidates"),
    ]
    if pairs:
        values = np.quantile(score_N[paired_N].cpu().numpy(), [0, 0.05, 0.5, 0.95, 1])
        names = ("least", "5 %", "median", "95 %", "most")
        cosines = ", ".join(f"{n} {v:.4f}" for n, v in zip(names, values, strict=True))
        rows.append(("cosines", cosines))
    purity, chance = pair_purity(partner_N, label_N), random_purity(label_N)
    if purity is not None and chance is not None:
        rows.append(("purity", f"{purity:.1%} of the pairs have equal labels; random {chance:.1%}"))
    return rows


def _other_shares(
    neighbours: Neighbours, label_N: Tensor, options: Namespace
) -> list[tuple[str, ...]]:
    """Return what other thresholds would give, purity only where there are labels."""
    rows: list[tuple[str, ...]] = [
        ("--keep", "--lower", "purity of the best", f"of any of {options.candidates}")
    ]
    for share in SHARES:
        lower = lower_for(neighbours, share)
        kept = neighbours.at_least(lower)
        chosen = [choose_partners(kept, best=best, seed=options.seed)[0] for best in (True, False)]
        purities = [pair_purity(partner_N, label_N) for partner_N in chosen]
        cells = ["" if purity is None else f"{purity:.1%}" for purity in purities]
        rows.append((f"{share:g}", f"{lower:.4f}", *cells))
    return rows


if __name__ == "__main__":
    run_command(main)
