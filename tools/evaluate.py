"""Evaluate a run's encoder on shard sets: k-NN, linear probe, retrieval, geometry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from evaluation.suite import Suite
from shards.layout import open_shards
from training import machine_settings
from training.command import run_command
from training.run import checkpoint, run_folder
from training.settings import parse


def main() -> None:
    """Evaluate a checkpoint, or the weights that its run began with."""
    arguments = ArgumentParser(
        prog="python -m tools.evaluate",
        description="Evaluate a run's encoder on frozen features.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    arguments.add_argument("run", type=Path, help="Folder of a run, or one of its checkpoints.")
    arguments.add_argument(
        "--test", type=str | None, help="Held-out shard set; by default, the recipe's."
    )
    arguments.add_argument(
        "--train",
        type=str | None,
        help="Labelled shard set for k-NN and the linear probe; by default, the recipe's.",
    )
    arguments.add_argument(
        "--queries", type=str | None, help="Edited copies to find; by default, the recipe's."
    )
    arguments.add_argument(
        "--references",
        type=str | None,
        help="Shard set to find them in, together with --queries; by default, the recipe's.",
    )
    arguments.add_argument("--json", type=Path | None, help="File to write the figures to.")
    arguments.add_argument(
        "--random_init",
        type=bool,
        default=False,
        help="Evaluate the weights that the run began with, instead of the trained ones; a folder "
        "with its config.yaml is enough.",
    )
    arguments.add_argument("--device", type=Literal["auto", "cpu", "gpu"], default="auto")
    arguments.add_argument(
        "--mixed_precision",
        type=Literal["auto", "no", "bf16", "fp16"],
        default="auto",
        help="Precision of the encoder.",
    )
    options = arguments.parse_args()

    run, saved = _locate(options.run)
    if saved is None and not options.random_init:
        raise ValueError(f"{run} holds no checkpoint yet; let the run reach its first one.")
    if options.json and not options.json.parent.is_dir():
        raise ValueError(f"{options.json.parent} is no folder; --json FILE is written into one.")
    # What the run was trained with need not be on this machine.
    here = ["--device", options.device, "--mixed_precision", options.mixed_precision]
    settings = parse(["--config", str(run / run_folder.CONFIG), *here, "--trackers", "[]"])
    config = settings.config
    test, train = options.test or config.evaluation_test, options.train or config.evaluation_train
    if test is None:
        raise ValueError(f"{run} was trained without a test set; name one with --test DIR.")
    copies = (options.queries, options.references)
    if not any(copies):
        copies = (config.evaluation_queries, config.evaluation_references)
    elif not all(copies):
        raise ValueError("copy detection needs both --queries DIR and --references DIR.")
    queries, references = (open_shards(root) if root else None for root in copies)
    device = torch.device("cpu")
    if config.on_gpu:
        device = torch.device("cuda", torch.cuda.current_device())
    suite = Suite(
        test=open_shards(test),
        train=open_shards(train) if train else None,
        group=config.views,
        device=device,
        autocast=config.autocast(),
        tuning=machine_settings.kept(run) if device.type == "cuda" else None,
        queries=queries,
        references=references,
        neighbours=config.evaluation_neighbours,
        temperature=config.evaluation_temperature,
    )
    step = 0
    if not options.random_init and saved is not None:
        step = saved.step
        config.method.load_state_dict(saved.method())
    method = config.method.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    figures = suite.run(method, probe=True)

    weights = "random init" if options.random_init else f"step {step:,}"
    table = Table(title=f"{run}, {weights}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}")
    Console(highlight=False).print(table)
    if options.json:
        record = {
            "run": str(run),
            "step": step,
            "test": str(test),
            "train": str(train) if train else None,
            "queries": copies[0],
            "references": copies[1],
        }
        options.json.write_text(json.dumps(record | figures, indent=1) + "\n")


def _locate(path: Path) -> tuple[Path, checkpoint.Checkpoint | None]:
    """Return the run and the checkpoint, if there is one, that a path stands for."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the folder of a run or of a checkpoint.")
    if (path / checkpoint.RECORD).exists():
        return path.resolve().parent.parent, checkpoint.read(path)
    run_folder.read_config(path)  # refuses what is no run
    return path, checkpoint.newest(path)


if __name__ == "__main__":
    run_command(main)
