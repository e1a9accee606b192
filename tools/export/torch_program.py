"""A program of torch.export, which runs without the code of its network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from shards import durable
from tools.export.architecture import described
from tools.export.file_format import FileFormat, Reader
from tools.export.subject import Subject

FACTS = "viewrank.json"
"""The extra file in it that holds the facts."""


@dataclass(frozen=True)
class Traced:
    """A program, and the sizes of images that it takes."""

    program: ExportedProgram
    sizes: tuple[int, ...]
    """Two examples if it takes more than one, in pixels."""


class TorchProgram(FileFormat):
    """A .pt2 file of `torch.export.save`."""

    endings = (".pt2",)
    usual_ending = ".pt2"

    def refusal(self, subject: Subject) -> str | None:
        """See `FileFormat.refusal`."""
        del subject

    def convert(self, subject: Subject) -> Traced:
        """See `FileFormat.convert`."""
        return traced(subject)

    def save(self, converted: Traced, path: Path, facts: Mapping[str, Any]) -> None:
        """See `FileFormat.save`."""
        buffer = BytesIO()
        extra = {FACTS: json.dumps(facts, indent=1)}
        torch.export.save(converted.program, buffer, extra_files=extra)
        durable.replace(path, [buffer.getbuffer()])

    def readers(self, path: Path, subject: Subject) -> dict[str, Reader]:
        """See `FileFormat.readers`."""
        del subject
        return {"torch.export": torch.export.load(path).module()}

    def sizes(self, converted: Traced, subject: Subject) -> tuple[int, ...]:
        """See `FileFormat.sizes`."""
        del subject
        return converted.sizes

    def usage(self, path: Path, subject: Subject) -> list[str]:
        """See `FileFormat.usage`."""
        del subject
        return [f"network = torch.export.load({str(path)!r}).module()"]


def traced(subject: Subject) -> Traced:
    """Return the network as a program for any batch, and for any size where it allows that.

    Raises:
        ValueError: it cannot be traced.
    """
    size, other = subject.size, subject.second_size()
    if other is not None:
        # Not of the trained size: where that is the one that position embeddings are made for, the
        # network would leave out what other sizes need.
        try:
            program = _program(subject, other, free=(0, 2, 3))
            # A feature map of one pixel is a case of its own, which the program may exclude.
            program.module()(torch.zeros(1, 3, size, size))
            return Traced(program, (size, other))
        except Exception:  # each network fails in its own way; then it has one size
            pass
    try:
        return Traced(_program(subject, size, free=(0,)), (size,))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"torch.export cannot trace {described(subject)} ({type(error).__name__}: {reason}). "
            "--to timm or --to torchvision write the weights alone, where the library has it."
        ) from None


def _program(subject: Subject, size: int, *, free: tuple[int, ...]) -> ExportedProgram:
    images_NCHW = torch.zeros(3, 3, size, size)
    shapes = (dict.fromkeys(free, Dim.DYNAMIC),)
    with torch.no_grad():
        return torch.export.export(subject.network, (images_NCHW,), dynamic_shapes=shapes)
