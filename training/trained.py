"""A trained encoder, from what a run left: its folder, one of its checkpoints, or its export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from model.encoder import Encoder
from pipeline.centre_crop import CentreCrop
from pipeline.normalisation import Normalisation
from pipeline.tuning import Tuning
from shards import durable
from training import class_names, exported, machine_settings
from training.config import Config
from training.run import checkpoint, run_folder
from training.settings import Settings, parse

Precision = Literal["auto", "no", "bf16", "fp16"]


@dataclass(frozen=True)
class Trained:
    """An encoder with its weights, and how it is run."""

    encoder: Encoder
    """On the device, channels-last in memory."""
    size: int
    """Height and width of the images that it was trained on, in pixels."""
    normalisation: Normalisation
    """Of the images' pixels."""
    device: torch.device
    autocast: torch.dtype | None
    """Precision of its layers; None is float32."""
    tuning: Tuning | None
    """Settings of its run's pipeline that move pixels; None without a GPU."""
    name: str
    """What it is, for people."""
    facts: Mapping[str, Any]
    """Its class, arguments and step, and what weights it began with, as JSON has them."""


@dataclass(frozen=True)
class OpenedRun:
    """A run whose method has the weights of a checkpoint."""

    settings: Settings
    """The run's, but for what this machine may lack; its method is on the CPU."""
    folder: Path
    step: int


def open_encoder(
    path: Path, *, device: str = "auto", mixed_precision: Precision = "auto"
) -> Trained:
    """Load an encoder.

    Args:
        path: a run's folder, a checkpoint's, or an exported encoder.safetensors.
        device: auto, cpu or gpu.
        mixed_precision: precision of its layers; auto is bf16 where the hardware multiplies it.

    Raises:
        ValueError: the path holds no encoder, or the weights do not fit it.
    """
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; give a run's folder, a checkpoint's, or {exported.NAME}."
        )
    if path.is_file():
        return _exported(path, here(device, mixed_precision))
    opened = open_run(path, device=device, mixed_precision=mixed_precision)
    settings, name = opened.settings, f"{path}, step {opened.step:,}"
    began = settings.config.weights
    return ready(settings, name, step=opened.step, run=opened.folder, weights=began)


def open_run(path: Path, *, device: str = "auto", mixed_precision: Precision = "auto") -> OpenedRun:
    """Load all that a run trained.

    Args:
        path: a run's folder or a checkpoint's.
        device: auto, cpu or gpu.
        mixed_precision: of the networks.

    Raises:
        ValueError: the path holds no checkpoint, or the weights do not fit it.
    """
    run, saved = newest(path)
    settings = recipe(run, device=device, mixed_precision=mixed_precision)
    state = saved.method()
    with checkpoint.fits(saved.root, f"{run / run_folder.CONFIG}"):
        settings.config.method.load_state_dict(state)
    return OpenedRun(settings, run, saved.step)


def load(path: str | Path, *, device: str = "cpu") -> tuple[Encoder, CentreCrop]:
    """Return a trained encoder, and what makes its input of a Pillow image.

        encoder, prepare = load("runs/mine/encoder.safetensors")
        feature_1F = encoder(prepare(PIL.Image.open("a.jpg"))[None])

    Args:
        path: a run's folder, a checkpoint's, or an exported encoder.safetensors.
        device: auto, cpu or gpu.

    Returns:
        The encoder in eval mode, without gradients, and the preparation that evaluations use.

    Raises:
        ValueError: the path holds no encoder, or the weights do not fit it.
    """
    trained = open_encoder(Path(path), device=device)
    encoder = trained.encoder.eval().requires_grad_(False)
    return encoder, CentreCrop(trained.size, trained.normalisation)


def newest(path: Path) -> tuple[Path, checkpoint.Checkpoint]:
    """Return the run that a folder belongs to, and its checkpoint, as `locate`, but there is one.

    Raises:
        ValueError: there is none, or the folder is neither a run's nor a checkpoint's.
    """
    run, saved = locate(path)
    if saved is not None:
        return run, saved
    if (run / exported.NAME).exists():
        raise ValueError(
            f"{path} holds no checkpoint any more; its encoder is left: give {run / exported.NAME}."
        )
    raise ValueError(f"{path} holds no checkpoint yet; let the run reach its first one.")


