"""Write a trained encoder for torchvision, timm, Hugging Face, ONNX or torch.export.

    python -m tools.export runs/mine --to onnx
    python -m tools.export runs/mine --to huggingface --out mine
    python -m tools.export runs/mine --to torch_export --projector true

The export is written aside, read as other programs read it, and compared with the original on 64
real images. It gets its name if the features are equal but for rounding.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shards import durable
from shards.writing.output import refuse_occupied
from training import installed
from training.command_line import run_function

if TYPE_CHECKING:
    from tools.export.difference import FeatureDifference
    from tools.export.file_format import FileFormat
    from tools.export.real_images import RealImages
    from tools.export.subject import Subject

Target = Literal["torchvision", "timm", "huggingface", "onnx", "torch_export"]
PACKAGES = {
    "huggingface": ("transformers",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
"""What a format needs besides what viewrank does."""
BATCH_SIZES = (32, 7)  # of both of two sizes; the last batch of 64 by sevens is a single image


def main(
    run: Path,
    *,
    to: Target,
    out: Path | None = None,
    projector: bool = False,
    images: Path | None = None,
) -> None:
    """Write a trained encoder in a form that other programs read, and check it with images.

    Args:
        run: a run's folder, a checkpoint's, or an exported encoder.safetensors.
        to: form to write. torchvision and timm: weights for their own network; huggingface: a
            folder that timm and transformers read, with a model card; onnx and torch_export:
            programs that need no code of the network.
        out: file to write, or folder with --to huggingface; by default in the run's folder.
        projector: write embeddings, the projector's, instead of the encoder's features; as onnx
            or torch_export.
        images: folder of images, or shard set, to check with; by default the run's evaluation
            set, else its training set.
    """
    installed.require(*PACKAGES.get(to, ()))
    # Here and not above, so that --help takes no seconds.
    from tools.export.aside import aside
    from tools.export.difference import refuse_far
    from tools.export.file_format import FOLDER
    from tools.export.real_images import real_images
    from tools.export.subject import open_subject
    from training.run import origin
    from training.surroundings import without_absolute_paths

    subject = open_subject(run, projector=projector)
    chosen = _chosen(to, subject)
    path = out or (subject.run or run.parent) / f"{subject.stem}{chosen.usual_ending}"
    _check(path, chosen)
    shown = real_images(subject, images)
    converted = chosen.convert(subject)
    sizes = chosen.sizes(converted, subject)
    facts = {
        **subject.facts,
        "exported": {
            "to": to,
            "command": without_absolute_paths(
                shlex.join(["python", "-m", "tools.export", *sys.argv[1:]])
            ),
            "commit": origin.commit(),
            "versions": {
                **origin.versions(),
                **origin.installed("timm", "torchvision", *PACKAGES.get(to, ())),
            },
        },
    }
    with aside(path, folder=chosen.endings == FOLDER) as partial:
        chosen.save(converted, partial, facts)
        found = _differences(chosen, subject, partial, shown, sizes)
        refuse_far(found)
        facts["check"] = {
            "images": len(shown.images),
            "of": without_absolute_paths(shown.location),
            "found": [asdict(each) for each in found],
        }
        # Again, with what was found; and what gets the name is read too.
        chosen.save(converted, partial, facts)
        refuse_far(_differences(chosen, subject, partial, shown, sizes[:1]))
        if path.suffix == ".pth":
            from tools.export.torchvision_weights import write_sidecar

            write_sidecar(path, facts)
    rows: list[tuple[str, ...]] = [("written", str(path)), ("output", subject.facts["output"])]
    if converted is not subject:  # a program; weights go into a network with sizes of its own
        only = "any size" if len(sizes) > 1 else f"{subject.size} px only"
        rows.append(("takes", f"any number of images, of {only}"))
    _show(rows, chosen.usage(path, subject), shown, found)


def _chosen(to: str, subject: Subject) -> FileFormat:
    """Return a format; refuse one that cannot hold the network, and name those that can."""
    from tools.export.architecture import described
    from tools.export.huggingface_folder import HuggingFaceFolder
    from tools.export.onnx_model import OnnxModel
    from tools.export.timm_weights import TimmWeights
    from tools.export.torch_program import TorchProgram
    from tools.export.torchvision_weights import TorchvisionWeights

    formats: Mapping[str, FileFormat] = {
        "torchvision": TorchvisionWeights(),
        "timm": TimmWeights(),
        "huggingface": HuggingFaceFolder(),
        "onnx": OnnxModel(),
        "torch_export": TorchProgram(),
    }
    reasons = {name: each.refusal(subject) for name, each in formats.items()}
    if reason := reasons[to]:
        able = [name for name, each in reasons.items() if each is None]
        raise ValueError(
            f"--to {to} cannot hold {described(subject)}: {reason}. What can: --to "
            f"{', '.join(able)}."
        )
    return formats[to]


def _check(path: Path, chosen: FileFormat) -> None:
    """Refuse a place that cannot be written, before the work."""
    from tools.export.file_format import FOLDER

    if chosen.endings == FOLDER:
        refuse_occupied(path)
        return
    if path.suffix not in chosen.endings:
        raise ValueError(f"out={path} has to end in {' or '.join(chosen.endings)}.")
    durable.check_writable(out=path)


def _differences(
    chosen: FileFormat, subject: Subject, path: Path, shown: RealImages, sizes: tuple[int, ...]
) -> list[FeatureDifference]:
    """Return how far what was written is from the original, by all that read it."""
    from tools.export.difference import measure

    found = []
    readers = chosen.readers(path, subject)
    for size, batch_size in zip(sizes, BATCH_SIZES, strict=False):
        images_NCHW = shown.prepared(subject, size)
        for name, reader in readers.items():
            found.append(
                measure(subject.network, reader, images_NCHW, name=name, batch_size=batch_size)
            )
    return found


def _show(
    about: list[tuple[str, ...]],
    usage: list[str],
    shown: RealImages,
    found: list[FeatureDifference],
) -> None:
    """Print what was written, how far it is from the original, and how it is read."""
    from training.terminal import Section, literal_console, show

    rows: list[tuple[str, ...]] = [("read by", "images", "batch", "largest difference", "relative")]
    for each in found:
        cells = (f"{each.size} px", str(each.batch_size))
        rows.append((each.reader, *cells, f"{each.absolute:.1e}", f"{each.relative:.1e}"))
    sections = [
        Section("export", about),
        Section(f"beside the original, {len(shown.images)} images of {shown.location}", rows),
    ]
    console = literal_console()
    show(sections, console)
    for line in usage:
        console.print(f"    {line}", soft_wrap=True)


if __name__ == "__main__":
    run_function(main)
