"""Any network of timm, PyTorch Image Models: ViTs, ConvNeXts, EfficientNets, Swins and others."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from model.encoder.encoder import Encoder, layers_of

# In this order: before timm 1.0.31, Swins swallow the ViTs' argument without effect.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"strict_img_size": False}, {"dynamic_img_size": True}, {})
"""What makes a network take images of several sizes: of Swins, of ViTs, of the others."""


class Timm(Encoder):
    """A network of timm without its classifier; the feature is what the classifier would read.

    Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models. Weights
    are random at first, as timm begins them; `--weights` has the encoder begin with published ones.
    Mean and standard deviation of the pixels are those of the name's tag, since networks of one
    architecture were trained on differently normalised images: CLIP's differ from ImageNet's.

    Args:
        name: as `timm.list_models()` has it, with a tag or without: vit_small_patch16_224,
            convnext_tiny, vit_base_patch16_clip_224.openai.
        image_size: height and width of the images that its position embeddings are made for; None
            is as published. Views of other sizes get interpolated ones.
        drop_path: probability of leaving out the last block of an image; less before.
        gradient_checkpointing: compute activations a second time instead of keeping them: less
            memory, a third more time.
    """

    def __init__(
        self,
        *,
        name: str = "vit_small_patch16_224",
        image_size: int | None = None,
        drop_path: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _refuse_unknown(name)
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path}, but it is a probability below 1.")
        self.name = name
        self._options = _Options(name, image_size=image_size, drop_path=drop_path)
        network = self._options.build()
        if gradient_checkpointing:
            try:
                network.set_grad_checkpointing(True)
            except (AssertionError, AttributeError):
                raise ValueError(
                    f"gradient_checkpointing=true, but timm's {name} has none; leave it out."
                ) from None
        published = network.pretrained_cfg
        self.mean, self.std = _color(published["mean"]), _color(published["std"])
        self.image_size = image_size or published["input_size"][-1]
        self.feature_size = getattr(network, "head_hidden_size", network.num_features)
        self.network = network

    def describe(self) -> str:
        """See `Encoder.describe`."""
        return f"timm's {self.name}"

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        return self.network(images_NCHW)

    def refuse(self, size: int, *, group: int = 0) -> None:
        """See `Encoder.refuse`: two images without pixels go through it."""
        training = [part for part in self.modules() if part.training]
        self.eval()
        try:
            # As if on no device: nothing is computed.
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                found = self(torch.empty(2, 3, size, size)).shape
        except Exception as error:  # each network raises its own
            where = "--views.size" if group == 0 else f"the size of item {group} of more_views"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"timm's {self.name} cannot take views of {size} pixels: {reason[:300]} "
                f"Change {where}, or --method.encoder.image_size if it has one."
            ) from None
        finally:
            for part in training:
                part.training = True
        if found != (2, self.feature_size):
            raise ValueError(
                f"timm's {self.name} returns {list(found)} for 2 images of {size} pixels, not "
                f"features [2, {self.feature_size}]; give another --method.encoder.name."
            )

    def adapt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Encoder.adapt`: by timm's own converters, which resample position embeddings."""
        adapted: dict[str, Tensor] = {}

        def keep(_: nn.Module, state: Mapping[str, Tensor], *__: Any, **___: Any) -> Any:
            adapted.update(state)
            return SimpleNamespace(missing_keys=[], unexpected_keys=[])

        # timm converts only where it loads, and there it says only to a log what did not match.
        with patch.object(type(self.network), "load_state_dict", keep):
            self._options.build(
                pretrained=True,
                pretrained_strict=False,
                pretrained_cfg_overlay={"state_dict": dict(tensors), "custom_load": False},
            )
        return adapted

    def arguments(self) -> dict[str, Any]:
        """Return what `timm.create_model` takes, besides the architecture, to build the network.

        That is without classifier; and without what only training knows, such as `drop_path`. The
        size that position embeddings are made for is named even where it is the published one.
        """
        published, given = self.network.pretrained_cfg, self._options.used()
        if published.get("fixed_input_size"):
            given.setdefault("img_size", published["input_size"][-1])
        return {name: value for name, value in given.items() if name != "drop_path_rate"}

    def stages(self) -> list[str]:
        """See `Encoder.stages`: of convolutional networks and Swins, the last four."""
        return [f"network.{each['module']}" for _, each in self._stages()]

    def feature_maps(self, images_NCHW: Tensor, *, stages: int) -> list[Tensor]:
        """See `Encoder.feature_maps`."""
        return self.network.forward_intermediates(
            images_NCHW,
            indices=[number for number, _ in self._stages()[:stages]],
            intermediates_only=True,
            stop_early=True,
        )

    def _stages(self) -> list[tuple[int, Any]]:
        """Return the number, as timm counts them, and the facts of each stage."""
        found: list[tuple[int, Any]] = []
        if not hasattr(self.network, "forward_intermediates"):
            return found
        # From the coarsest on. Of maps that are as fine as the next, as a ViT's, none is a stage.
        for number, each in reversed([*enumerate(self.network.feature_info)]):
            if found and each["reduction"] * 2 != found[0][1]["reduction"]:
                break
            found.insert(0, (number, each))
        return found[-4:] if len(found) > 1 else []

    def layers(self) -> dict[str, int]:
        """See `Encoder.layers`: timm's."""
        return layers_of(self.network, self.network.group_matcher(coarse=False))

    def undecayed(self) -> set[str]:
        """See `Encoder.undecayed`: timm's, such as position embeddings and class token."""
        names: Any = getattr(self.network, "no_weight_decay", set)
        own = dict(self.network.named_parameters())
        return {f"network.{name}" for name in names() if name in own}


