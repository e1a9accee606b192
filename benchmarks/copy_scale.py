"""Copy detection at DISC21's size: seconds and memory of exact search among a million references.

    python -m benchmarks.copy_scale [--queries 1000] [--references 1000000] [--out FILE.json]

Descriptors are random unit vectors of 254 numbers, every tenth query is a noisy copy; 10,000
training images normalise. Time is proportional to the queries: the challenge has 50,000. Memory is
of this process's own pages, above the descriptors.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory_use import MIB, Peak
from benchmarks.record import write

D, TRAINING = 254, 10_000


def main(words: Sequence[str]) -> None:
    """Measure the parts of the protocol that follow the embedding."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copy_scale", description=__doc__)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--references", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="JSON to write.")
    arguments = parser.parse_args(words)
    import torch
    import torch.nn.functional as F

    from evaluation.best_pairs import best_pairs
    from evaluation.challenge_files import check_descriptors, write_descriptors
    from evaluation.copy_detection import LIMIT, judge
    from evaluation.score_normalisation import normalised
    from training.surroundings import surroundings

    Q, G = arguments.queries, arguments.references
    torch.manual_seed(0)
    reference_GD = F.normalize(torch.randn(G, D), dim=1)
    training_ND = F.normalize(torch.randn(TRAINING, D), dim=1)
    original_Q = torch.where(torch.arange(Q) % 10 == 0, torch.randint(G, (Q,)), -1)
    query_QD = torch.randn(Q, D) / D**0.5
    query_QD[original_Q >= 0] += 0.5 * reference_GD[original_Q[original_Q >= 0]]
    query_QD = F.normalize(query_QD, dim=1)
    rows: dict[str, Any] = {}

    def measured(name: str, work: Callable[[], Any]) -> Any:
        with Peak() as peak:
            begin = time.perf_counter()
            result = work()
            seconds = time.perf_counter() - begin
        rows[name] = {"seconds": round(seconds, 2), "mib": round(peak.growth / MIB)}
        print(name, json.dumps(rows[name]), file=sys.stderr)
        return result

    query_QD, reference_GD = measured(
        "normalisation",
        lambda: normalised(query_QD, reference_GD, training_ND, weight=1.0, first=1, last=3),
    )
    figures = measured("figures", lambda: judge(query_QD, reference_GD, original_Q))
    pairs = measured("predictions", lambda: best_pairs(query_QD, reference_GD, limit=LIMIT))
    assert len(pairs.score_P) == min(LIMIT, Q * G)
    names = [f"Q{n:05d}" for n in range(Q)], [f"R{n:06d}" for n in range(G)]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "descriptors.hdf5"
        measured("hdf5", lambda: write_descriptors(path, query_QD, reference_GD, *names))
        check_descriptors(path, *names)
        rows["hdf5"]["file_mib"] = round(path.stat().st_size / MIB)
    record = {
        "surroundings": surroundings("torch", "h5py"),
        "command": " ".join(["python -m benchmarks.copy_scale", *words]),
        "queries": Q,
        "references": G,
        "descriptors_mib": round(4 * (D + 2) * (Q + G) / MIB),
        "figures": figures,
        "parts": rows,
    }
    write(record, arguments.out)


if __name__ == "__main__":
    main(sys.argv[1:])
