"""An encoder that a command line names: by what a run left, or by class, settings and weights.

    RUN                                                  a run, a checkpoint, encoder.safetensors
    --encoder RUN                                        the same
    --encoder Timm --encoder.name NAME                   a network with random weights
    --encoder ResNet --encoder.weights resnet18.pth      with published ones, or a run's
    --encoder mine.Network                               a user's own class; see `own_modules`

Images have the size that it was trained on or is published for, unless another one is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.encoder import Encoder
from pipeline.normalisation import Normalisation
from shards.one_line import one_line
from training import class_help, own_modules, weights
from training.flags import OWN, FlagParser, one_of
from training.settings import concrete, parse
from training.trained import NO_RUN, Precision, Trained, here, open_encoder, ready

FLAG = "encoder"
_WEIGHTS = f"--{FLAG}.weights"
_SMALL = ["--method.encoder", "SmallResNet"]  # quickly built; of these settings it is not used


def open_named(
    run: Path | None,
    words: Sequence[str],
    *,
    size: int | None = None,
    device: str = "auto",
    mixed_precision: Precision = "auto",
) -> Trained:
    """Load the encoder that a command line names, in one of two ways.

    Args:
        run: a run's folder, a checkpoint's, or an exported encoder.safetensors.
        words: `--encoder` and its dotted flags, instead.
        size: height and width of the images, in pixels; None is what it was trained on or
            published for.
        device: auto, cpu or gpu.
        mixed_precision: precision of its layers.

    Raises:
        ValueError: none or two are named, or it cannot be had, or it does not take the size.
    """
    if (run is None) == (not words):
        raise ValueError(
            "an encoder is named either by RUN, a run's folder, a checkpoint's or "
            "encoder.safetensors, or by --encoder CLASS. Give one of them."
        )
    if run is None:
        flags = _flags(words)
        named = flags[f"--{FLAG}"]
        classes = _classes()
        if named.rpartition(".")[2] in classes and "/" not in named:
            return _of_class(flags, size, device, mixed_precision)
        run = Path(named)
        if not run.exists():
            choices = one_of(named.rpartition(".")[2], classes).removeprefix("but ")
            own = f" {OWN}" if "." in named else ""
            raise ValueError(f"{named} does not exist, so --{FLAG} is no run; else {choices}{own}")
        if len(flags) > 1:
            raise ValueError(f"{list(flags)[1]} is of a class, but --{FLAG} {named} is a run.")
    trained = open_encoder(run, device=device, mixed_precision=mixed_precision)
    return trained if size is None else _resized(trained, size)


def _of_class(
    flags: dict[str, str], size: int | None, device: str, mixed_precision: Precision
) -> Trained:
    """Return a network of a class, with the weights that are given, or random ones."""
    location = flags.pop(_WEIGHTS, None)
    settings = parse([*_SMALL, *NO_RUN, *here(device, mixed_precision)])
    parser = FlagParser()
    parser.add_argument(f"--{FLAG}", type=Encoder, required=True)
    words = [word for flag in flags.items() for word in flag]
    chosen = parser.read(words, choices=lambda _: _classes())
    torch.manual_seed(0)
    try:
        encoder: Encoder = parser.instantiate(chosen).encoder
    except (TypeError, RuntimeError, OverflowError) as error:  # such as a size below 0
        raise ValueError(
            f"no {flags[words[0]]} can be built from these settings: {error}"
        ) from error
    name = encoder.describe()
    if location is None:
        name += ", random weights"
    else:
        _fill(encoder, location)
        name += f", {location}"
    size = size or encoder.image_size
    if size is None:
        raise ValueError(
            f"--{FLAG} {flags[words[0]]} is published for no size of images in particular. Give "
            "--size, their height and width in pixels."
        )
    trained = ready(
        settings,
        name,
        step=0,
        weights=location,
        encoder=encoder,
        chosen=chosen.encoder.as_dict(),
    )
    return _resized(trained, size)


def _fill(encoder: Encoder, location: str) -> None:
    """Give an encoder its weights and the pixels that they are for, and say what was taken."""
    try:
        found = weights.read(location)
        lines = weights.fill(encoder, found.tensors, location)
    except ValueError as error:  # in the words of this command line
        text = str(error).replace("--method.encoder", f"--{FLAG}")
        raise ValueError(text.replace("weights=", f"{_WEIGHTS} ")) from None
    own = Normalisation(encoder.mean, encoder.std)
    pixels = found.normalisation or own
    if pixels != own:  # they are not of the tag that the name has, or that is taken without one
        encoder.mean, encoder.std = pixels.mean, pixels.std
        lines.append(
            f"pixels get the mean {pixels.mean} and std {pixels.std} of these weights, not "
            f"{own.mean} and {own.std} of {encoder.describe()}"
        )
    sys.stderr.writelines(f"{one_line(line)}\n" for line in lines)


def _resized(trained: Trained, size: int) -> Trained:
    """Return an encoder that gets images of another size."""
    if size < 1:
        raise ValueError(f"size={size} pixels; give 1 or more.")
    try:
        trained.encoder.refuse(size)
    except ValueError as error:
        text = str(error).replace("--views.size", "--size")
        raise ValueError(text.replace(f"method.{FLAG}", FLAG)) from None
    return replace(trained, size=size)


def show_help(words: Sequence[str], program: str) -> None:
    """Print the settings of a class and exit, if `--encoder.help CLASS` is among the words.

    Raises:
        ValueError: there is no such class.
    """
    flag = f"--{FLAG}.help"
    if flag not in {word.partition("=")[0] for word in words}:
        return
    name = _flags([*words, f"--{FLAG}", ""])[flag]
    classes, name = _classes(), name.rpartition(".")[2]
    if name not in classes:
        raise ValueError(f"{flag}={name}, {one_of(name, classes)}")
    sys.stdout.write(class_help.text(classes[name], FLAG, program))
    sys.exit(0)


def _classes() -> dict[str, type[Encoder]]:
    """Return the encoders that can be named, by their classes' names."""
    own_modules.import_own()
    return {each.__name__: each for each in sorted(concrete(Encoder), key=lambda c: c.__name__)}


def _flags(words: Sequence[str]) -> dict[str, str]:
    """Return the flags with their values, `--encoder` first; the last of a flag counts.

    Raises:
        ValueError: one has no value, or `--encoder` is missing.
    """
    found: dict[str, str] = {}
    left = iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        found[flag] = value if equals else next(left, "--")
        if found[flag].startswith("--"):
            raise ValueError(f"{flag} needs a value: {flag} VALUE.")
    if f"--{FLAG}" not in found:
        raise ValueError(
            f"{words[0]} is given, but not of which class: --{FLAG} CLASS is missing; a CLASS is "
            f"one of {', '.join(_classes())}."
        )
    return {f"--{FLAG}": found.pop(f"--{FLAG}"), **found}
