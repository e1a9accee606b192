"""Write one page about runs: curves, views, a map of the embeddings, neighbours, figures, settings.

    python -m tools.report runs/mine --out report.html
    python -m tools.report runs/mine --watch 60          # again and again, while it trains
    python -m tools.report runs/a runs/b runs/c          # several, side by side

The page is a single file that needs no network. What cannot be found out yet is left out, and said.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

from pipeline import dali
from shards import durable
from shards.one_line import one_line
from training import installed
from training.command_line import run_function

if TYPE_CHECKING:
    from tools.report.page import RunPart

_LARGE = 10e6  # bytes; mail takes no more


def main(
    *runs: Path,
    out: Path = Path("report.html"),
    samples: int = 2000,
    watch: float | None = None,
    beside_random: bool = True,
    device: Literal["auto", "cpu", "gpu"] = "auto",
) -> None:
    """Write one page about runs that needs no network.

    Args:
        runs: folders of runs, or of checkpoints; several are compared.
        out: HTML file to write.
        samples: how many images of the evaluation set are mapped and compared, at most.
        watch: write the page again every so many seconds, until the runs have finished; what needs
            the networks, only when there is a new checkpoint.
        beside_random: evaluate the weights that each run began with, too.
        device: where to compute; auto is the GPU if there is one.
    """
    if not runs:
        raise ValueError("no run to report on; name the folders of one or more.")
    if samples < 2 or (watch is not None and watch <= 0):
        raise ValueError(
            f"samples={samples} and watch={watch}; give 2 samples or more, and more than 0 seconds."
        )
    installed.require("torch", dali.PACKAGE, *installed.EXTRAS["report"])
    durable.check_writable(out=out)

    # Here and not above, so that --help takes no seconds.
    from tools.report.page import render
    from tools.report.run_facts import names, this_machine
    from tools.report.watched_run import WatchedRun
    from training.config import gpu_available

    if device == "gpu" and not gpu_available():
        raise ValueError("device=gpu, but PyTorch finds no GPU here; leave --device out.")
    console, said = Console(stderr=True, highlight=False), list[str]()
    watched = [
        WatchedRun(path, name, samples=samples, beside_random=beside_random, device=device)
        for path, name in zip(runs, names(runs), strict=True)
    ]
    while True:
        with console.status("") as status:
            parts = [
                run.part(lambda text: status.update(Text(f"{one_line(text)} …"))) for run in watched
            ]
        again = None if all(part.facts.finished for part in parts) else watch
        content = render(parts, machine=this_machine(), refresh=again)
        durable.replace(out, [content])
        news = _said(parts, out, len(content))
        if news != said:
            print(*news, sep="\n", flush=True)
        said = news
        if again is None:
            return
        time.sleep(again)


def _said(parts: list[RunPart], out: Path, size: int) -> list[str]:
    """Return lines on the page: what it shows, what it leaves out, how large it is."""
    lines = []
    for part in parts:
        lines.append(f"{part.facts.name}: {part.facts.status()}")
        lines += [f"  {remark}" for remark in dict.fromkeys(part.said())]
    large = "; fewer --samples or runs make it smaller" if size > _LARGE else ""
    return [one_line(line) for line in [*lines, f"{out}: {size / 1e6:.1f} MB{large}"]]


if __name__ == "__main__":
    run_function(main)
