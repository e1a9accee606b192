"""Trackers: the packages through which Accelerate shows a run's records elsewhere.

    RUN/PROJECT/      TensorBoard's files
    RUN/wandb/        Weights & Biases' own files; so dvclive/, swanlab/, comet_ml/ and .aim/
    RUN/wandb.json    which run this is there; so of each that numbers or names runs by itself

MLflow, ClearML and Trackio put their files where their own settings say. A run that continues goes
on where it was. It makes the records since its checkpoint again: of TensorBoard the old ones are
hidden, and Weights & Biases, online, drops the new ones; MLflow, Trackio and DVCLive show both. One
that was ended before its first checkpoint begins anew, perhaps with other settings: it is another.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from shards import durable
from training.config import Config
from training.monitor import Record
from training.processes import Processes
from training.run.failure import Phase
from training.run.watchdog import TRACKERS
from training.settings import Settings

_CHOSEN: Mapping[str, Callable[[], str]] = {
    "wandb": lambda: secrets.token_hex(4),
    "trackio": lambda: secrets.token_hex(4),
    "comet_ml": lambda: secrets.token_hex(16),  # 32 to 50 characters
    "swanlab": lambda: secrets.token_hex(11)[:21],  # 21 exactly
}
"""Makes the identity of a new run, where it may be chosen."""
_TOLD: Mapping[str, Callable[[Any], str]] = {
    "mlflow": lambda tracker: tracker.info.run_id,
    "aim": lambda tracker: tracker.hash,
    "clearml": lambda tracker: tracker.id,
}
"""Returns the identity of a run that has begun, where the tracker gives it."""


class Trackers:
    """Sends the records of a run to the trackers that its configuration names.

    Args:
        settings: of the run; the trackers show all of them.
        processes: of which the first one speaks.
        phase: is kept up to date.
        step: where the run starts.

    Raises:
        ValueError: a tracker of a new run does not begin; one that is continued goes on without.
    """

    def __init__(
        self, settings: Settings, processes: Processes, phase: Phase, *, step: int
    ) -> None:
        self._phase = phase
        self._begun: list[Any] = []
        for name in settings.config.trackers if processes.first else ():
            try:
                self._begun.append(_begin(name, settings, step))
            except Exception as error:  # each package raises its own
                text = (
                    f"{name} cannot begin ({' '.join(str(error).split())}). Log in as its package "
                    "says, or work without a network (Weights & Biases: wandb login, or "
                    "WANDB_MODE=offline)"
                )
                if step == 0:
                    raise ValueError(f"{text}; or leave it out of --trackers.") from error
                sys.stderr.write(
                    f"warning: the run goes on, and {text}; if the run was deleted there, remove "
                    f"{settings.config.run}/{name}.json\n"
                )
        self._open = list(self._begun)

    def log(self, record: Record) -> None:
        """Send a record; a tracker that fails gets no more of them, and training goes on."""
        if not self._open:
            return
        name, patience = self._phase.name, self._phase.patience
        self._phase.enter(TRACKERS, patience=max(10, patience))
        step = int(record["step"])
        figures = {n: value for n, value in record.items() if n not in ("step", "evaluation")}
        for each in list(self._open):
            try:
                each.log(figures, step=step)
                if each.name == "wandb" and record.get("evaluation") == "final":
                    # Had the run been cut off before this, its last step would be past already.
                    each.tracker.summary.update(figures)
            except Exception as error:  # each package raises its own
                self._open.remove(each)
                sys.stderr.write(f"warning: {each.name} gets no more records: {error}\n")
        self._phase.enter(name, patience=patience)

    def finish(self) -> None:
        """End them, those too that failed, for what they have; none ends the run by its failure."""
        for each in self._begun:
            try:
                each.finish()
            except Exception as error:  # each package raises its own
                sys.stderr.write(f"warning: {each.name} may lack records: {error}\n")


def _begin(name: str, settings: Settings, step: int) -> GeneralTracker:
    """Return a tracker that has begun, and knows the settings.

    Args:
        name: of the tracker.
        settings: of the run.
        step: where the run starts.
    """
    config = settings.config
    identity = _identity(config.run, name, new=step == 0)
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    folder = [config.run] if kind.requires_logging_directory else []
    tracker = kind(config.tracker_project, *folder, **_options(name, config, step, identity))
    tracker.start()
    told = _TOLD.get(name)
    goes_on = identity is not None if told else step > 0
    if told and not goes_on:
        _keep(config.run, name, told(tracker.tracker))
    # Some refuse other values than they had, and TensorBoard shows them once a start.
    if not goes_on or name in _CHOSEN:
        tracker.store_init_configuration({k: str(value) for k, value in settings.flat().items()})
    return tracker


def _options(name: str, config: Config, step: int, identity: str | None) -> dict[str, Any]:
    """Return what a tracker is begun with, besides the project.

    Args:
        name: of the tracker.
        config: of the run.
        step: where the run starts.
        identity: which run it is there; None if it is new and the tracker says so itself.
    """
    title, own = config.tracker_name or config.run.absolute().name, str(config.run / name)
    if name == "tensorboard":
        return {"purge_step": step + 1}
    if name == "wandb":
        return {"id": identity, "resume": "allow", "name": title, "dir": str(config.run)}
    if name == "trackio":  # which knows a run by its name
        return {"name": f"{title}-{identity}", "resume": "allow", "embed": False}
    if name == "comet_ml":
        from comet_ml import ExperimentConfig  # pyright: ignore[reportMissingImports]

        more = ExperimentConfig(name=title, offline_directory=own)
        return {"experiment_key": identity, "experiment_config": more}
    if name == "swanlab":
        return {"id": identity, "resume": "allow", "experiment_name": title, "logdir": own}
    if name == "aim":  # its folder is the run's
        return {"run_hash": identity}
    if name == "mlflow":
        return {"run_id": identity, "run_name": title}
    if name == "clearml":
        # Steps are as they are given, not counted on from the last one.
        again = {"reuse_last_task_id": identity, "continue_last_task": 0}
        return {"task_name": title} | (again if identity else {"reuse_last_task_id": False})
    return {"dir": own, "resume": step > 0, "dvcyaml": f"{own}/dvc.yaml"}  # DVCLive


def _identity(run: Path, name: str, *, new: bool) -> str | None:
    """Return which run this is to a tracker, the same at each start since something was saved.

    None for a new run that the tracker will name, and for those that need no name.

    Args:
        run: its folder.
        name: of the tracker.
        new: nothing has been saved; an identity that is there is another run's.

    Raises:
        ValueError: the file is damaged.
    """
    if name not in {*_CHOSEN, *_TOLD}:
        return None
    path = run / f"{name}.json"
    if new or not path.exists():
        return _keep(run, name, _CHOSEN[name]()) if name in _CHOSEN else None
    try:
        identity = json.loads(durable.read(path))["id"]
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", identity):
            raise ValueError("its id has other characters than letters and digits")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not what was written ({error}). Restore it, or remove it: {name} then "
            "begins another run."
        ) from None
    return identity


def _keep(run: Path, name: str, identity: str) -> str:
    durable.replace_json(run / f"{name}.json", {"id": identity})
    return identity