def locate(path: Path) -> tuple[Path, checkpoint.Checkpoint | None]:
    """Return the run that a folder belongs to, and its checkpoint: itself, or the run's newest.

    Raises:
        ValueError: see `run_of`, and `training.run.checkpoint.read`.
    """
    run = run_of(path)
    return run, checkpoint.newest(path) if run == path else checkpoint.read(path)


def run_of(path: Path) -> Path:
    """Return the run that a folder, its own or a checkpoint's, belongs to.

    Raises:
        ValueError: the folder is neither a run's nor a checkpoint's.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the folder of a run or of a checkpoint.")
    run = path.resolve().parent.parent if (path / checkpoint.RECORD).exists() else path
    run_folder.read_config(run)  # refuses a folder that is no run
    return run


def device_of(config: Config) -> torch.device:
    """Return where a configuration computes in this process, alone."""
    if config.on_gpu:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _exported(path: Path, here: list[str]) -> Trained:
    tensors, facts = exported.read(path)
    chosen = {"class_path": facts["class"], "init_args": facts["arguments"]}
    words = ["--method.encoder", json.dumps(chosen), "--views.size", str(facts["size"])]
    settings = parse([*words, *NO_RUN, *here])
    encoder = settings.config.method.encoder
    with checkpoint.fits(path, f"the {facts['class']} that its metadata say"):
        exported.fill(encoder, tensors)
    # It was trained on these pixels, whatever its class, or its library of today, would have.
    pixels = exported.normalisation(facts)
    assert pixels is not None, "refused by read"
    encoder.mean, encoder.std = pixels.mean, pixels.std
    name = f"{path}, step {facts['step']:,}"
    began = facts.get("weights")
    return ready(settings, name, step=facts["step"], run=path.parent, weights=began)


NO_RUN = ["--shards", ".", "--run", ".", "--steps", "1"]
"""What each recipe has, for a network without one."""


def recipe(run: Path, *, device: str, mixed_precision: Precision = "auto") -> Settings:
    """Return a run's settings as this machine can have them, with random weights.

    Raises:
        ValueError: they are of another version.
        OSError: the folder may be anybody's, and a pipe in it is not read.
    """
    path = run / run_folder.CONFIG
    durable.open_regular(path).close()
    return parse(["--config", str(path), *here(device, mixed_precision)])


def here(device: str, mixed_precision: Precision) -> list[str]:
    """Return the words for what this machine may lack of a run's: device, precision, trackers."""
    return ["--device", device, "--mixed_precision", mixed_precision, "--trackers", "[]"]


def ready(
    settings: Settings,
    name: str,
    *,
    step: int,
    run: Path | None = None,
    weights: object = None,
    encoder: Encoder | None = None,
    chosen: Mapping[str, Any] | None = None,
) -> Trained:
    """Return an encoder on its device.

    Args:
        settings: of its run, or of none.
        name: what it is, for people.
        step: number of updates; 0 if there is no run.
        run: folder with the settings of the run's pipeline.
        weights: what it began with.
        encoder: with its weights; by default, the settings'.
        chosen: its class and arguments; by default, the settings'.
    """
    config = settings.config
    device = device_of(config)
    encoder = encoder or config.method.encoder
    of_class = (
        class_names.stored(chosen)
        if chosen
        else dict(settings.resolved["method"]["init_args"]["encoder"])
    )
    return Trained(
        encoder=encoder.to(device).to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
        size=config.views.size,
        normalisation=Normalisation(encoder.mean, encoder.std),
        device=device,
        autocast=config.autocast(),
        tuning=machine_settings.kept(run) if run and device.type == "cuda" else None,
        name=name,
        facts={
            "class": of_class["class_path"],
            "arguments": of_class.get("init_args", {}),
            "step": step,
            "weights": weights,
        },
    )
