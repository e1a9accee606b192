"""Train recipes under equal conditions over several seeds, and tabulate what they learned.

python -m benchmarks.learning --seeds 0 1 2 --out benchmarks/results/cifar10-cpu.json \
        --recipes recipes/cifar10_cpu_s2r2.yaml recipes/cifar10_cpu_simclr.yaml
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tools.surroundings import surroundings
from training.command import run_command
from training.monitor import records

SHOWN = ("knn_top1", "linear_top1", "label_map", "view_map", "effective_dimension", "data_wait")


def main() -> None:
    """Run every recipe with every seed, one after the other; what is there already is kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--recipes", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="Where runs lie.")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write.")
    parser.add_argument("--flags", default="", help="Further flags of train.py, in quotes.")
    options = parser.parse_args()

    rows = []
    for seed in options.seeds:  # recipes alternate, so that a busy hour meets all of them
        for recipe in options.recipes:
            rows.append(one(recipe, seed, options.runs, shlex.split(options.flags)))
            write(options.out, rows, sys.argv[1:])
    table = Table(title="mean ± standard deviation over seeds", title_justify="left")
    for name in ("recipe", "steps", *SHOWN):
        table.add_column(name, justify="left" if name == "recipe" else "right")
    for recipe in options.recipes:
        mine = [row for row in rows if row["recipe"] == recipe.stem]
        for when in ("random_init", "trained"):
            cells = [spread([row[when].get(name) for row in mine]) for name in SHOWN]
            steps = "0" if when == "random_init" else spread([row["steps"] for row in mine])
            table.add_row(f"{recipe.stem}, {when}", steps, *cells)
    Console(highlight=False, width=160).print(table)


def one(recipe: Path, seed: int, runs: Path, flags: list[str]) -> dict[str, Any]:
    """Train and evaluate one recipe with one seed."""
    run = runs / f"{recipe.stem}-seed{seed}"
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--quiet", "train.py"]
    own = ["--config", str(recipe), "--seed", str(seed), "--run", str(run), *flags]
    subprocess.run([*launch, *own], check=True)
    first = run / "random_init.json"
    if not first.exists():
        tool = [sys.executable, "-m", "tools.evaluate", str(run), "--random_init", "true"]
        subprocess.run([*tool, "--json", str(first)], check=True, stdout=subprocess.DEVNULL)
    steps = [record for record in records(run) if "loss" in record]
    final = [record for record in records(run) if record.get("evaluation") == "final"][-1]
    # The first record holds the start of the pipeline.
    waits = [record["data_wait"] for record in steps[1:]]
    return {
        "recipe": recipe.stem,
        "seed": seed,
        "steps": steps[-1]["step"],
        "seconds": steps[-1]["seconds"],
        "random_init": json.loads(first.read_text()),
        "trained": final | {"data_wait": mean(waits), "first_data_wait": steps[0]["data_wait"]},
        "views_per_second": mean(record["views_per_second"] for record in steps[1:]),
    }


def write(out: Path, rows: list[dict[str, Any]], arguments: list[str]) -> None:
    """Write what is known so far."""
    facts = surroundings("torch", "torchvision", "accelerate")
    facts |= {
        "command": shlex.join(["python", "-m", "benchmarks.learning", *arguments]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else facts["cpu"],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


def spread(values: list[float | None]) -> str:
    """Return mean ± standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{mean(known):.4g}" + (f" ± {stdev(known):.2g}" if len(known) > 1 else "")


if __name__ == "__main__":
    run_command(main)
