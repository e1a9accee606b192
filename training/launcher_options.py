"""What Accelerate's launcher was asked for, by flags or its configuration file.

`train.py` takes the processes and their machines from it. All else is a setting of `train.py`, or
is nothing that it can do: the first is named, the second refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from training.config import Config, switched_on
from training.launch import launched, started_with

STRATEGIES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""Ways to divide a network, by the variable that the launcher sets."""


def refuse(world_size: int) -> None:
    """Refuse what the launcher was asked for and a run cannot do.

    `accelerate launch --cpu --num_processes 2` starts a single process, silently; so does a
    configuration file with `distributed_type: MULTI_CPU` (Accelerate 1.15).

    Args:
        world_size: number of processes that were started.

    Raises:
        ValueError: what it is, and what to do instead.
    """
    asked, where = _asked_processes() if launched() else (1, "")
    if asked > world_size == 1:
        raise ValueError(
            f"the launcher was asked for {asked} processes by {where} but started one: without "
            "--multi_gpu Accelerate ignores that on CPUs. For processes without GPUs use "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {asked} "
            "train.py …; for a single one, python train.py …"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise ValueError(
            f"gradient_accumulation_steps={steps}, but objectives compare the samples of a batch "
            "with each other: average precision over parts of it is not that of the whole. For a "
            "batch larger than memory leave it out and set --micro_batch_size, which keeps the "
            "whole batch's gradient."
        )
    for variable, strategy in STRATEGIES.items():
        if switched_on(variable):
            raise ValueError(
                f"the launcher was asked for {strategy}, by its flags or {_file()}, but a run has "
                "the whole network on each process. Launch with --multi_gpu, or take it out of "
                "that file (accelerate config)."
            )


def overruled(config: Config) -> Iterator[str]:
    """Yield what the launcher was asked for and the run's own settings decide otherwise.

    Args:
        config: of the run.
    """
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        here = str(config.compile).lower()
        yield _overruled(f"dynamo_backend={backend}", "--compile", here)
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", config.precision()):  # the launcher says no without being asked
        yield _overruled(f"mixed_precision={precision}", "--mixed_precision", config.precision())


def _overruled(asked: str, flag: str, here: str) -> str:
    return f"the launcher's {asked} is not followed: {flag} of train.py decides, here {here}"


def _asked_processes() -> tuple[int, str]:
    """Return how many processes the launcher was asked for, and where; 1 if nowhere."""
    words = _before_script(started_with(os.getppid()))
    given = _value(words, ("--num_processes", "--num-processes", "-n"))
    if given is not None:
        return (int(given) if given.isdigit() else 1), "--num_processes"
    if not any("accelerate" in word for word in words) or "--cpu" in words:
        return 1, ""  # with --cpu Accelerate reads no default file
    from accelerate.commands.config.config_args import load_config_from_file

    path = _value(words, ("--config_file", "--config-file"))
    try:
        asked = getattr(load_config_from_file(path), "num_processes", 1)
    except (OSError, ValueError):  # none; a broken one has ended the launcher
        return 1, ""
    return (asked if isinstance(asked, int) else 1), path or _file()


def _file() -> str:
    """Return where Accelerate's own configuration file is, for people."""
    from accelerate.commands.config.config_args import default_config_file

    return default_config_file.replace(os.path.expanduser("~"), "~")


def _before_script(words: list[str]) -> list[str]:
    """Return the part of a command line that is the launcher's: what stands before the script."""
    for position, word in enumerate(words):
        if word.endswith(".py") and position > 0 and "accelerate" not in word:
            return words[:position]
    return words


def _value(words: list[str], names: tuple[str, ...]) -> str | None:
    for position, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in names:
            return value or "".join(words[position + 1 : position + 2])
    return None
