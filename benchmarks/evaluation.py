"""What evaluating costs: 60,000 images; searches in a million features; probes of many features.

    python -m benchmarks.evaluation images --train DIR --test DIR [--out FILE.json]
    python -m benchmarks.evaluation search [--rows 1000000] [--sizes 512 2048] [--queries 2000]
    python -m benchmarks.evaluation probe [--rows 100000] [--sizes 512 2048] [--classes 10 1000]

`images` evaluates SmallResNet with random weights at 32 px, and says which share is embedding.
`search` looks for the 20 nearest of generated features: ours; ours as it was, whole rows of scores
of a normalised copy; FAISS's exhaustive search (`uv pip install faiss-cpu`) of a normalised copy.
`probe` fits generated features: ours, and with a standardised copy as it was; 20 iterations each.

Every measurement has a process of its own. "extra" is the peak of resident memory above what the
process held before, with the features. The machine should be otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import write
from evaluation import few_shot, knn, linear, retrieval
from evaluation.features import Features
from evaluation.score import blocks, exact_float32, nearest
from training.surroundings import surroundings

MIB = 2**20
NEIGHBOURS = 20
ITERATIONS = 20
SIZE = 32  # pixels
Finding = dict[str, Any]


def resident(key: str) -> int:
    """Return a size of this process, such as VmRSS or its high-water mark VmHWM."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def measured(work: Callable[[], object]) -> Finding:
    """Return the seconds of some work, and the peak of memory above what was held before."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "extra_mib": (resident("VmHWM") - before) / MIB}


def generated(rows: int, size: int, *, classes: int = 10, seed: int = 0) -> Features:
    """Return features of overlapping classes, none negative, as a ResNet's are."""
    generator = torch.Generator().manual_seed(seed)
    class_N = torch.randint(0, classes, (rows,), generator=generator)
    centre_KF = torch.randn(classes, size, generator=torch.Generator().manual_seed(99))
    h_NF = torch.empty(rows, size)
    for part_NF, part_N in zip(h_NF.split(8192), class_N.split(8192), strict=True):
        noise_NF = torch.randn(part_NF.shape, generator=generator)
        part_NF.copy_(noise_NF + 0.15 * centre_KF[part_N]).relu_()
    return Features(h_NF, class_N, torch.arange(rows))


# ── images ────────────────────────────────────────────────────────────────────────────────────────


def images(train_root: str, test_root: str) -> Finding:
    """Evaluate a network on two shard sets; return seconds and memory by what was done."""
    from evaluation.bare_encoder import BareEncoder
    from evaluation.suite import Suite
    from model.encoder import SmallResNet
    from pipeline.augment import SimCLRViews
    from pipeline.graph import ViewGroup
    from shards.layout import open_shards

    torch.manual_seed(0)
    method = BareEncoder(SmallResNet()).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    suite = Suite(
        test=open_shards(test_root),
        train=open_shards(train_root),
        group=ViewGroup(policy=SimCLRViews(), count=2, size=SIZE),
        device=torch.device("cpu"),
    )
    held: dict[str, Features] = {}

    def embed() -> None:
        assert suite.train is not None
        held["train"] = suite.features(method, suite.train)
        held["test"] = suite.features(method, suite.test)

    found: Finding = {"embedding": measured(embed)}
    train, test = held["train"], held["test"]
    found["k-NN"] = measured(lambda: knn.run(train, test))
    found["probe"] = measured(lambda: linear.run(train, test))
    for shots in few_shot.SHOTS:
        few = measured(lambda shots=shots: few_shot.run(train, test, shots=shots))
        found[f"few-shot, {shots}"] = few
    found["label retrieval"] = measured(lambda: retrieval.run_labels(test))
    whole = sum(each["seconds"] for each in found.values())
    for each in found.values():
        each["share"] = each["seconds"] / whole
    return found | {"train": len(train), "test": len(test), "size": train.h_NF.shape[1]}


# ── search ────────────────────────────────────────────────────────────────────────────────────────


def by_whole_rows(query_QF: Tensor, gallery_GF: Tensor) -> None:
    """Search as k-NN did before."""
    query_QF, gallery_GF = F.normalize(query_QF, dim=1), F.normalize(gallery_GF, dim=1)
    for _, S_QG in blocks(query_QF, gallery_GF):
        S_QG.topk(NEIGHBOURS, dim=1)


def by_faiss(query_QF: Tensor, gallery_GF: Tensor) -> None:
    """Search exhaustively with FAISS, without an index, which would be another copy."""
    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(torch.get_num_threads())
    query, gallery = (F.normalize(each, dim=1).numpy() for each in (query_QF, gallery_GF))
    faiss.knn(query, gallery, NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT)


SEARCHES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "ours": lambda query_QF, gallery_GF: nearest(query_QF, gallery_GF, count=NEIGHBOURS),
    "whole rows, as before": by_whole_rows,
    "FAISS": by_faiss,
}


