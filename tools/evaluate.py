"""Evaluate a run's encoder on shard sets: k-NN, linear probe, retrieval, geometry.

    python -m tools.evaluate runs/mine --json figures.json

The encoder is frozen. Shard sets and their settings come from the run's recipe unless flags say
otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from shards.layout import open_shards
from training.command_line import run_function

if TYPE_CHECKING:
    from training.config import Config


def main(
    run: Path,
    *,
    test: str | None = None,
    train: str | None = None,
    queries: str | None = None,
    references: str | None = None,
    json: Path | None = None,
    random_init: bool = False,
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
        device: where to compute; auto is the GPU if there is one.
        mixed_precision: precision of the encoder; auto is bf16 where the hardware multiplies it.
    """
    # Here and not above, so that --help takes no seconds.
    from training.run import run_folder
    from training.settings import parse
    from training.trained import locate

    run, saved = locate(run)
    if saved is None and not random_init:
        raise ValueError(f"{run} holds no checkpoint yet; let the run reach its first one.")
    if json and not json.parent.is_dir():
        raise ValueError(f"{json.parent} is no folder; --json FILE is written into one.")
    # This machine may lack the run's device, precision and trackers.
    here = ["--device", device, "--mixed_precision", mixed_precision, "--trackers", "[]"]
    config = parse(["--config", str(run / run_folder.CONFIG), *here]).config
    sets = _sets(config, run, test=test, train=train, queries=queries, references=references)
    step = 0
    if not random_init and saved is not None:
        step = saved.step
        config.method.load_state_dict(saved.method())
    figures = _figures(config, run, sets)

    weights = "random init" if random_init else f"step {step:,}"
    table = Table(title=f"{run}, {weights}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}")
    Console(highlight=False).print(table)
    if json:
        _write(json, {"run": str(run), "step": step, **sets, **figures})


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


def _figures(config: Config, run: Path, sets: dict[str, str | None]) -> dict[str, float]:
    """Return what the configuration's method is worth, with its weights as they are."""
    import torch

    from evaluation.suite import Suite
    from training import machine_settings
    from training.trained import device_of

    test, *others = (sets[name] for name in ("test", "train", "queries", "references"))
    train, queries, references = (open_shards(root) if root else None for root in others)
    assert test is not None
    device = device_of(config)
    suite = Suite(
        test=open_shards(test),
        train=train,
        queries=queries,
        references=references,
        group=config.views,
        device=device,
        autocast=config.autocast(),
        tuning=machine_settings.kept(run) if device.type == "cuda" else None,
        neighbours=config.evaluation_neighbours,
        temperature=config.evaluation_temperature,
    )
    method = config.method.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return suite.run(method, probe=True)


def _write(path: Path, record: dict[str, object]) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_function(main)
