"""Find images that mean the same, and write them as pairs to train on.

    python -m tools.mine_pairs --shards data/mine --encoder runs/miner --out data/mine-pairs

The offline half of SPP (see `evaluation.neighbours`): every image is embedded once, un-augmented,
gets one of its most similar others as a partner, and is stored with it. Training on the pair set
cuts views from image and partner in turn, under any method. With --added true the pairs stand
beside all images by themselves, as in the paper.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from shards import durable
from shards.engine import LocalWorkers
from shards.layout import ShardSet, open_shards
from shards.source.pairs import Pairs
from shards.storage import is_remote
from shards.writing.output import refuse_occupied
from shards.writing.prepare import Preparation
from shards.writing.write import SAMPLES_PER_SHARD, write
from tools.inspect.sheet import pair_sheet, pictures_at
from tools.shard import kept_on_interrupt, progress_shown
from training.command_line import Dotted, program, run_function
from training.terminal import Section, show

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.features import Features
    from evaluation.neighbours import Neighbours
    from training.trained import Trained

KEPT = 0.5  # share of the images that get a partner, unless said otherwise
SHOWN = 24  # pairs on the sheet
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the table of other thresholds
Pick = Literal["uniform", "best"]


def main(
    *,
    shards: str,
    encoder: Dotted,
    out: str,
    keep: float | None = None,
    lower: float | None = None,
    upper: float = 0.999,
    candidates: int = 5,
    pick: Pick = "uniform",
    added: bool = False,
    seed: int = 0,
    sheet: Path | None = None,
    size: int | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    samples_per_shard: int = SAMPLES_PER_SHARD,
    workers: int | None = None,
) -> None:
    """Give each image of a shard set a similar other one as its partner, and write a pair set.

    Such pairs are called semantic positive pairs.

    Args:
        shards: shard set, or a subset of one; a folder or a URL.
        encoder: network that judges what is similar: a run's folder, a checkpoint's, or
            encoder.safetensors; or a class with its settings, such as Timm --encoder.name
            vit_small_patch16_224, and --encoder.weights, a file, a run or timm:NAME.
        out: folder to make, or a URL such as s3://…
        keep: share of the images that get a partner, the most similar ones; it sets the lower
            threshold. Default: 0.5, unless --lower is given.
        lower: smallest cosine of a pair. Its meaning depends on the encoder; that of --keep does
            not.
        upper: largest cosine of a pair: a more similar image is a copy, and teaches nothing.
        candidates: K; a partner is one of the K most similar images within the thresholds.
        pick: which of the candidates: any of them, each with the same probability, or the most
            similar one.
        added: write pairs as further samples beside every image by itself, as the paper has them;
            by default, half of the views of an image with a partner are the partner's.
        seed: seed of the choice, and of the order of the pair set.
        sheet: PNG of some pairs; default: OUT.png.
        size: height and width of the images, in pixels; by default, what the encoder was trained
            on, or is published for.
        device: where the encoder computes; auto is the GPU if there is one.
        samples_per_shard: upper bound; the counts of the shards differ by at most one.
        workers: number of processes that write; by default, one for each core.
    """
    # Here and not above, so that --help takes no seconds.
    from training.named_encoder import open_named, show_help

    show_help(encoder, program(main))
    sheet = sheet or _sheet_of(out)
    _refuse(out, sheet, keep, lower)
    shard_set = open_shards(shards)
    trained = open_named(None, encoder, size=size, device=device)
    best = pick == "best"
    mined = _mined(
        shard_set, trained, keep, lower, upper=upper, count=candidates, best=best, seed=seed
    )

    begin = time.monotonic()
    partners, scores = mined.partner_N.cpu().numpy(), mined.score_N.cpu().numpy()
    source = Pairs(shard_set=shard_set, partners=partners, scores=scores, added=added)
    if not np.array_equal(source.ids, mined.features.id_N.cpu().numpy()):
        raise ValueError(f"{shard_set.root} changed while it was read; mine again.")
    pair_set = _write(
        source,
        out,
        seed=seed,
        samples_per_shard=samples_per_shard,
        encoding="raw" if shard_set.manifest.raw else "original",
        workers=len(os.sched_getaffinity(0)) if workers is None else workers,
    )
    _draw(shard_set, partners, scores, seed, sheet)

    seconds = {**mined.seconds, "writing": time.monotonic() - begin}
    facts = {
        "images": f"{len(shard_set):,} of {shard_set.root}",
        "encoder": trained.name,
        "time": ", ".join(f"{name} {taken:,.1f} s" for name, taken in seconds.items()),
        "where": pair_set.root,
        "sheet": str(sheet),
        "next": f"python -m tools.preview {shlex.quote(pair_set.root)}",
    }
    about = [
        ("thresholds", f"cosine {mined.lower:.4f} to {upper:g}"),
        ("partner", f"{pick} of up to {candidates} candidates"),
    ]
    label_N = mined.features.label_N
    others = _other_shares(mined.neighbours, label_N, seed=seed, candidates=candidates)
    sections = [
        Section("pairs", _pairs(mined.partner_N, mined.score_N, label_N, about)),
        Section("other thresholds", others),
        Section("pair set", list(facts.items())),
    ]
    show(sections, Console())


@dataclass(frozen=True)
class _Mined:
    """Which images mean the same."""

    features: Features
    neighbours: Neighbours
    lower: float
    """Smallest cosine of a pair."""
    partner_N: Tensor
    score_N: Tensor
    """Cosines with the partners."""
    seconds: dict[str, float]
    """How long it took, by what was done."""


def _refuse(out: str, sheet: Path, keep: float | None, lower: float | None) -> None:
    """Refuse what cannot be mined or written, before mining takes its time."""
    if keep is not None and lower is not None:
        raise ValueError(
            f"keep={keep} and lower={lower} both say which pairs are similar enough; give one of "
            "them."
        )
    if sheet.suffix.lower() != ".png":
        raise ValueError(f"sheet={sheet}; expected a name that ends with .png.")
    refuse_occupied(out)
    if not is_remote(out):
        Path(out).parent.mkdir(parents=True, exist_ok=True)  # the sheet lies beside the pairs
    durable.check_writable(sheet=sheet)


def _mined(
    shard_set: ShardSet,
    trained: Trained,
    keep: float | None,
    lower: float | None,
    *,
    upper: float,
    count: int,
    best: bool,
    seed: int,
) -> _Mined:
    """Embed the images and choose their partners.

    Args:
        shard_set: the images.
        trained: the encoder.
        keep: as `main` has it; likewise `lower`, `upper` and `seed`.
        lower: None if `keep` decides.
        upper: above it is a copy.
        count: candidates of an image.
        best: whether the most similar of them is taken.
        seed: of the choice.
    """
    from evaluation.features import embed
    from evaluation.neighbours import choose_partners, lower_for, nearest_others
    from pipeline.images import Images

    begin = time.monotonic()
    # Un-augmented, in the order of the tars.
    images = Images(
        shard_set,
        size=trained.size,
        device=trained.device,
        tuning=trained.tuning,
        normalisation=trained.normalisation,
    )
    features = embed(trained.encoder, images, autocast=trained.autocast, samples=len(shard_set))
    embedded = time.monotonic()
    neighbours = nearest_others(features.h_NF, count=count, upper=upper)
    if lower is None:
        lower = lower_for(neighbours, KEPT if keep is None else keep)
    chosen = choose_partners(neighbours.at_least(lower), best=best, seed=seed)
    seconds = {"embedding": embedded - begin, "search": time.monotonic() - embedded}
    return _Mined(features, neighbours, lower, *chosen, seconds)


def _write(
    source: Pairs, out: str, *, seed: int, samples_per_shard: int, encoding: str, workers: int
) -> ShardSet:
    """Write the pair set, and show how far it is."""
    with kept_on_interrupt(out), progress_shown(Console(stderr=True)) as progress:
        return write(
            source,
            out,
            seed=seed,
            samples_per_shard=samples_per_shard,
            # JPEG and PNG files keep their bytes; limits on sizes were the first writing's.
            preparation=Preparation(
                encoding=encoding, max_megapixels=1e6, min_side=1, max_aspect=1e6
            ),
            engine=LocalWorkers(workers),
            command=shlex.join(["python", "-m", "tools.mine_pairs", *sys.argv[1:]]),
            progress=progress,
        )


def _sheet_of(out: str) -> Path:
    """Return the picture of a pair set: beside a folder on a disk; that of a store, here."""
    beside = Path(out).name if is_remote(out) else out.rstrip("/")
    return Path(f"{beside}.png")


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
    with durable.replaced(path) as partial:
        pair_sheet(title, pairs).save(partial, format="PNG")


def _pairs(
    partner_N: Tensor, score_N: Tensor, label_N: Tensor, about: list[tuple[str, str]]
) -> list[tuple[str, ...]]:
    """Return rows about the pairs: how many, how they were chosen, cosines, purity."""
    from evaluation.neighbours import pair_purity, random_purity

    paired = partner_N.cpu().numpy() != np.arange(len(partner_N))
    pairs = int(paired.sum())
    count = f"{pairs:,} of {len(paired):,} images ({pairs / len(paired):.1%})"
    rows = [("with a partner", count), *about]
    if pairs:
        values = np.quantile(score_N.cpu().numpy()[paired], [0, 0.05, 0.5, 0.95, 1])
        names = ("least", "5 %", "median", "95 %", "most")
        cosines = ", ".join(f"{n} {v:.4f}" for n, v in zip(names, values, strict=True))
        rows.append(("cosines", cosines))
    purity, chance = pair_purity(partner_N, label_N), random_purity(label_N)
    if purity is not None and chance is not None:
        rows.append(("purity", f"{purity:.1%} of the pairs have equal labels; random {chance:.1%}"))
    return list(rows)


def _other_shares(
    neighbours: Neighbours, label_N: Tensor, *, seed: int, candidates: int
) -> list[tuple[str, ...]]:
    """Return rows for other thresholds; purity only where there are labels."""
    from evaluation.neighbours import choose_partners, lower_for, pair_purity

    rows: list[tuple[str, ...]] = [
        ("--keep", "--lower", "purity of the best", f"of any of {candidates}")
    ]
    for share in SHARES:
        lower = lower_for(neighbours, share)
        kept = neighbours.at_least(lower)
        chosen = [choose_partners(kept, best=best, seed=seed)[0] for best in (True, False)]
        purities = [pair_purity(partner_N, label_N) for partner_N in chosen]
        cells = ["" if purity is None else f"{purity:.1%}" for purity in purities]
        rows.append((f"{share:g}", f"{lower:.4f}", *cells))
    return rows


if __name__ == "__main__":
    run_function(main)
