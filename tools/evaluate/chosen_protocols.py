"""Protocols with settings of their own: their names, those settings, and how they run.

To add one, write `evaluation/NAME.py` with a subclass of `EvaluationProtocol`, enter it in
`PROTOCOLS` and in `ProtocolName`, and give `main` a parameter of its name and of type `Nested`.
If it names its sets itself (`own_sets`), no --test is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState

from evaluation.augmented_probe import AugmentedProbe
from evaluation.detection import Detection
from evaluation.disc21 import DISC21
from evaluation.fine_tuning import FineTuning
from evaluation.protocol import Evaluation, EvaluationProtocol, Progressed, Trial
from shards.layout import ShardSet
from tools.evaluate.evaluated_encoder import EvaluatedEncoder
from tools.evaluate.kept_on_disk import KeptOnDisk
from training import class_help, packaged_recipes
from training.command_line import several_as_lists
from training.flags import FlagParser
from training.processes import smallest

PROTOCOLS: dict[str, type[EvaluationProtocol]] = {
    "augmented_probe": AugmentedProbe,
    "disc21": DISC21,
    "fine_tuning": FineTuning,
    "detection": Detection,
}


@dataclass(frozen=True)
class Chosen:
    """A protocol with its settings."""

    name: str
    protocol: EvaluationProtocol


def chosen(
    names: Sequence[str], settings: Mapping[str, Sequence[str]], program: str
) -> list[Chosen]:
    """Return those of the protocols that have settings, with these as a command line says.

    Args:
        names: of all protocols that are asked for.
        settings: the flags --NAME.SETTING with their values, by protocol; --NAME.recipe names a
            YAML file of some, of which later flags change some.
        program: how the command is called, for --NAME.help.

    Raises:
        ValueError: a setting is unknown or wrong, or of a protocol that is not asked for.
    """
    found = []
    for name, protocol in PROTOCOLS.items():
        words = list(settings.get(name, ()))
        if f"--{name}.help" in words:
            sys.stdout.write(class_help.text(protocol, name, program))
            sys.exit(0)
        if words and name not in names:
            raise ValueError(f"{words[0]} is given without its protocol; add --protocol {name}.")
        if name in names:
            parser = FlagParser()
            parser.add_class_arguments(protocol, name)
            words = _with_recipe(words, name)
            read = parser.read(several_as_lists(words, protocol)).as_dict()[name]
            read.pop("__path__", None)  # of the recipe
            found.append(Chosen(name, protocol(**read)))
    return found


def _with_recipe(words: Sequence[str], name: str) -> list[str]:
    """Return the flags of a protocol with its recipe as the parser takes it.

    Raises:
        ValueError: the recipe is no file, and none that comes with viewrank.
    """
    found, left = list[str](), iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        if flag != f"--{name}.recipe":
            found.append(word)
            continue
        given = value if equals else next(left, "")
        _, path = packaged_recipes.located(["--config", given])
        if not Path(path).is_file():
            raise ValueError(f"{flag}={given} is no file; name a YAML file of settings.")
        found += [f"--{name}", path]
    return found


def prepare(
    chosen: Chosen,
    column: EvaluatedEncoder,
    train: ShardSet | None,
    test: ShardSet | None,
    *,
    keep: Path | None,
    processes: PartialState,
    progress: Progressed,
) -> Callable[[], Evaluation]:
    """Return a call that gives what a protocol finds out; what was found out is not done again.

    Args:
        chosen: the protocol.
        column: the encoder.
        train: what is trained on; None if none is given.
        test: what is reported on; None if all protocols name their own.
        keep: folder for the states; None keeps nothing.
        processes: of this command.
        progress: is told how far it is.

    Raises:
        ValueError: the protocol cannot take these sets.
    """
    encoder = column.method.encoder
    own = chosen.protocol.sets()
    train, test = own.pop("train", train), own.pop("test", test)
    facts = {
        "protocol": chosen.name,
        "settings": asdict(chosen.protocol),  # pyright: ignore[reportArgumentType]
        "encoder": column.digest,
        "network": dict(column.network),
        "size": column.group.size,
        "normalisation": [*column.normalisation.mean, *column.normalisation.std],
        "train": train and train.manifest.digest(),
        "test": test and test.manifest.digest(),
        **{name: each.manifest.digest() for name, each in own.items()},
        **chosen.protocol.facts(),
        "machine": f"{column.device.type}, {column.autocast or 'float32'}",
        "world_size": processes.num_processes,
    }
    rank = processes.process_index
    kept = KeptOnDisk(keep, chosen.name, facts, rank=rank, agree=smallest)
    if (before := kept.found()) is not None:
        return lambda: before
    trial = Trial(
        encoder=encoder,
        method=column.method,
        size=column.group.size,
        normalisation=column.normalisation,
        device=column.device,
        train=train,
        test=test,  # pyright: ignore[reportArgumentType]
        kept=kept,
        autocast=column.autocast,
        tuning=column.tuning,
        rank=rank,
        world_size=processes.num_processes,
        progress=progress,
        more=own,
    )
    chosen.protocol.check(trial)

    def run() -> Evaluation:
        with kept.alone():
            if (found := kept.found()) is None:  # another column or set may be the same trial
                found = chosen.protocol.run(trial)
                kept.finish(found)
        return found

    return run
