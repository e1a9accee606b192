"""The pipeline's settings on this machine: given, kept by the run, tuned, or defaults."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from pipeline import control_groups
from pipeline.tuning import Tuning
from shards import durable
from shards.layout import ShardSet
from training import yaml_text
from training.config import Config

NAME = "tuning.yaml"  # in a run's folder: what it began with


def resolve(
    config: Config,
    shard_set: ShardSet,
    *,
    device: torch.device,
    batch_size_per_rank: int,
    ranks_per_node: int,
    continued: bool,
) -> tuple[Tuning, str]:
    """Return the settings of the pipeline, all of them, and in words where they come from.

    A run that is continued keeps the settings that change pixels, even if it was tuned since. Files
    may differ between machines: with several ranks, the answer of rank 0 counts.

    Raises:
        ValueError: a file cannot be read, or holds something else.
    """
    tuning, sources = config.tuning, []
    if tuning != Tuning():
        sources.append("flags")
    if continued:
        tuning = tuning.over(kept(config.run))
    path = None if config.tuned in ("auto", "none", "None") else Path(config.tuned)
    if config.tuned == "auto":
        with suppress(ValueError):  # a user without a home has tuned nothing
            usual = path_for(config, shard_set, device, batch_size_per_rank, ranks_per_node)
            # Not Path.exists: it raises where nobody may look, as in the home of somebody else.
            path = usual if os.path.exists(usual) else None
    if path is not None:
        tuning = tuning.over(read(path))
        sources.append(str(path))
    filled = tuning.filled(batch_size=batch_size_per_rank, ranks_per_node=ranks_per_node)
    return filled, " and ".join(sources) or "defaults"


def kept(run: Path) -> Tuning:
    """Return the settings of a run that change pixels; it is continued and evaluated with them.

    Raises:
        ValueError: its file holds something else.
    """
    if not (run / NAME).exists():
        return Tuning()
    then = read(run / NAME)
    return Tuning(decode=then.decode, hw_decoder_load=then.hw_decoder_load, finish=then.finish)


def path_for(
    config: Config,
    shard_set: ShardSet,
    device: torch.device,
    batch_size_per_rank: int,
    ranks_per_node: int,
) -> Path:
    """Return the file for this machine and load, in the user's cache folder.

    Raises:
        ValueError: the user has none.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    cores = control_groups.cores()
    load = {
        "device": name,
        "cores": cores,
        "ranks_per_node": ranks_per_node,
        "raw": shard_set.manifest.raw,
        "shorter_side": shard_set.manifest.statistics.median_shorter_side,
        "groups": [(g.count, g.size, g.resampling, repr(g.policy)) for g in config.groups],
        "batch_size_per_rank": batch_size_per_rank,
    }
    digest = hashlib.sha256(json.dumps(load, sort_keys=True).encode()).hexdigest()[:12]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise ValueError(
            f"there is no folder for settings of the pipeline: {error} Set HOME or "
            "XDG_CACHE_HOME; or give --out FILE, and --tuned FILE to train.py."
        ) from None
    short = "".join(c if c.isalnum() else "-" for c in name.lower())
    return cache / "viewrank" / f"{short}-{cores}-cores-{digest}.yaml"


def write(path: Path, tuning: Tuning, *, remarks: Mapping[str, Any] | None = None) -> None:
    """Write settings that `read` reads; the remarks become comments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "".join(f"# {name}: {value}\n" for name, value in (remarks or {}).items())
    text = head + yaml.safe_dump(asdict(tuning), sort_keys=False)
    durable.replace(path, [text.encode()], suffix=f"{os.getpid()}.partial")


def read(path: Path) -> Tuning:
    """Return the settings of a file.

    Raises:
        ValueError: it is missing, or not what `write` writes.
    """
    try:
        values = yaml_text.load(durable.read(path))
        arguments = ArgumentParser(exit_on_error=False)
        arguments.add_class_arguments(Tuning)
        return Tuning(**vars(arguments.parse_object(values)))
    except Exception as error:  # the file system's, YAML's, jsonargparse's
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} holds no settings of the pipeline ({reason}). Write it with python -m "
            "tools.tune, remove it, or set --tuned none."
        ) from error
