"""The run's folder: it keeps one configuration and refuses another.

    RUN/config.yaml           the resolved configuration: a recipe that repeats the run
    RUN/metrics.jsonl         one record a line: training steps and evaluations
    RUN/checkpoints/          see `training.run.checkpoint`
    RUN/encoder.safetensors   the trained encoder, see `training.exported`
    RUN/ranks/, failure.json  see `training.run.failure`
    RUN/dumps/                see `training.run.dump`
    RUN/.lock                 empty; locked as long as a process trains in the folder

Every file in it is complete: it is written under another name and renamed.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from shards import durable
from training import exported, yaml_text
from training.monitor import records
from training.run.checkpoint import Checkpoint, exists, last_step
from training.run.failure import Gone
from training.settings import JUDGED, Settings, resume_rule

CONFIG = "config.yaml"
LOCK = ".lock"
_OF_A_RUN = {"shards", "views", "method"}
_taken: dict[Path, int] = {}  # open folders; the system gives the number of an open one to no other


def check(run: Path, settings: Settings) -> None:
    """Refuse a folder that is not this run's.

    Raises:
        ValueError: the folder holds another configuration, or something that is no run, or a
            finished one whose checkpoints are gone.
    """
    if not run.exists():
        return
    if not run.is_dir():
        raise ValueError(f"run={run} is a file; give a folder that is new or holds this run.")
    if (run / CONFIG).exists():
        saved = read_config(run)
        if not saved.keys() >= _OF_A_RUN:
            raise ValueError(
                f"{run / CONFIG} is no configuration of viewrank; give a new or empty folder as "
                "--run."
            )
        if (run / exported.NAME).exists() and not exists(run):
            raise ValueError(
                f"{run} is finished, and its checkpoints are gone: training would begin again, and "
                f"replace {exported.NAME} and all records. Give another --run, or remove it."
            )
        changed = settings.changed(saved)
        if changed and exists(run):  # without a checkpoint there is nothing to lose
            reshapable = all(resume_rule(line.partition(":")[0]) == "reshaped" for line in changed)
            more = " --reshape_data true goes on with these, the epoch begins again."
            raise ValueError(
                f"{run} holds a run with another configuration ({'; '.join(changed)}). Give "
                "another --run for a new run, or the old settings to continue this one."
                + (more if reshapable else "")
            )
        judged = [line for line in settings.judged_otherwise(saved) if line.startswith(JUDGED)]
        if judged and exists(run) and _is_finished(run):
            raise ValueError(
                f"{run} is finished, and its figures are of other evaluations ({'; '.join(judged)})"
                f". Give the old settings, or judge it besides: python -m tools.evaluate {run}."
            )
    elif any(path.suffix != ".partial" and path.name != LOCK for path in run.iterdir()):
        raise ValueError(
            f"{run} holds files but no {CONFIG}, so it is no run of viewrank; give a new or empty "
            "folder as --run."
        )


def _is_finished(run: Path) -> bool:
    finals = (record["step"] for record in records(run) if record.get("evaluation") == "final")
    return last_step(run) in finals


def take(run: Path) -> bool:
    """Take a run's folder for this process until it ends, however it ends.

    To be done before anything in it is read: nothing changes there any more.

    Returns:
        False if there is no such run yet.

    Raises:
        ValueError: another process is training in it.
    """
    if not (run / CONFIG).exists():
        return False
    _lock(run)
    return True


def _lock(run: Path) -> None:
    # Opened for writing: NFS locks no other files across hosts. A link would lead outside.
    _taken[run] = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        # The file stays, but there is nothing to clean up: the lock goes with the process.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"another process is training in {run}. Wait for it to end, or give another --run."
        ) from None
    except OSError as error:
        os.close(descriptor)
        sys.stderr.write(
            f"warning: {run / LOCK} cannot be locked ({error.strerror}), so nothing keeps a second "
            "process from training in that folder\n"
        )


def check_there(run: Path) -> None:
    """Refuse to go on where the folder was deleted, renamed or replaced while this process trained.

    Nothing would be kept. A disk that fails is no such case: what is to be written waits for it.

    Raises:
        Gone: of the folder that this process took, nothing is left under its name.
    """
    try:
        (run / CONFIG).stat()
        here, taken = run.stat(), os.fstat(_taken[run]) if run in _taken else run.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        return
    else:
        if (here.st_dev, here.st_ino) == (taken.st_dev, taken.st_ino):
            return
    raise Gone(
        f"{run} has gone while this process trained in it: was it deleted, renamed, or its disk "
        "unmounted? Training ends, as nothing would be kept. Bring the folder back and repeat the "
        "command, or give another --run."
    )


def prepare(run: Path, settings: Settings, *, taken: bool) -> None:
    """Write the run's configuration into its folder; of a new run, make and take that first.

    Args:
        run: the run's folder.
        settings: of the run.
        taken: what `take` returned, before this run looked for checkpoints.

    Raises:
        ValueError: another process is training in it, or has trained there meanwhile.
    """
    if not taken:
        run.mkdir(parents=True, exist_ok=True)
        _lock(run)
        if exists(run):
            raise ValueError(
                f"another process has trained in {run} since this one began. The same command "
                "continues that run; give another --run for a new one."
            )
    durable.replace(run / CONFIG, [settings.yaml().encode()])


def read_config(run: Path) -> dict[str, Any]:
    """Return the saved configuration of a run as plain values.

    Raises:
        ValueError: it is missing or no YAML mapping.
    """
    path = run / CONFIG
    try:
        values = yaml_text.load(durable.read(path))
    except FileNotFoundError:
        raise ValueError(f"{run} holds no {CONFIG}, so it is no run of viewrank.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings.")
    return values


def check_continues(
    saved: Checkpoint, *, world_size: int, machine: str, reshaped: bool = False
) -> None:
    """Refuse to continue with another number of processes, or with other arithmetic.

    Args:
        saved: what the run continues from.
        world_size: number of processes.
        machine: device and precision; see `Processes.machine`.
        reshaped: whether the batches are other ones, and so may be the number of processes.

    Raises:
        ValueError: what differs.
    """
    if saved.world_size != world_size and not reshaped:
        raise ValueError(
            f"{saved.root} was saved by {saved.world_size} processes, this run has {world_size}: "
            f"each process continues its own part of the samples. Launch {saved.world_size}, or "
            "set --reshape_data true to begin the epoch again."
        )
    if saved.machine != machine:
        raise ValueError(
            f"{saved.root} was saved on {saved.machine}, this run has {machine}: it would not be "
            "the same run. Set --device and --mixed_precision as they were, or give another --run."
        )
