"""timm's networks as encoders: features, sizes, pixels, names, and weights by its converters."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from model.encoder import Timm
from tests.host_waits import HostWaits

FAMILIES = {
    "vit_tiny_patch16_224": (32, 48),
    "vit_tiny_patch16_dinov3_qkvb": (32, 48),
    "deit_tiny_distilled_patch16_224": (32, 48),
    "convnext_atto": (64, 32),
    "efficientnet_b0": (64, 32),
    "mobilenetv3_small_050": (64, 32),
    "resnet18": (64, 32),
    "regnety_002": (64, 32),
    "swin_tiny_patch4_window7_224": (224, 96),
    "mixer_s32_224": (224,),
}
"""Small networks and the sizes that they take."""


@pytest.mark.parametrize("name", [n for n in FAMILIES if n in timm.list_models()])
def test_features_are_what_timm_s_classifier_would_read(name: str) -> None:
    torch.manual_seed(0)
    encoder = Timm(name=name).eval()
    theirs: Any = timm.create_model(name).eval()
    missing = theirs.load_state_dict(encoder.network.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(n.startswith(("head", "fc", "classifier")) for n in missing.missing_keys)
    for size in FAMILIES[name]:
        encoder.refuse(size)
    images = torch.randn(2, 3, theirs.pretrained_cfg["input_size"][-1], 224)[..., :224, :224]
    with torch.no_grad():
        found = encoder(images)
        expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    assert found.shape == (2, encoder.feature_size)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_vit_takes_views_of_several_sizes_as_timm_interpolates() -> None:
    encoder = Timm(name="vit_tiny_patch16_224", image_size=64).eval()
    for size in (32, 48, 64):
        encoder.refuse(size)
        small: Any = timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=0).eval()
        # timm's own loading resamples the position embeddings to another size.
        from timm.models.vision_transformer import checkpoint_filter_fn

        state: Any = checkpoint_filter_fn(encoder.network.state_dict(), small)
        small.load_state_dict(state)
        images = torch.randn(2, 3, size, size)
        torch.testing.assert_close(encoder(images), small(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "vit_smal_patch16_224"}, "The nearest are vit_small_patch16_224, "),
        ({"name": "hf-hub:anybody/anything"}, "is no architecture of timm"),
        ({"name": "resnet18.a9_in1k"}, "timm has no a9_in1k of resnet18. The nearest are a"),
        ({"name": "resnet18", "image_size": 64}, "image_size is given, but timm's resnet18 has n"),
        ({"name": "resnet18", "drop_path": 1.0}, "drop_path=1.0, but it is a probability below"),
        ({"name": "vgg11", "drop_path": 0.1}, "drop_path is given, but timm's vgg11 has none"),
        ({"name": "vgg11", "gradient_checkpointing": True}, "timm's vgg11 has none; leave it out"),
    ],
)
def test_what_timm_does_not_have_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        Timm(**settings)


def test_a_size_that_the_network_cannot_take_is_refused_with_its_reason() -> None:
    encoder = Timm(name="vit_tiny_patch16_224", image_size=32)
    modes = [part.training for part in encoder.modules()]
    with pytest.raises(ValueError, match=r"cannot take views of 33 pixels: .*33.*--views.size"):
        encoder.refuse(33)
    with pytest.raises(ValueError, match="Change the size of item 2 of more_views"):
        encoder.refuse(33, group=2)
    assert [part.training for part in encoder.modules()] == modes


def test_pixels_are_normalised_as_the_tag_says() -> None:
    with torch.device("meta"):
        assert Timm(name="resnet18").mean == (0.485, 0.456, 0.406)
        clip = Timm(name="vit_base_patch16_clip_224.openai")
        half = Timm(name="vit_tiny_patch16_224")
    assert clip.mean == (0.48145466, 0.4578275, 0.40821073)
    assert clip.std == (0.26862954, 0.26130258, 0.27577711)
    assert half.mean == half.std == (0.5, 0.5, 0.5)


def test_checkpointed_activations_give_the_same_gradients() -> None:
    gradients: list[list[Tensor]] = []
    images = torch.randn(2, 3, 32, 32)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = Timm(
            name="vit_tiny_patch16_224",
            image_size=32,
            drop_path=0.5,
            gradient_checkpointing=checkpointing,
        )
        torch.manual_seed(1)
        encoder(images).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_the_host_does_not_wait_in_a_vit() -> None:
    encoder = Timm(name="vit_tiny_patch16_224", image_size=32, drop_path=0.1)
    with HostWaits(refuse=True):
        encoder(torch.randn(2, 3, 48, 48)).sum().backward()
