"""A trained encoder, from what a run left: its folder, one of its checkpoints, or its export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from model.encoder import Encoder
from pipeline.tuning import Tuning
from training import machine_settings
from training.config import Config
from training.run import checkpoint, run_folder
from training.settings import parse


@dataclass(frozen=True)
class Trained:
    """An encoder with its weights, and how it is run."""

    encoder: Encoder
    """On the device, channels-last in memory."""
    size: int
    """Height and width of the images that it was trained on, in pixels."""
    device: torch.device
    autocast: torch.dtype | None
    """Precision; none is float32."""
    tuning: Tuning | None
    """How its run's pipeline was tuned for this machine."""
    name: str
    """What it is, for people."""


def open_encoder(path: Path, *, config: Path | None = None, device: str = "auto") -> Trained:
    """Load an encoder.

    Args:
        path: A run's folder, a checkpoint's, or an exported encoder.safetensors.
        config: The recipe that an exported file was trained with; by default, the configuration in
            the file's folder, where a run leaves it.
        device: auto, cpu or gpu.

    Raises:
        ValueError: There is nothing of the kind, or the weights do not fit the recipe's encoder.
    """
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; give a run's folder, a checkpoint's, or {run_folder.ENCODER}."
        )
    if path.is_file():
        return _exported(path, config or path.parent / run_folder.CONFIG, device)
    if config is not None:
        raise ValueError(f"config={config} is for exported files, but {path} is a run.")
    if (path / checkpoint.RECORD).exists():
        run, saved = path.resolve().parent.parent, checkpoint.read(path)
    else:
        run_folder.read_config(path)  # refuses what is no run
        run, saved = path, checkpoint.newest(path)
        if saved is None:
            raise ValueError(f"{path} holds no checkpoint yet; let the run reach its first one.")
    settings = _config(run / run_folder.CONFIG, device)
    settings.method.load_state_dict(saved.method())
    return _trained(settings, settings.views.size, run, f"{path}, step {saved.step:,}")


def _exported(path: Path, recipe: Path, device: str) -> Trained:
    if not recipe.exists():
        raise ValueError(
            f"{path} holds weights alone, and there is no {recipe} that says of which network. "
            "Give the recipe that it was trained with: --config FILE."
        )
    tensors, facts = run_folder.read_export(path)
    # A recipe need not say where a run is.
    settings = _config(recipe, device, "--run", str(path.parent))
    try:
        settings.method.encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} are not those of {recipe}'s encoder: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    size, step = facts.get("size", settings.views.size), facts.get("step", 0)
    return _trained(settings, size, path.parent, f"{path}, step {step:,}")


def _config(path: Path, device: str, *more: str) -> Config:
    # What the run was trained with need not be on this machine.
    here = ["--device", device, "--mixed_precision", "auto", "--trackers", "[]"]
    return parse(["--config", str(path), *here, *more]).config


def _trained(config: Config, size: int, run: Path, name: str) -> Trained:
    device = torch.device("cpu")
    if config.on_gpu:
        device = torch.device("cuda", torch.cuda.current_device())
    encoder = config.method.encoder.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Trained(
        encoder=encoder,
        size=size,
        device=device,
        autocast=config.autocast(),
        tuning=machine_settings.kept(run) if device.type == "cuda" else None,
        name=name,
    )