class _Options:
    """The arguments that a network of a name is built with."""

    def __init__(self, name: str, *, image_size: int | None, drop_path: float) -> None:
        self._name = name
        self._given: dict[str, Any] = {"num_classes": 0}
        if image_size is not None:
            self._given["img_size"] = image_size
        if drop_path:
            self._given["drop_path_rate"] = drop_path
        self._any_size: dict[str, Any] = {}

    def used(self) -> dict[str, Any]:
        """Return what the network was built with, besides its name."""
        return {**self._given, **self._any_size}

    def build(self, **more: Any) -> Any:
        """Return the network.

        Raises:
            ValueError: it does not have an argument that was given.
        """
        from timm import create_model

        for any_size in _ANY_SIZE:
            try:
                network = create_model(self._name, **self._given, **any_size, **more)
            except TypeError as error:
                missing = {n for n in (*self._given, *any_size) if f"'{n}'" in str(error)}
                if missing and missing <= any_size.keys():
                    continue
                setting = {"img_size": "image_size", "drop_path_rate": "drop_path"}
                if names := sorted(setting[n] for n in missing & setting.keys()):
                    raise ValueError(
                        f"{names[0]} is given, but timm's {self._name} has none; leave it out."
                    ) from None
                raise
            self._any_size = any_size
            return network
        raise AssertionError("the last choice is none of these arguments")


def _refuse_unknown(name: str) -> None:
    """Refuse what is no name of timm's; create_model itself would look for some on the internet."""
    from timm.models import get_arch_pretrained_cfgs, is_model, list_models

    architecture, _, tag = name.partition(".")
    if ":" in name or "/" in name or not is_model(architecture):
        near = get_close_matches(architecture, list_models(), n=3, cutoff=0.0)
        raise ValueError(
            f"name={name} is no architecture of timm. The nearest are {', '.join(near)}; "
            "timm.list_models() has all."
        )
    tags = [each.partition(".")[2] for each in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        near = get_close_matches(tag, tags, n=3, cutoff=0.0)
        raise ValueError(
            f"name={name}, but timm has no {tag} of {architecture}. "
            + (f"The nearest are {', '.join(near)}." if near else "It has no tags.")
        )


def _color(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
