"""Go from nothing to an evaluated encoder in some minutes: `make demo`.

Every command is shown, and can be run alone. Files that exist are used again; remove data/ and
runs/demo to start over.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from pipeline import dali
from shards.layout import MANIFEST
from training import installed
from training.command import run_command
from training.command_line import program
from training.flags import FlagParser

DATA, RUN, REPORT = Path("data"), Path("runs/demo"), Path("runs/demo.html")
RECIPE = "recipes/sample_s2r2.yaml"


def main() -> None:
    """Generate, shard, preview, train, evaluate, report."""
    summary = (__doc__ or "").partition("\n")[0]
    FlagParser(prog=program(main), description=summary).read()
    installed.require("torch", dali.PACKAGE)  # what it starts needs them, minutes later
    console = Console(highlight=False)
    begin = time.monotonic()
    for split in ("unlabeled", "train", "test"):
        out = DATA / f"sample-{split}"
        if not (out / MANIFEST).exists():
            # The first call draws the set and stores it as STL-10 is stored; the others read that.
            source = "sample" if split == "unlabeled" else "stl10"
            where = ["--root", f"{DATA}/sample", "--split", split, "--out", str(out)]
            _python("-m", "tools.shard", source, *where)
    sheet = DATA / "sample-views.png"
    if not sheet.exists():
        train = str(DATA / "sample-unlabeled")
        _python("-m", "tools.preview", train, "--config", RECIPE, "--out", str(sheet))

    _python("train.py", "--config", RECIPE, "--run", str(RUN))
    _python("-m", "tools.evaluate", str(RUN), "--beside_random", "true")
    report = str(REPORT)
    try:
        installed.require(*installed.EXTRAS["report"])
        _python("-m", "tools.report", str(RUN), "--out", report)
    except ModuleNotFoundError as error:
        report = f"none: {installed.remedy(error)}"
    made = {
        "shards": f"{DATA}/sample-*",
        "views": str(sheet),
        "run": f"{RUN} (config.yaml, metrics.jsonl, checkpoints/, encoder.safetensors)",
        "report": report,
        "wall time": f"{time.monotonic() - begin:.0f} s",
    }
    for name, text in made.items():
        console.print(f"{name:10}{text}", markup=False)


def _python(*arguments: str) -> None:
    _call([sys.executable, *arguments])


def _call(command: list[str]) -> None:
    """Show a command as a person would type it, and run it; exit with its code if it fails."""
    shown = [Path(command[0]).name, *command[1:]]
    sys.stdout.write(f"\n$ {shlex.join(shown)}\n")
    sys.stdout.flush()
    with subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # it got the same, and may be saving
            process.wait()
            raise
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_command(main)
