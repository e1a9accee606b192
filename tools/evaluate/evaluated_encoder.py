"""An encoder that is evaluated, and how it is run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evaluation.bare_encoder import BareEncoder
from evaluation.protocol import Evaluated
from pipeline.graph import ViewGroup
from pipeline.normalisation import Normalisation
from pipeline.tuning import Tuning
from training import machine_settings, weights
from training.config import Config
from training.exported import digest_of
from training.run import checkpoint, run_folder
from training.settings import parse
from training.trained import (
    NO_RUN,
    Precision,
    Trained,
    device_of,
    here,
    locate,
    newest,
    recipe,
    run_of,
)

RANDOM, GIVEN = "random init", "first weights"  # columns' names: what a run began with


@dataclass(frozen=True)
class EvaluatedEncoder:
    """A network in a column of the table."""

    method: Evaluated
    group: ViewGroup
    """Size of the images; policy of the views."""
    normalisation: Normalisation
    device: torch.device
    autocast: torch.dtype | None
    tuning: Tuning | None
    network: Mapping[str, Any]
    """Class and arguments of the encoder, as JSON has them: not all of them are in the weights."""

    @cached_property
    def digest(self) -> str:
        """What tells its weights from all others."""
        return digest_of(self.method.state_dict())

    def placed(self) -> EvaluatedEncoder:
        """Return it with its network on the device, channels-last."""
        moved = self.method.to(self.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return replace(self, method=moved)


def folder_of(path: Path | None) -> Path | None:
    """Return the folder of the run that something belongs to; None if it belongs to none.

    Args:
        path: folder of the run, or of one of its checkpoints; or an encoder's file, which is the
            run's as long as it lies beside its config.yaml.

    Raises:
        ValueError: a folder is neither a run's nor a checkpoint's.
    """
    if path is None:
        return None
    if path.is_file():
        return path.parent if (path.parent / run_folder.CONFIG).is_file() else None
    return run_of(path)


def config_of(folder: Path | None, device: str, mixed_precision: Precision) -> Config:
    """Return the recipe that lies beside an encoder's file; the defaults if none does.

    Raises:
        ValueError: it cannot be read.
    """
    if folder is None:
        return parse([*NO_RUN, *here(device, mixed_precision)]).config
    try:
        return recipe(folder, device=device, mixed_precision=mixed_precision).config
    except ValueError as error:
        raise ValueError(
            f"{folder / run_folder.CONFIG}, by which the encoder beside it is evaluated: {error} "
            "In a folder of its own it is evaluated by the defaults."
        ) from error


def of_run(
    path: Path,
    *,
    size: int | None,
    device: str,
    mixed_precision: Precision,
    random: bool,
    beside: bool,
) -> tuple[Config, int, dict[str, EvaluatedEncoder]]:
    """Return a run's configuration, its step, and its methods by their columns' names.

    Args:
        path: folder of the run, or of one of its checkpoints.
        size: of the images, instead of the run's.
        device: auto, cpu or gpu.
        mixed_precision: of the networks.
        random: whether the weights that it began with are evaluated instead of the trained ones.
        beside: whether they are evaluated too.

    Raises:
        ValueError: there is no checkpoint, or the weights that it began with are not there.
    """
    run, saved = locate(path) if random else newest(path)
    settings = recipe(run, device=device, mixed_precision=mixed_precision)
    config, methods, step = settings.config, {}, 0
    if random or beside:
        first = copy.deepcopy(config.method)
        weights.begin(config, first)
        methods[GIVEN if config.weights else RANDOM] = first
    if not random and saved is not None:
        step, state = saved.step, saved.method()
        with checkpoint.fits(saved.root, f"{run / run_folder.CONFIG}"):
            config.method.load_state_dict(state)
        methods[f"step {step:,}"] = config.method
    group = config.views if size is None else replace(config.views, size=size)
    where = device_of(config)
    tuning = machine_settings.kept(run) if where.type == "cuda" else None
    chosen = settings.resolved["method"]["init_args"]["encoder"]
    network = {"class": chosen["class_path"], "arguments": chosen.get("init_args", {})}
    how = (group, config.normalisation, where, config.autocast(), tuning, network)
    return config, step, {name: EvaluatedEncoder(method, *how) for name, method in methods.items()}


def of_encoder(trained: Trained, config: Config) -> EvaluatedEncoder:
    """Return an encoder without a projector; views are made as a configuration says."""
    return EvaluatedEncoder(
        BareEncoder(trained.encoder),
        replace(config.views, size=trained.size),
        trained.normalisation,
        trained.device,
        trained.autocast,
        trained.tuning,
        {name: trained.facts[name] for name in ("class", "arguments")},
    )
