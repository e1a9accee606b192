"""What the encoder of a new run begins with: published weights, or those of another run.

    file ─▶ tensors under their publisher's names ─▶ `Encoder.adapt` ─▶ the encoder and its copies

The run's configuration names the file and its hash. Checkpoints hold the weights themselves, so a
run that continues does not need the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from model.encoder import Encoder
from model.method import Method
from pipeline.normalisation import Normalisation
from shards import durable
from training import exported
from training.command import out_of_memory
from training.config import Config
from training.run import checkpoint, run_folder
from training.settings import Settings
from training.trained import newest, recipe

HUB = "timm:"
"""Begins the name of weights that timm downloads."""
LEFT_RANDOM = 0.1
"""The largest share of an encoder's numbers that may stay random."""
_INSIDE = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "student")
"""Where training programs keep weights in a file with other things, the best first."""
_NAMED = 4  # tensors that a message has room for


@dataclass(frozen=True)
class Weights:
    """Published weights."""

    tensors: Mapping[str, Tensor]
    """Under their publisher's names."""
    sha256: str
    """Of the file, or of the tensors where there is none."""
    license: str | None
    """What the file says."""
    normalisation: Normalisation | None
    """Of the pixels that they were trained on; None if nothing says it."""


def recorded(settings: Settings) -> Settings:
    """Return settings that name the content of `weights` too, not its place alone.

    Of a run that continues, it is what the run began with.

    Raises:
        ValueError: the file cannot be read, or is not the one that was asked for.
    """
    config = settings.config
    if config.weights is None:
        return settings
    before = run_folder.read_config(config.run) if checkpoint.exists(config.run) else {}
    asked = config.weights_sha256 in (None, before.get("weights_sha256"))
    if config.weights == before.get("weights") and asked:
        found = {name: before.get(name) for name in ("weights_sha256", "weights_license")}
    else:  # of another place, `run_folder.check` compares the content
        weights = _asked(config.weights, config.weights_sha256)
        license = config.weights_license or weights.license
        found = {"weights_sha256": weights.sha256, "weights_license": license}
    return replace(
        settings, config=replace(config, **found), resolved={**settings.resolved, **found}
    )


def _asked(location: str, digest: str | None) -> Weights:
    """Read weights, and refuse others than those of a digest, if one is given."""
    found = read(location)
    if digest not in (None, found.sha256):
        raise ValueError(
            f"{location} has the SHA-256 {found.sha256}, but weights_sha256={digest}: it is "
            "another file. Bring the right one, or leave --weights_sha256 out."
        )
    return found


def begin(config: Config, method: Method) -> list[str]:
    """Give the weights to the method's encoder and to the copies of it, if the run has some.

    Args:
        config: of a run that begins.
        method: with random weights.

    Returns:
        Lines that say what was taken and what was not.

    Raises:
        ValueError: they are of another network, or not finite, or not those that it began with.
    """
    if config.weights is None:
        return []
    found = _asked(config.weights, config.weights_sha256)
    lines = fill(method.encoder, found.tensors, config.weights)
    own = Normalisation(method.encoder.mean, method.encoder.std)
    pixels = found.normalisation or own
    if pixels != own:
        name = config.weights.removeprefix(HUB) if config.weights.startswith(HUB) else "NAME.TAG"
        lines.append(
            f"{config.weights} was trained on pixels of mean {pixels.mean} and std {pixels.std}, "
            f"but this run's have mean {own.mean} and std {own.std}, which the encoder has to get "
            "used to; where it is Timm, name the tag that the weights are of: "
            f"--method.encoder.name {name}"
        )
    state = method.encoder.state_dict()
    for part in method.modules():
        # Moving averages and key encoders are copies of the encoder as long as nothing was trained.
        if isinstance(part, Encoder) and part is not method.encoder:
            part.load_state_dict(state)
    return lines


def read(location: str) -> Weights:
    """Read weights.

    Args:
        location: see `Config.weights`.

    Raises:
        ValueError: there are none; the message says what is there.
    """
    if location.startswith(HUB):
        return _downloaded(location.removeprefix(HUB))
    path = Path(location)
    if path.is_dir():
        return _of_run(path)
    try:
        content = durable.read(path)
    except FileNotFoundError:
        raise ValueError(
            f"weights={location} does not exist; give a file, the folder of a run, or {HUB}NAME."
        ) from None
    digest = sha256(content).hexdigest()
    if path.suffix == ".safetensors":
        try:
            tensors = safetensors.torch.load(content)
            facts = {name: _value(text) for name, text in exported.metadata(content).items()}
        except (safetensors.SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is no safetensors file ({error}).") from None
        except KeyError as error:
            raise ValueError(f"{path} has numbers of a type {error}, not PyTorch's.") from None
        # Those of others may be of pixels in 0..255.
        pixels = exported.normalisation(facts) if "class" in facts else None
        return Weights(tensors, digest, facts.get("license"), pixels)
    try:
        # Its unpickler makes tensors and plain containers, and runs nothing of the file's.
        found = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the bytes of any other file are commands to it, by chance
        if out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].removesuffix(":")
        raise ValueError(
            f"{path} cannot be read as weights without running code of its own ({reason}). Where "
            "you trust it, save its tensors alone: safetensors.torch.save_file."
        ) from None
    return Weights(_tensors_in(found, path), digest, None, None)


