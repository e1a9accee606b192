"""An encoder as one file: its weights, and in the metadata all that it takes to use them.

A run leaves it as RUN/encoder.safetensors. The weights have the names of the library that the
network is from: torchvision's or timm's. The metadata, each value as JSON, are

    class, arguments    of the encoder, as a recipe names them
    size                height and width of the views that it was trained on, in pixels
    mean, std           of the pixels, in 0..1, for red, green and blue
    method, objective   which it was trained with
    step                number of updates
    data                of which shard set: source, split, samples, and the manifest's digest
    weights, license    what it began with, and the licence of that; null for random weights
    commit, versions    of the code
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from model.encoder import Encoder
from pipeline.normalisation import Normalisation
from shards import durable
from shards.layout import Manifest, ShardSet
from training.run import state_file
from training.run.origin import commit, versions
from training.settings import Settings

NAME = "encoder.safetensors"
PREFIX = "network."
"""Of the names of an encoder whose network is another library's."""
PACKAGES = ("torch", "torchvision", "timm")
_NEEDED = {"class": str, "arguments": dict, "size": int, "step": int}
_UNREADABLE = (safetensors.SafetensorError, ValueError, AttributeError, RecursionError, KeyError)
"""KeyError is of numbers of a type that PyTorch does not have."""


def export(settings: Settings, shard_set: ShardSet, encoder: Encoder, *, step: int) -> None:
    """Write a run's encoder into its folder; for the arguments see `facts`."""
    write(settings.config.run / NAME, encoder, facts(settings, shard_set, step=step))


def usage(run: Path) -> list[str]:
    """Return lines that say how the encoder in a run's folder is used."""
    return [
        f"finished: encoder in {run / NAME}; evaluate it with python -m tools.evaluate {run}, or "
        "use it in Python:",
        "    import viewrank",  # so of a checkout and of a wheel
        f"    encoder, prepare = viewrank.load({str(run / NAME)!r})",
    ]


def facts(settings: Settings, shard_set: ShardSet | None, *, step: int) -> dict[str, Any]:
    """Return what is to be said of a run's encoder.

    Args:
        settings: of the run.
        shard_set: that it was trained on; None if it is not here any more.
        step: number of updates.
    """
    config = settings.config
    chosen = settings.resolved["method"]["init_args"]["encoder"]
    objective = getattr(config.method, "objective", None)
    weights = {"from": config.weights, "sha256": config.weights_sha256}
    return {
        "class": chosen["class_path"],
        "arguments": chosen.get("init_args", {}),
        "size": config.views.size,
        "mean": config.method.encoder.mean,
        "std": config.method.encoder.std,
        "method": type(config.method).__name__,
        "objective": None if objective is None else str(objective),
        "step": step,
        "data": None if shard_set is None else described(shard_set.manifest),
        "weights": weights if config.weights is not None else None,
        "license": config.weights_license,
        "commit": commit(),
        "versions": versions(*PACKAGES),
    }


def described(manifest: Manifest) -> dict[str, Any]:
    """Return which shard set it is, for a file that was made from it."""
    return {
        "source": manifest.source,
        "split": manifest.split,
        "samples": manifest.samples,
        "manifest_sha256": manifest.digest(),
    }


def write(path: Path, encoder: Encoder, facts: Mapping[str, Any]) -> None:
    """Write an encoder, whole or not at all.

    Args:
        path: of the file.
        encoder: its weights are written under the names of `published`.
        facts: about it.
    """
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    durable.replace(path, state_file.safetensors_file(published(encoder.state_dict()), metadata))


def published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's weights under the names of the library that its network is from.

    If all of them lie in its `network`, they lose that prefix: the torchvision or timm model that
    it was made from takes them as they are, without its classifier. Else they keep their names.

    Args:
        state: of the encoder.
    """
    prefix = PREFIX if all(name.startswith(PREFIX) for name in state) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def fill(encoder: Encoder, tensors: Mapping[str, Tensor]) -> None:
    """Give an encoder the weights that `read` returned.

    Raises:
        RuntimeError: they are another network's, as of `load_state_dict`.
    """
    state = encoder.state_dict()
    own = dict(zip(published(state), state, strict=True))
    encoder.load_state_dict({own.get(name, name): tensor for name, tensor in tensors.items()})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `write` wrote: the weights, under their published names, and the facts.

    Raises:
        ValueError: it is no such file.
    """
    content = durable.read(path)
    try:
        tensors = safetensors.torch.load(content)
        found = {name: json.loads(text) for name, text in metadata(content).items()}
        wrong = [n for n, kind in _NEEDED.items() if not isinstance(found.get(n), kind)]
        if normalisation(found) is None:
            wrong += ["mean", "std"]
        if wrong:
            raise ValueError(
                f"its metadata do not say {', '.join(wrong)}; of an older version's file, name the "
                "run's folder instead"
            )
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} is no encoder that a run exported ({' '.join(str(error).split())})."
        ) from None
    return tensors, found


def normalisation(facts: Mapping[str, Any]) -> Normalisation | None:
    """Return what the mean and std of facts say; None if they are not three numbers each.

    Args:
        facts: of an exported encoder, or those that timm has of published weights.
    """
    mean, std = (_three_numbers(facts.get(name)) for name in ("mean", "std"))
    return Normalisation(mean, std) if mean and std and min(std) > 0 else None


def _three_numbers(values: Any) -> tuple[float, float, float] | None:
    if not isinstance(values, list | tuple):
        return None
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return None
    return (red, green, blue) if isfinite(red + green + blue) else None


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names, whatever their order."""
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()


def metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file, which its library does not give from memory.

    Raises:
        ValueError: it is none.
    """
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__") or {}  # it may be null
