"""Weights that `timm.create_model` takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.export.architecture import of_timm
from tools.export.file_format import NO_PROJECTOR, FileFormat, Reader, write_tensors
from tools.export.huggingface_folder import published
from tools.export.subject import Subject


class TimmWeights(FileFormat):
    """A safetensors file with timm's names."""

    endings = (".safetensors",)
    usual_ending = ".timm.safetensors"

    def refusal(self, subject: Subject) -> str | None:
        """See `FileFormat.refusal`."""
        if subject.projector:
            return NO_PROJECTOR
        return None if of_timm(subject) else "timm has no network with these weights"

    def save(self, converted: Subject, path: Path, facts: Mapping[str, Any]) -> None:
        """See `FileFormat.save`."""
        write_tensors(path, converted, facts)

    def readers(self, path: Path, subject: Subject) -> dict[str, Reader]:
        """See `FileFormat.readers`: both ways in which timm takes weights from a file."""
        import safetensors.torch
        from timm import create_model

        name, arguments = _known(subject)
        strict = create_model(name, **arguments)
        strict.load_state_dict(safetensors.torch.load_file(path), strict=True)
        known = published(path, subject)
        pretrained = create_model(name, pretrained=True, pretrained_cfg=known, **arguments)
        return {"timm, load_state_dict": strict.eval(), "timm, pretrained": pretrained.eval()}

    def usage(self, path: Path, subject: Subject) -> list[str]:
        """See `FileFormat.usage`."""
        name, arguments = _known(subject)
        words = "".join(f", {key}={value!r}" for key, value in arguments.items())
        return [
            f"network = timm.create_model({name!r}, pretrained=True{words},",
            f"    pretrained_cfg={published(path, subject)!r})",
        ]


def _known(subject: Subject) -> tuple[str, dict[str, Any]]:
    known = of_timm(subject)
    assert known is not None, "not refused"
    return known
