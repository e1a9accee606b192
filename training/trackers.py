"""Trackers: TensorBoard and Weights & Biases, through Accelerate, show a run's records elsewhere.

    RUN/PROJECT/     TensorBoard's files
    RUN/wandb/       Weights & Biases' own files
    RUN/wandb.json   which run this is there

A run that continues goes on where it was. It makes the records since its checkpoint again: of
TensorBoard the old ones are hidden, and Weights & Biases, online, drops the new ones.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from pathlib import Path
from typing import Any

from shards import durable
from training.monitor import Record
from training.processes import Processes
from training.settings import Settings

WANDB = "wandb.json"


class Trackers:
    """Sends the records of a run to the trackers that its configuration names.

    Args:
        settings: of the run; the trackers show all of them.
        processes: of which the first one speaks.
        step: where the run starts.

    Raises:
        ValueError: a tracker does not begin.
    """

    def __init__(self, settings: Settings, processes: Processes, *, step: int) -> None:
        config = settings.config
        self._trackers: list[Any] = []
        if not (config.trackers and processes.first):
            return
        options: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": step + 1}}
        if "wandb" in config.trackers:
            name = config.tracker_name or config.run.absolute().name
            identity = _identity(config.run / WANDB)
            options["wandb"] = {"id": identity, "resume": "allow", "name": name}
            options["wandb"]["dir"] = str(config.run)
        flat = {name: str(value) for name, value in settings.flat().items()}
        try:
            processes.accelerator.init_trackers(config.tracker_project, init_kwargs=options)
            for each in processes.accelerator.trackers:
                if each.name != "tensorboard" or step == 0:  # which would show them once a start
                    each.store_init_configuration(flat)
        except Exception as error:  # each package raises its own
            raise ValueError(
                f"trackers={config.trackers} cannot begin ({' '.join(str(error).split())}). "
                "Weights & Biases: log in (wandb login), or set WANDB_MODE=offline; if its run was "
                f"deleted there, remove {config.run / WANDB}. Or leave --trackers out."
            ) from error
        self._trackers = list(processes.accelerator.trackers)

    def log(self, record: Record) -> None:
        """Send a record; a tracker that fails gets no more of them, and training goes on."""
        step = int(record["step"])
        figures = {n: value for n, value in record.items() if n not in ("step", "evaluation")}
        for each in list(self._trackers):
            try:
                each.log(figures, step=step)
                if each.name == "wandb" and record.get("evaluation") == "final":
                    # Had the run been cut off before this, its last step would be past already.
                    each.tracker.summary.update(figures)
            except Exception as error:  # each package raises its own
                self._trackers.remove(each)
                sys.stderr.write(f"warning: {each.name} gets no more records: {error}\n")


def _identity(path: Path) -> str:
    """Return which run this is at Weights & Biases, the same at each start.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        identity = json.loads(durable.read(path))["id"]
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", identity):
            raise ValueError("its id has other characters than letters and digits")
    except FileNotFoundError:
        identity = secrets.token_hex(4)
        durable.replace(path, [json.dumps({"id": identity}).encode(), b"\n"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not what was written ({error}). Restore it, or remove it: Weights & Biases "
            "then begins another run."
        ) from None
    return identity
