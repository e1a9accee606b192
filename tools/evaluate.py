"""Evaluate a run's encoder on shard sets: k-NN, linear probe, retrieval, geometry.

    python -m tools.evaluate runs/mine --json figures.json
    python -m tools.evaluate runs/mine --beside_random true

The encoder is frozen. Shard sets and their settings come from the run's recipe unless flags say
otherwise.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from shards import durable
from shards.layout import open_shards
from training.command_line import run_function

if TYPE_CHECKING:
    from evaluation.suite import Evaluation
    from model.method import Method
    from training.config import Config

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))


def main(
    run: Path,
    *,
    test: str | None = None,
    train: str | None = None,
    queries: str | None = None,
    references: str | None = None,
    json: Path | None = None,
    random_init: bool = False,
    beside_random: bool = False,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto",
) -> None:
    """Evaluate a run's encoder on frozen features.

    Args:
        run: folder of a run, or of one of its checkpoints.
        test: held-out shard set; by default, the recipe's.
        train: labelled shard set for k-NN and the linear probe; by default, the recipe's.
        queries: shard set of edited copies to find; by default, the recipe's.
        references: shard set to find them in, together with --queries; by default, the recipe's.
        json: file to write the figures to.
        random_init: evaluate the weights that the run began with, instead of the trained ones; a
            folder with its config.yaml is enough.
        beside_random: evaluate these weights too, in a second column.
        device: where to compute; auto is the GPU if there is one.
        mixed_precision: precision of the encoder; auto is bf16 where the hardware multiplies it.
    """
    # Here and not above, so that --help takes no seconds.
    import copy

    from training.run import checkpoint, run_folder
    from training.settings import parse
    from training.trained import locate

    run, saved = locate(run)
    if saved is None and not random_init:
        raise ValueError(f"{run} holds no checkpoint yet; let the run reach its first one.")
    durable.check_writable(json=json)
    # This machine may lack the run's device, precision and trackers.
    here = ["--device", device, "--mixed_precision", mixed_precision, "--trackers", "[]"]
    config = parse(["--config", str(run / run_folder.CONFIG), *here]).config
    sets = _sets(config, run, test=test, train=train, queries=queries, references=references)
    methods = {}
    if random_init or beside_random:
        methods["random init"] = copy.deepcopy(config.method)
    step = 0
    if not random_init and saved is not None:
        step = saved.step
        state = saved.method()
        with checkpoint.fits(saved.root, f"{run / run_folder.CONFIG}"):
            config.method.load_state_dict(state)
        methods[f"step {step:,}"] = config.method
    found = _evaluated(config, run, sets, methods)

    _show(str(run), found)
    *beside, evaluation = found.values()
    for remark in dict.fromkeys(line for each in found.values() for line in each.remarks):
        Console(highlight=False).print(remark, soft_wrap=True, markup=False)
    if json:
        record = {"run": str(run), "step": step, **sets, **evaluation.figures}
        if evaluation.remarks:
            record["remarks"] = evaluation.remarks
        if beside:
            record["random_init"] = beside[0].figures
        _write(json, record)
    if not evaluation.figures:
        sys.exit(1)


def _show(run: str, found: Mapping[str, Evaluation]) -> None:
    """Print a row for each figure, a column for each encoder."""
    from evaluation.figures import ordered

    table = Table(title=run, title_justify="left")
    table.add_column("frozen encoder")
    for name in found:
        table.add_column(name, justify="right")
    texts = {n: {f: text for f, _, text in ordered(e.figures)} for n, e in found.items()}
    *_, last = found.values()
    for figure, name, _ in ordered(last.figures):
        table.add_row(name, *(texts[column].get(figure, "") for column in found))
    Console(highlight=False).print(table)


def _sets(config: Config, run: Path, **given: str | None) -> dict[str, str | None]:
    """Return the shard sets to evaluate on: those that are given, else the recipe's."""
    test = given["test"] or config.evaluation_test
    if test is None:
        raise ValueError(f"{run} was trained without a test set; name one with --test DIR.")
    copies = (given["queries"], given["references"])
    if not any(copies):
        copies = (config.evaluation_queries, config.evaluation_references)
    elif not all(copies):
        raise ValueError("copy detection needs both --queries DIR and --references DIR.")
    train = given["train"] or config.evaluation_train
    return {"test": test, "train": train or None, "queries": copies[0], "references": copies[1]}


def _evaluated(
    config: Config, run: Path, sets: dict[str, str | None], methods: Mapping[str, Method]
) -> dict[str, Evaluation]:
    """Return what methods are worth on the shard sets, by their names."""
    import torch

    from evaluation.suite import Suite
    from training import machine_settings
    from training.trained import device_of

    test, *others = (sets[name] for name in ("test", "train", "queries", "references"))
    train, queries, references = (open_shards(root) if root else None for root in others)
    assert test is not None
    device = device_of(config)
    found: dict[str, Evaluation] = {}
    with Progress(*_COLUMNS, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0)

        def show(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done / total)

        suite = Suite(
            test=open_shards(test),
            train=train,
            queries=queries,
            references=references,
            group=config.views,
            device=device,
            autocast=config.autocast(),
            normalisation=config.normalisation,
            tuning=machine_settings.kept(run) if device.type == "cuda" else None,
            neighbours=config.evaluation_neighbours,
            temperature=config.evaluation_temperature,
            progress=show,
        )
        for name, method in methods.items():
            moved = method.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            found[name] = suite.run(moved, probe=True)
    return found


def _write(path: Path, record: dict[str, object]) -> None:
    durable.replace(path, [json.dumps(record, indent=1).encode(), b"\n"])


if __name__ == "__main__":
    run_function(main)
