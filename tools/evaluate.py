"""Evaluate an encoder on shard sets: k-NN, linear probe, retrieval, geometry.

    python -m tools.evaluate runs/mine --json figures.json
    python -m tools.evaluate runs/mine --beside_random true
    python -m tools.evaluate --encoder ResNet --encoder.weights resnet18.pth --test DIR --train DIR

The encoder is frozen. Shard sets and their settings come from the run's recipe unless flags say
otherwise. With a run and `--encoder` both are evaluated, in two columns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from shards import durable
from shards.layout import open_shards
from training.command_line import Dotted, program, run_function

if TYPE_CHECKING:
    import torch

    from evaluation.suite import Evaluated, Evaluation
    from pipeline.graph import ViewGroup
    from pipeline.normalisation import Normalisation
    from pipeline.tuning import Tuning
    from training.config import Config
    from training.trained import Precision, Trained

_RANDOM = "random init"  # a column's name
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))


@dataclass(frozen=True)
class _Frozen:
    """What is evaluated, and how it is run."""

    method: Evaluated
    group: ViewGroup
    normalisation: Normalisation
    device: torch.device
    autocast: torch.dtype | None
    tuning: Tuning | None


def main(
    run: Path | None = None,
    *,
    encoder: Dotted = (),
    size: int | None = None,
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
    """Evaluate an encoder on frozen features.

    Args:
        run: folder of a run, or of one of its checkpoints; or an exported encoder.safetensors.
        encoder: network that is evaluated instead, or beside RUN in another column: a class with
            its settings, such as Timm --encoder.name vit_small_patch16_224, and --encoder.weights,
            a file, a run or timm:NAME (without, they are random); or another run.
            --encoder.help CLASS lists the settings.
        size: height and width of the images, in pixels; by default, what the encoder was trained
            on, or is published for.
        test: held-out shard set; by default, the recipe's.
        train: labelled shard set for k-NN and the linear probe; by default, the recipe's.
        queries: shard set of edited copies to find; by default, the recipe's.
        references: shard set to find them in, together with --queries; by default, the recipe's.
        json: file to write the figures to.
        random_init: evaluate the weights that the run began with, instead of the trained ones; a
            folder with its config.yaml is enough.
        beside_random: evaluate these weights too, in a column of their own.
        device: where to compute; auto is the GPU if there is one.
        mixed_precision: precision of the encoder; auto is bf16 where the hardware multiplies it.
    """
    # Here and not above, so that --help takes no seconds.
    from training.named_encoder import open_named, show_help
    from training.settings import parse
    from training.trained import NO_RUN, here

    show_help(encoder, program(main))
    durable.check_writable(json=json)
    alone = run is None or run.is_file()  # without a recipe
    if alone and (random_init or beside_random):
        raise ValueError(
            "random weights are those that a run began with; name a run's folder, or evaluate "
            "--encoder CLASS without --encoder.weights."
        )
    how = {"size": size, "device": device, "mixed_precision": mixed_precision}
    named = [open_named(None, encoder, **how)] if encoder else []
    step, trained = 0, {}
    if run is None or run.is_file():
        config = parse([*NO_RUN, *here(device, mixed_precision)]).config
        if run is not None or not encoder:
            named.append(open_named(run, (), **how))
            step = named[-1].facts["step"]
    else:
        config, step, trained = _run(run, random=random_init, beside=beside_random, **how)
    title = str(run or named[-1].name)
    sets = _sets(config, title, test=test, train=train, queries=queries, references=references)
    frozen = {each.name: _bare(each, config) for each in named}
    found = _evaluated(config, sets, {**trained, **frozen} if alone else {**frozen, **trained})

    _show(title, found)
    *beside, (_, evaluation) = found.items()
    for remark in dict.fromkeys(line for each in found.values() for line in each.remarks):
        Console(highlight=False).print(remark, soft_wrap=True, markup=False)
    if json:
        record = {"run": title, "step": step, **sets, **evaluation.figures}
        if evaluation.remarks:
            record["remarks"] = evaluation.remarks
        others = {name: each.figures for name, each in beside}
        if _RANDOM in others:
            record["random_init"] = others.pop(_RANDOM)
        if others:
            record["beside"] = others
        _write(json, record)
    if not evaluation.figures:
        sys.exit(1)


def _run(
    path: Path,
    *,
    size: int | None,
    device: str,
    mixed_precision: Precision,
    random: bool,
    beside: bool,
) -> tuple[Config, int, dict[str, _Frozen]]:
    """Return a run's configuration, its step, and its methods by their columns' names.

    Args:
        path: folder of the run, or of one of its checkpoints.
        size: of the images, instead of the run's.
        device: auto, cpu or gpu.
        mixed_precision: of the networks.
        random: whether the weights that it began with are evaluated instead of the trained ones.
        beside: whether they are evaluated too.
    """
    import copy

    from training import machine_settings
    from training.run import checkpoint, run_folder
    from training.trained import device_of, locate, recipe

    run, saved = locate(path)
    if saved is None and not random:
        raise ValueError(f"{run} holds no checkpoint yet; let the run reach its first one.")
    config = recipe(run, device=device, mixed_precision=mixed_precision).config
    methods, step = {}, 0
    if random or beside:
        methods[_RANDOM] = copy.deepcopy(config.method)
    if not random and saved is not None:
        step, state = saved.step, saved.method()
        with checkpoint.fits(saved.root, f"{run / run_folder.CONFIG}"):
            config.method.load_state_dict(state)
        methods[f"step {step:,}"] = config.method
    group = config.views if size is None else replace(config.views, size=size)
    where = device_of(config)
    tuning = machine_settings.kept(run) if where.type == "cuda" else None
    how = (group, config.normalisation, where, config.autocast(), tuning)
    return config, step, {name: _Frozen(method, *how) for name, method in methods.items()}


def _bare(trained: Trained, config: Config) -> _Frozen:
    """Return an encoder without a projector; views are made as a configuration says."""
    from evaluation.bare_encoder import BareEncoder

    return _Frozen(
        BareEncoder(trained.encoder),
        replace(config.views, size=trained.size),
        trained.normalisation,
        trained.device,
        trained.autocast,
        trained.tuning,
    )


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


def _sets(config: Config, title: str, **given: str | None) -> dict[str, str | None]:
    """Return the shard sets to evaluate on: those that are given, else the recipe's."""
    test = given["test"] or config.evaluation_test
    if test is None:
        raise ValueError(f"no recipe names a test set for {title}; name one with --test DIR.")
    copies = (given["queries"], given["references"])
    if not any(copies):
        copies = (config.evaluation_queries, config.evaluation_references)
    elif not all(copies):
        raise ValueError("copy detection needs both --queries DIR and --references DIR.")
    train = given["train"] or config.evaluation_train
    return {"test": test, "train": train or None, "queries": copies[0], "references": copies[1]}


def _evaluated(
    config: Config, sets: dict[str, str | None], frozen: Mapping[str, _Frozen]
) -> dict[str, Evaluation]:
    """Return what encoders are worth on the shard sets, by their names."""
    import torch

    from evaluation.suite import Suite

    test, *others = (sets[name] for name in ("test", "train", "queries", "references"))
    train, queries, references = (open_shards(root) if root else None for root in others)
    assert test is not None
    opened = open_shards(test)
    found: dict[str, Evaluation] = {}
    with Progress(*_COLUMNS, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0)

        def show(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done / total)

        for name, each in frozen.items():
            suite = Suite(
                test=opened,
                train=train,
                queries=queries,
                references=references,
                group=each.group,
                device=each.device,
                autocast=each.autocast,
                normalisation=each.normalisation,
                tuning=each.tuning,
                neighbours=config.evaluation_neighbours,
                temperature=config.evaluation_temperature,
                progress=show,
            )
            moved = each.method.to(each.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            found[name] = suite.run(moved, probe=True)
    return found


def _write(path: Path, record: dict[str, object]) -> None:
    durable.replace(path, [json.dumps(record, indent=1).encode(), b"\n"])


if __name__ == "__main__":
    run_function(main)
