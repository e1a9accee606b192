"""Evaluate an encoder: k-NN, probe, retrieval, geometry, and what needs training.

    python -m tools.evaluate runs/mine --json figures.json
    python -m tools.evaluate runs/mine --protocol knn linear --beside_random true
    python -m tools.evaluate runs/mine --sets data/cifar10 data/stl10
    python -m tools.evaluate --encoder ResNet --encoder.weights FILE --test DIR --train DIR

Shard sets and their settings come from the run's recipe unless flags say otherwise. With a run and
`--encoder` both are evaluated, in two columns. A protocol that trains goes on where the same
command was stopped. `accelerate launch` or `torchrun` starts it with several processes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from shards import durable
from shards.layout import open_shards
from shards.one_line import one_line
from training.command_line import Dotted, Nested, program, run_function

if TYPE_CHECKING:
    from accelerate import PartialState

    from evaluation.protocol import Evaluation, Progressed
    from evaluation.suite import Suite
    from tools.evaluate.chosen_protocols import Chosen
    from tools.evaluate.evaluated_encoder import EvaluatedEncoder
    from training.config import Config

ProtocolName = Literal[
    "frozen",
    "views",
    "spectra",
    "copies",
    "retrieval",
    "knn",
    "linear",
    "few_shot",
    "multi_label",
    "multi_label_linear",
    "augmented_probe",
    "disc21",
    "fine_tuning",
    "detection",
]
_SHOWN = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    TextColumn("{task.percentage:.0f} %"),
)
_Sets = dict[str, "str | None"]


@dataclass(frozen=True)
class _Asked:
    """What is evaluated, by which protocols, on which sets."""

    config: Config
    """The recipe, or the defaults."""
    columns: Mapping[str, EvaluatedEncoder]
    """By their names."""
    frozen: Sequence[str]
    """Protocols of frozen features."""
    chosen: Sequence[Chosen]
    """The others, with their settings."""
    keep: Path | None
    """Folder for the states of those."""
    processes: PartialState


def main(
    run: Path | None = None,
    *,
    protocol: Sequence[ProtocolName] = ("frozen",),
    augmented_probe: Nested = (),
    fine_tuning: Nested = (),
    detection: Nested = (),
    encoder: Dotted = (),
    size: int | None = None,
    test: str | None = None,
    train: str | None = None,
    sets: list[str] | None = None,
    queries: str | None = None,
    references: str | None = None,
    json: Path | None = None,
    keep: Path | None = None,
    random_init: bool = False,
    beside_random: bool = False,
    disc21: Nested = (),
    device: Literal["auto", "cpu", "gpu"] = "auto",
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto",
) -> None:
    """Evaluate an encoder by one or more protocols.

    Args:
        run: folder of a run, or of one of its checkpoints; or an exported encoder.safetensors.
        protocol: one or more. frozen: all quick ones that need no training of a network, which are
            views (retrieval of the same image's views, geometry, RankMe and LiDAR of embeddings),
            spectra (RankMe and LiDAR of features), copies (with --queries), retrieval (of the same
            class), knn, linear and few_shot (1, 5 and 10 images a class); for sets with categories
            multi_label (k-NN, and retrieval by shared categories) and multi_label_linear (a linear
            probe). augmented_probe: a linear layer trained on random crops. fine_tuning: the whole
            encoder, on shares of the labels. disc21: copy detection on the files of the 2021 Image
            Similarity Challenge. detection: a detector on the encoder, trained on the boxes of COCO
            or VOC.
        augmented_probe: a setting of that protocol; --augmented_probe.help lists them.
        fine_tuning: a setting of that protocol, such as --fine_tuning.labels 0.01 0.1;
            --fine_tuning.help lists them.
        detection: a setting of that protocol, or --detection.recipe FILE with some, such as
            recipes/detection/voc_c4.yaml; --detection.help lists them.
        encoder: network that is evaluated instead, or beside RUN in another column: a class with
            its settings, such as Timm --encoder.name vit_small_patch16_224, and --encoder.weights,
            a file, a run or timm:NAME (without, they are random); or another run.
            --encoder.help CLASS lists the settings.
        size: height and width of the images, in pixels; by default, what the encoder was trained
            on, or is published for.
        test: held-out shard set; by default, the recipe's.
        train: shard set with labels or categories, for k-NN, probes and fine-tuning; by default,
            the recipe's.
        sets: instead of --test and --train, folders that hold a shard set train and one of test or
            val, each evaluated on its own; those with images that a run was trained on are named.
        queries: shard set of edited copies to find; by default, the recipe's.
        references: shard set to find them in, together with --queries; by default, the recipe's.
        json: file to write the figures to.
        keep: folder in which protocols that train keep their state and their figures; by default,
            RUN/evaluations. For an encoder that is no run, by default nothing is kept.
        random_init: evaluate the weights that the run began with, instead of the trained ones; a
            folder with its config.yaml is enough.
        beside_random: evaluate these weights too, in a column of their own.
        disc21: settings of that protocol; --disc21.help lists them.
        device: where to compute; auto is the GPU if there is one.
        mixed_precision: precision of the encoder; auto is bf16 where the hardware multiplies it.
    """
    # Here and not above, so that --help takes no seconds.
    from tools.evaluate import chosen_protocols, figure_table
    from tools.evaluate.pretraining import pretrained_on
    from training.launch import follow_launcher
    from training.named_encoder import show_help
    from training.processes import join

    show_help(encoder, program(main))
    settings = {
        "augmented_probe": augmented_probe,
        "disc21": disc21,
        "fine_tuning": fine_tuning,
        "detection": detection,
    }
    chosen = chosen_protocols.chosen(protocol, settings, program(main))
    durable.check_writable(json=json)
    follow_launcher()
    processes = join(device)
    how = {"size": size, "device": device, "mixed_precision": mixed_precision}
    opened = _opened(run, encoder, random=random_init, beside=beside_random, **how)
    title, step, folder, config, columns = opened
    keep = keep or (folder and folder / "evaluations")
    asked = _Asked(config, columns, _frozen(protocol), chosen, keep, processes)
    needed = bool(asked.frozen) or not all(each.protocol.own_sets for each in chosen)
    given = {"test": test, "train": train, "queries": queries, "references": references}
    data = several_sets(sets, given) if sets else {"": _sets(config, title, needed, **given)}

    found, seconds, failed = _evaluated(asked, data)
    if processes.is_main_process:
        if folder is not None:
            for name, lines in pretrained_on(config.shards, data, all_sets=bool(sets)).items():
                found[name][next(reversed(found[name]))].remarks += lines
        if json:  # first: who reads what is printed, such as head, may not read to its end
            figure_table.write(json, title, step, data, found, failed=failed)
        figure_table.show(title, found, seconds)
    if failed or not any(last.figures for *_, last in (each.values() for each in found.values())):
        sys.exit(1)


def _opened(
    run: Path | None, encoder: Sequence[str], *, random: bool, beside: bool, **how: Any
) -> tuple[str, int, Path | None, Config, dict[str, EvaluatedEncoder]]:
    """Return the title, the step, the run's folder, the recipe or the defaults, and the columns.

    Args:
        run: as `main` has it; without one there is no folder, and the step is 0.
        encoder: likewise.
        random: whether the weights that the run began with are evaluated, not the trained ones.
        beside: whether they are evaluated too.
        how: size, device and precision.

    Raises:
        ValueError: it cannot be opened, or has no weights that it began with.
    """
    from tools.evaluate.evaluated_encoder import config_of, folder_of, of_encoder, of_run
    from training.named_encoder import open_named

    if (random or beside) and (run is None or run.is_file()):
        raise ValueError(
            "random weights are those that a run began with; name a run's folder, or evaluate "
            "--encoder CLASS without --encoder.weights."
        )
    folder = folder_of(run)
    named = [open_named(None, encoder, **how)] if encoder else []
    step, trained = 0, {}
    if run is not None and not run.is_file():
        config, step, trained = of_run(run, random=random, beside=beside, **how)
    else:
        config = config_of(folder, how["device"], how["mixed_precision"])
        if run is not None or not encoder:
            named.append(open_named(run, (), **how))
            step = named[-1].facts["step"]
    columns = {each.name: of_encoder(each, config) for each in named}
    return str(run or named[-1].name), step, folder, config, {**columns, **trained}


def _frozen(protocol: Sequence[str]) -> Sequence[str]:
    """Return the protocols of frozen features among those that are asked for."""
    from evaluation.suite import FROZEN

    return FROZEN if "frozen" in protocol else [name for name in FROZEN if name in protocol]


def _sets(config: Config, title: str, needed: bool, **given: str | None) -> _Sets:
    """Return the shard sets to evaluate on: those that are given, else the recipe's.

    Args:
        config: the recipe's.
        title: what is evaluated.
        needed: whether there must be a test set.
        given: by flag.
    """
    test = given["test"] or config.evaluation_test
    if not needed:
        return dict.fromkeys(given)
    if test is None:
        raise ValueError(f"no recipe names a test set for {title}; name one with --test DIR.")
    copies = (given["queries"], given["references"])
    if not any(copies):
        copies = (config.evaluation_queries, config.evaluation_references)
    elif not all(copies):
        raise ValueError("copy detection needs both --queries DIR and --references DIR.")
    train = given["train"] or config.evaluation_train
    return {"test": test, "train": train or None, "queries": copies[0], "references": copies[1]}


def several_sets(folders: Sequence[str], given: Mapping[str, str | None]) -> dict[str, _Sets]:
    """Return the shard sets in each of some folders, by the folders' names."""
    if also := [name for name, value in given.items() if value]:
        raise ValueError(f"--sets and --{also[0]} are both given; --sets names all shard sets.")
    found: dict[str, _Sets] = {}
    for folder in map(Path, folders):
        held_out = [name for name in ("test", "val") if (folder / name).is_dir()]
        if not (folder / "train").is_dir() or not held_out:
            raise ValueError(
                f"--sets {folder}: expected a folder that holds a shard set train and one of test "
                "or val. Name others with --train DIR and --test DIR."
            )
        name = folder.name if folder.name not in found else str(folder)
        paths = {"test": str(folder / held_out[0]), "train": str(folder / "train")}
        found[name] = {**paths, "queries": None, "references": None}
    return found


def _suites(asked: _Asked, sets: _Sets, show: Progressed) -> dict[str, Suite]:
    """Return the evaluations of the columns on some shard sets, by the columns' names.

    Without a test set there are none.

    Raises:
        ValueError: the sets do not fit together.
    """
    from evaluation.suite import Suite

    test, train, queries, references = (
        open_shards(root) if (root := sets[name]) else None
        for name in ("test", "train", "queries", "references")
    )
    if test is None:
        return {}
    return {
        name: Suite(
            test=test,
            train=train,
            queries=queries,
            references=references,
            group=column.group,
            device=column.device,
            autocast=column.autocast,
            normalisation=column.normalisation,
            rank=asked.processes.process_index,
            world_size=asked.processes.num_processes,
            tuning=column.tuning,
            neighbours=asked.config.evaluation_neighbours,
            temperature=asked.config.evaluation_temperature,
            progress=show,
        )
        for name, column in asked.columns.items()
    }


def _evaluated(
    asked: _Asked, data: Mapping[str, _Sets]
) -> tuple[dict[str, dict[str, Evaluation]], dict[str, dict[str, float]], list[str]]:
    """Return what is found out about the columns on some sets, and how long it took.

    Returns:
        {set: {column: what is found out}}, {column: {protocol: seconds on all sets}}, and the
        protocols that failed while others found something.
    """
    from evaluation.protocol import Evaluation

    hidden = not asked.processes.is_main_process
    console = Console(stderr=True)
    with Progress(*_SHOWN, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=1.0)

        def show(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done / total)

        # All of them first: the last set is refused before the first is evaluated.
        suites = {name: _suites(asked, sets, show) for name, sets in data.items()}
        protocols = {
            (name, where): _prepared(asked, column, of.get(name), show)
            for name, column in asked.columns.items()
            for where, of in suites.items()
        }
        found: dict[str, dict[str, Evaluation]] = {name: {} for name in data}
        seconds: dict[str, dict[str, float]] = {}
        failed: list[str] = []
        for name, each in asked.columns.items():
            column, spent = each.placed(), seconds.setdefault(name, {})
            for where, of_columns in suites.items():
                evaluation, suite = Evaluation(), of_columns.get(name)
                if suite is not None and asked.frozen:
                    with _timed("frozen features", spent):
                        evaluation = suite.run(column.method, asked.frozen)
                for chosen, run in zip(asked.chosen, protocols[name, where], strict=True):
                    try:
                        with _timed(chosen.name, spent):
                            evaluation.add(run())
                    except ValueError as error:
                        # What others found is kept; of several processes, one alone may fail.
                        if not evaluation.figures or asked.processes.num_processes > 1:
                            raise
                        evaluation.remarks.append(f"no {chosen.name}: {one_line(str(error))}")
                        failed.append(chosen.name)
                found[where][name] = evaluation
    return found, seconds, failed


def _prepared(
    asked: _Asked, column: EvaluatedEncoder, suite: Suite | None, show: Progressed
) -> list[Callable[[], Evaluation]]:
    """Return the chosen protocols of one column on one set, none of which refuses these."""
    from tools.evaluate import chosen_protocols

    return [
        chosen_protocols.prepare(
            chosen,
            column,
            suite and suite.train,
            suite and suite.test,
            keep=asked.keep,
            processes=asked.processes,
            progress=show,
        )
        for chosen in asked.chosen
    ]


@contextmanager
def _timed(what: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time spent inside to that of the same kind."""
    begin = time.perf_counter()
    yield
    seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - begin


if __name__ == "__main__":
    run_function(main)
