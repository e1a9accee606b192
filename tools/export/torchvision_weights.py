"""Weights that `torchvision.models.resnetN` takes, once its `fc` is an identity."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from shards import durable
from tools.export.architecture import of_torchvision
from tools.export.file_format import NO_PROJECTOR, FileFormat, Reader, write_tensors
from tools.export.subject import Subject


class TorchvisionWeights(FileFormat):
    """A state dict, as safetensors or as what `torch.save` writes."""

    endings = (".safetensors", ".pth")
    usual_ending = ".torchvision.safetensors"

    def refusal(self, subject: Subject) -> str | None:
        """See `FileFormat.refusal`."""
        if subject.projector:
            return NO_PROJECTOR
        return None if of_torchvision(subject) else "torchvision has no ResNet with these weights"

    def save(self, converted: Subject, path: Path, facts: Mapping[str, Any]) -> None:
        """See `FileFormat.save`."""
        if path.suffix == ".safetensors":
            write_tensors(path, converted, facts)
            return
        import torch

        buffer = BytesIO()
        torch.save(converted.tensors(), buffer)
        durable.replace(path, [buffer.getbuffer()])

    def readers(self, path: Path, subject: Subject) -> dict[str, Reader]:
        """See `FileFormat.readers`."""
        import safetensors.torch
        import torch
        import torchvision.models as published

        name = of_torchvision(subject)
        assert name is not None, "not refused"
        network = published.get_model(name, weights=None)
        network.fc = torch.nn.Identity()
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, weights_only=True)
        network.load_state_dict(state, strict=True)
        return {"torchvision": network.eval()}

    def usage(self, path: Path, subject: Subject) -> list[str]:
        """See `FileFormat.usage`."""
        read = f"torch.load({str(path)!r})"
        if path.suffix == ".safetensors":
            read = f"safetensors.torch.load_file({str(path)!r})"
        return [
            f"network = torchvision.models.{of_torchvision(subject)}()",
            "network.fc = torch.nn.Identity()",
            f"network.load_state_dict({read})",
        ]


def sidecar(path: Path) -> Path:
    """Return the file with the facts of a .pth, which has no room for them."""
    return path.with_name(f"{path.name}.json")


def write_sidecar(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of a .pth beside it."""
    durable.replace_json(sidecar(path), facts)