def search(name: str, *, rows: int, size: int, queries: int) -> Finding:
    """Search in this process."""
    gallery, query = generated(rows, size), generated(queries, size, seed=1)
    SEARCHES[name](query.h_NF[:100], gallery.h_NF[:1000])  # threads and the kernels' first pages
    return measured(lambda: SEARCHES[name](query.h_NF, gallery.h_NF))


# ── probe ─────────────────────────────────────────────────────────────────────────────────────────


def with_a_copy(train: Features, classes: int) -> None:
    """Fit as the probe did before: on a standardised copy of all features."""
    std_F, mean_F = torch.std_mean(train.h_NF, dim=0, correction=0)
    x_NF = (train.h_NF - mean_F) / std_F
    weight_KF = torch.zeros(classes, x_NF.shape[1], requires_grad=True)
    bias_K = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_KF, bias_K],
        max_iter=ITERATIONS,
        tolerance_grad=1e-6,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x_NF @ weight_KF.T + bias_K, train.label_N)
        loss = loss + 1e-3 / 2 * weight_KF.square().sum()
        loss.backward()
        return loss

    with exact_float32(x_NF.device):
        optimizer.step(closure)


PROBES: dict[str, Callable[[Features, int], object]] = {
    "ours": lambda train, classes: linear.fit(
        train.h_NF, train.label_N, classes=classes, l2=1e-3, iterations=ITERATIONS
    ),
    "with a copy, as before": with_a_copy,
}


def probe(name: str, *, rows: int, size: int, classes: int) -> Finding:
    """Fit in this process."""
    train = generated(rows, size, classes=classes)
    return measured(lambda: PROBES[name](train, classes))


# ── the command ───────────────────────────────────────────────────────────────────────────────────


def in_child(case: Finding, console: Console) -> Finding:
    """Return a case with what a process of its own finds, or why there is nothing."""
    console.print(", ".join(f"{key} {value}" for key, value in case.items()), style="dim")
    command = [sys.executable, "-m", "benchmarks.evaluation", "--one", json.dumps(case)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return case | {"skipped": f"exit status {child.returncode}: {last}"}
    return case | json.loads(child.stdout)


def one(case: Finding) -> Finding:
    """Measure a case in this process."""
    settings = {key: value for key, value in case.items() if key not in ("what", "name")}
    if case["what"] == "images":
        return images(**settings)
    return {"search": search, "probe": probe}[case["what"]](case["name"], **settings)


def table(rows: list[Finding]) -> Table:
    """Return the figures as people read them."""
    shown = Table()
    if rows[0]["what"] == "images":
        cases = {k: v for k, v in rows[0].items() if isinstance(v, dict)}
        for heading in ("", "seconds", "share", "extra MiB"):
            shown.add_column(heading, justify="right" if heading else "left")
        for name, each in cases.items():
            cells = (f"{each['seconds']:.1f}", f"{each['share']:.0%}", f"{each['extra_mib']:,.0f}")
            shown.add_row(name, *cells)
        return shown
    names = [key for key in rows[0] if key not in ("what", "seconds", "extra_mib", "skipped")]
    for heading in (*names, "seconds", "extra MiB"):
        shown.add_column(heading, justify="left" if heading == "name" else "right")
    for row in rows:
        cells = [row.get("skipped", ""), ""]
        if "seconds" in row:
            cells = [f"{row['seconds']:.1f}", f"{row['extra_mib']:,.0f}"]
        shown.add_row(*(str(row[name]) for name in names), *cells)
    return shown


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description="What evaluating costs", allow_abbrev=False)
    parser.add_argument("what", nargs="?", choices=("images", "search", "probe"))
    parser.add_argument("--train", help="shard set, for images")
    parser.add_argument("--test", help="shard set, for images")
    parser.add_argument("--rows", type=int, help="number of features; by default 10⁶ and 10⁵")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 2048], help="their sizes")
    parser.add_argument("--queries", type=int, default=2000, help="of a search")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000], help="of a probe")
    parser.add_argument("--only", nargs="+", help="names of contestants, instead of all")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of one measurement
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(json.loads(arguments.one))))
        return
    what, console = arguments.what, Console()
    if what is None or (what == "images" and not (arguments.train and arguments.test)):
        parser.error("name images, with --train DIR and --test DIR, or search, or probe.")
    if what == "images":
        cases = [{"train_root": arguments.train, "test_root": arguments.test}]
    elif what == "search":
        cases = [
            {"name": name, "rows": arguments.rows or 10**6, "size": size}
            | {"queries": arguments.queries}
            for size in arguments.sizes
            for name in SEARCHES
        ]
    else:
        cases = [
            {"name": name, "rows": arguments.rows or 10**5, "size": size, "classes": classes}
            for size in arguments.sizes
            for classes in arguments.classes
            for name in PROBES
        ]
    wanted = arguments.only or [case.get("name") for case in cases]
    cases = [{"what": what} | case for case in cases if case.get("name") in wanted]
    report = surroundings("torch", "numpy", "faiss-cpu")
    report["rows"] = [in_child(case, console) for case in cases]
    console.print(table(report["rows"]))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write(report, arguments.out)
        console.print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