def fill(encoder: Encoder, tensors: Mapping[str, Tensor], location: str) -> list[str]:
    """Give published weights to an encoder.

    Args:
        encoder: with random weights; what does not match keeps them.
        tensors: under their publisher's names.
        location: where they come from, for people.

    Returns:
        Lines that say what was taken and what was not.

    Raises:
        ValueError: they are of another network, or not finite.
    """
    own = exported.published(encoder.state_dict())
    prefix, stripped = _without_prefix(tensors, own)
    with checkpoint.fits(Path(location), f"the encoder {type(encoder).__name__}"):
        adapted = encoder.adapt(stripped)
    taken = {n: t for n, t in adapted.items() if n in own and t.shape == own[n].shape}
    left_random = [
        f"{name} {list(tensor.shape)}"
        + (f", which is {list(adapted[name].shape)} there" if name in adapted else "")
        for name, tensor in own.items()
        if name not in taken
    ]
    numbers = sum(tensor.numel() for tensor in own.values())
    share = 1 - sum(own[name].numel() for name in taken) / numbers
    if share > LEFT_RANDOM:
        raise ValueError(
            f"{location} holds weights of another network: {100 * share:.0f} % of the encoder's "
            f"numbers would stay random, above {100 * LEFT_RANDOM:.0f} %: {_few(left_random)}. It "
            f"has {_few(sorted(tensors))}. Set --method.encoder to what these weights are of."
        )
    if broken := [name for name, tensor in taken.items() if not bool(tensor.isfinite().all())]:
        raise ValueError(f"{location} has weights that are not finite: {_few(broken)}.")
    exported.fill(encoder, {**own, **taken})
    lines = [f"the encoder begins with {len(taken):,} of its {len(own):,} tensors from {location}"]
    if prefix:
        lines[0] += f" (those named {prefix}…)"
    if left_random:
        lines.append(f"these stay random: {_few(left_random)}")
    # A converter that renames leaves no names of the file's to tell of.
    named = stripped if taken.keys() <= stripped.keys() else adapted
    if unused := sorted(name for name in named if name not in taken):  # files have no order
        lines.append(f"not used of it: {_few(unused)}")
    return lines


def _value(text: str) -> Any:
    """Return what a safetensors file says: as JSON in an encoder of a run's, else as text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _of_run(path: Path) -> Weights:
    """Return the encoder's weights in a run's newest checkpoint, or in a given one."""
    run, saved = newest(path)
    state = {
        name.removeprefix("encoder."): tensor
        for name, tensor in saved.method().items()
        if name.startswith("encoder.")
    }
    digest = sha256(durable.read(saved.root / checkpoint.METHOD)).hexdigest()
    license = run_folder.read_config(run).get("weights_license")
    try:
        pixels = recipe(run, device="cpu").config.normalisation
    except MemoryError:
        raise
    except Exception:  # a run of another version, or of modules that are not here, has its weights
        pixels = None
    return Weights(exported.published(state), digest, license, pixels)


def _downloaded(name: str) -> Weights:
    """Return weights that timm knows by name, from its hub or from what was downloaded before."""
    import timm

    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # of timm, of the hub's client, of the network
        raise ValueError(
            f"timm's weights {name} cannot be had ({' '.join(str(error).split())[:300]}). "
            "timm.list_pretrained() has the names; on a machine without internet give a file."
        ) from None
    tensors: dict[str, Tensor] = network.state_dict()
    published: Any = network.pretrained_cfg
    pixels = exported.normalisation(published)
    return Weights(tensors, exported.digest_of(tensors), published.get("license"), pixels)


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the weights in what a training program saved.

    Raises:
        ValueError: there are none.
    """
    while isinstance(content, Mapping):
        inside = next((n for n in _INSIDE if isinstance(content.get(n), Mapping)), None)
        if inside is None:
            break
        content = content[inside]
    found = {}
    if isinstance(content, Mapping):
        found = {str(n): t for n, t in content.items() if isinstance(t, Tensor)}
    if not found:
        what = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            what += f" with {_few([str(name) for name in content]) or 'nothing in it'}"
        raise ValueError(f"{path} holds no weights by name, but {what}.")
    return found


def _without_prefix(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[str, Mapping[str, Tensor]]:
    """Return weights without what precedes their names, as `module.encoder_q.` or `backbone.`.

    Args:
        tensors: under their publisher's names.
        own: the encoder's names; without a prefix under which there are more, nothing is changed.
    """
    fitting = Counter[str]()
    for name in tensors:
        starts = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
        fitting.update(name[:start] for start in starts if name[start:] in own)
    # Of two networks in a file, the later name: encoder_q, not MoCo's encoder_k; teacher, target.
    prefix = max(fitting, key=lambda each: (fitting[each], each), default="")
    if fitting[prefix] <= fitting[""]:
        return "", tensors
    of_it = {n: tensor for n, tensor in tensors.items() if n.startswith(prefix)}
    return prefix, {name.removeprefix(prefix): tensor for name, tensor in of_it.items()}


def _few(names: list[str]) -> str:
    return ", ".join(
        [*names[:_NAMED], *([f"and {len(names) - _NAMED} more"] * (len(names) > _NAMED))]
    )
