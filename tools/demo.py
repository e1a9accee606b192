"""Go from nothing to an evaluated encoder in some minutes: `make demo`.

Every command is shown, and can be run alone. Files that exist are used again; remove data/ and
runs/demo to start over.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from pipeline import dali
from shards.layout import MANIFEST
from tools.train_folder import report_of
from training import installed
from training.command import run_command
from training.command_line import program
from training.flags import FlagParser
from training.shown_commands import run
from training.terminal import Section, show

DATA, RUN, REPORT = Path("data"), Path("runs/demo"), Path("runs/demo.html")
RECIPE = "recipes/sample_s2r2.yaml"


def main() -> None:
    """Generate, shard, preview, train, evaluate, report."""
    summary = (__doc__ or "").partition("\n")[0]
    FlagParser(prog=program(main), description=summary).read()
    installed.require("torch", dali.PACKAGE)  # what it starts needs them, minutes later
    begin = time.monotonic()
    for split in ("unlabeled", "train", "test"):
        out = DATA / f"sample-{split}"
        if not (out / MANIFEST).exists():
            # The first call draws the set and stores it as STL-10 is stored; the others read that.
            source = "sample" if split == "unlabeled" else "stl10"
            where = ["--root", f"{DATA}/sample", "--split", split, "--out", str(out)]
            run("shard", source, *where)
    sheet = DATA / "sample-views.png"
    if not sheet.exists():
        train = str(DATA / "sample-unlabeled")
        run("preview", train, "--config", RECIPE, "--out", str(sheet))

    run("train", "--config", RECIPE, "--run", str(RUN))
    run("evaluate", str(RUN), "--beside_random", "true")
    made = {
        "shards": f"{DATA}/sample-*",
        "views": str(sheet),
        "run": f"{RUN} (config.yaml, metrics.jsonl, checkpoints/, encoder.safetensors)",
        "report": report_of(RUN, REPORT),
        "wall time": f"{time.monotonic() - begin:.0f} s",
    }
    show([Section("demo", list(made.items()))], Console())


if __name__ == "__main__":
    run_command(main)
