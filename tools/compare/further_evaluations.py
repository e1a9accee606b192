"""The flags of tools.evaluate with which each run of a comparison is evaluated besides."""

from __future__ import annotations

import shlex

from shards.layout import open_shards
from tools.evaluate import __main__ as evaluate
from tools.evaluate import chosen_protocols
from training.command_line import program, read

OWN = ("json", "keep", "random_init", "beside_random", "device", "mixed_precision")
"""What the comparison sets for every run."""


def flags(text: str) -> list[str]:
    """Return the words of a command line's part, after reading them as tools.evaluate will.

    Raises:
        ValueError: a flag, a protocol, a setting or a shard set is wrong, or the comparison's own.
    """
    words = shlex.split(text)
    try:
        _check(words)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"--evaluate: {error}") from error
    return words


def _check(words: list[str]) -> None:
    if words and not words[0].startswith("--"):
        raise ValueError(f"{words[0]} is no flag; expected flags such as --protocol few_shot.")
    for word in words:
        if word.partition("=")[0].removeprefix("--") in OWN and word.startswith("--"):
            raise ValueError(f"{word} is what the comparison sets for every run; leave it out.")
    _, values = read(evaluate.main, ["RUN", *words])
    settings = {name: values[name] for name in chosen_protocols.PROTOCOLS}
    chosen_protocols.chosen(values["protocol"], settings, program(evaluate.main))
    given = {name: values[name] for name in ("test", "train", "queries", "references")}
    several = evaluate.several_sets(values["sets"], given) if values["sets"] else {"": given}
    for sets in several.values():
        for root in filter(None, sets.values()):
            open_shards(root)
