"""A trained encoder, from what a run left: its folder, one of its checkpoints, or its export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from model.encoder import Encoder
from pipeline.tuning import Tuning
from shards import durable
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
    """Precision of its layers; None is float32."""
    tuning: Tuning | None
    """Settings of its run's pipeline that move pixels; None without a GPU."""
    name: str
    """What it is, for people."""


def open_encoder(path: Path, *, config: Path | None = None, device: str = "auto") -> Trained:
    """Load an encoder.

    Args:
        path: a run's folder, a checkpoint's, or an exported encoder.safetensors.
        config: the recipe that an exported file was trained with; by default, the configuration in
            the file's folder, where a run leaves it.
        device: auto, cpu or gpu.

    Raises:
        ValueError: the path holds no encoder, or the weights do not fit the recipe's encoder.
    """
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; give a run's folder, a checkpoint's, or {run_folder.ENCODER}."
        )
    if path.is_file():
        return _exported(path, config or path.parent / run_folder.CONFIG, device)
    if config is not None:
        raise ValueError(f"config={config} is for exported files, but {path} is a run.")
    run, saved = locate(path)
    if saved is None:
        raise ValueError(f"{path} holds no checkpoint yet; let the run reach its first one.")
    settings = _config(run / run_folder.CONFIG, device)
    state = saved.method()
    with checkpoint.fits(saved.root, f"{run / run_folder.CONFIG}"):
        settings.method.load_state_dict(state)
    return _trained(settings, settings.views.size, run, f"{path}, step {saved.step:,}")


def locate(path: Path) -> tuple[Path, checkpoint.Checkpoint | None]:
    """Return the run that a folder belongs to, and its checkpoint: itself, or the run's newest.

    Raises:
        ValueError: the folder is neither a run's nor a checkpoint's.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the folder of a run or of a checkpoint.")
    if (path / checkpoint.RECORD).exists():
        run = path.resolve().parent.parent
        run_folder.read_config(run)
        return run, checkpoint.read(path)
    run_folder.read_config(path)  # refuses a folder that is no run
    return path, checkpoint.newest(path)


def device_of(config: Config) -> torch.device:
    """Return where a configuration computes in this process, alone."""
    if config.on_gpu:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _exported(path: Path, recipe: Path, device: str) -> Trained:
    if not recipe.exists():
        raise ValueError(
            f"{path} holds weights alone, and there is no {recipe} to say of which network. "
            "Give the recipe that it was trained with: --config FILE."
        )
    tensors, facts = run_folder.read_export(path)
    # A recipe may leave out the run's folder.
    settings = _config(recipe, device, "--run", str(path.parent))
    with checkpoint.fits(path, f"the encoder of {recipe}"):
        settings.method.encoder.load_state_dict(tensors)
    size, step = facts.get("size", settings.views.size), facts.get("step", 0)
    return _trained(settings, size, path.parent, f"{path}, step {step:,}")


def _config(path: Path, device: str, *more: str) -> Config:
    durable.open_regular(path).close()  # the folder may be anybody's: no pipe or device is read
    # This machine may lack the run's device, precision and trackers.
    here = ["--device", device, "--mixed_precision", "auto", "--trackers", "[]"]
    return parse(["--config", str(path), *here, *more]).config


def _trained(config: Config, size: int, run: Path, name: str) -> Trained:
    device = device_of(config)
    encoder = config.method.encoder.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Trained(
        encoder=encoder,
        size=size,
        device=device,
        autocast=config.autocast(),
        tuning=machine_settings.kept(run) if device.type == "cuda" else None,
        name=name,
    )
