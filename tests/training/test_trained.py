"""A trained encoder is loaded from its file alone, with the pixels that it was trained on."""

import io
import json
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageOps

from model.encoder import SmallResNet, Timm
from pipeline.centre_crop import CentreCrop, _upright
from pipeline.images import Images
from pipeline.normalisation import Normalisation
from shards.image import upright_pixels
from tests.conftest import MakeShardSet, Pictures
from tests.shards.test_prepare import png_of_16_bits, tiff_of
from training import exported, weights
from training.own_modules import MODULES
from training.settings import parse
from training.trained import load, open_encoder

EXAMPLES = Path(__file__).parents[2] / "examples"
NARROW = ["--method.encoder", "SmallResNet", "--method.encoder.width", "4"]


def export(tmp_path: Path, make_shard_set: MakeShardSet, *words: str) -> Path:
    """Write what a run that was given some words leaves."""
    settings = parse(["--shards", "x", "--run", str(tmp_path), "--steps", "3", *words])
    path = tmp_path / exported.NAME
    facts = exported.facts(settings, make_shard_set(12), step=3)
    exported.write(path, settings.config.method.encoder, facts)
    return path


def test_the_file_says_what_it_is(tmp_path: Path, make_shard_set: MakeShardSet) -> None:
    path = export(tmp_path, make_shard_set, *NARROW, "--views.size", "40")
    _, facts = exported.read(path)
    manifest = make_shard_set(12).manifest
    assert facts["class"] == "model.encoder.SmallResNet"
    assert facts["arguments"] == {"width": 4, "stem_stride": 1}
    assert (facts["size"], facts["step"], facts["method"]) == (40, 3, "JointEmbedding")
    assert facts["mean"] == [0.485, 0.456, 0.406] and facts["std"] == [0.229, 0.224, 0.225]
    assert facts["objective"].startswith("SmoothAP(") and facts["weights"] is None
    assert facts["data"]["manifest_sha256"] == manifest.digest()
    assert facts["versions"].keys() >= {"python", "torch", "timm"}
    assert exported.metadata(path.read_bytes()) == {n: json.dumps(v) for n, v in facts.items()}


def test_the_file_alone_gives_the_network_and_its_pixels(
    tmp_path: Path, make_shard_set: MakeShardSet
) -> None:
    words = ["--method.encoder", "Timm", "--method.encoder.name", "vit_tiny_patch16_224"]
    words += ["--method.encoder.image_size", "32", "--views.size", "48"]
    path = export(tmp_path, make_shard_set, *words).rename(tmp_path / "away.safetensors")
    encoder, prepare = load(path)
    assert isinstance(encoder, Timm) and not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert prepare == CentreCrop(48, Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    for name, tensor in exported.read(path)[0].items():
        assert torch.equal(encoder.network.state_dict()[name], tensor)


def test_pixels_are_those_of_the_file_whatever_the_class_has_by_now(
    tmp_path: Path, make_shard_set: MakeShardSet
) -> None:
    path = export(tmp_path, make_shard_set, *NARROW, "--views.size", "32")
    facts = exported.read(path)[1] | {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    exported.write(path, SmallResNet(width=4), facts)
    encoder, prepare = load(path)
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    pixels_HWC = Pictures(1, height=32, width=32).pixels(0)
    expected_HWC = (pixels_HWC / 255 - np.array(facts["mean"])) / np.array(facts["std"])
    found_HWC = prepare(Image.fromarray(pixels_HWC)).permute(1, 2, 0)
    np.testing.assert_allclose(found_HWC.numpy(), expected_HWC, atol=1e-5)


@pytest.mark.parametrize(("size", "height", "width"), [(32, 47, 64), (128, 200, 171), (48, 30, 43)])
def test_a_centre_crop_is_the_pipeline_s(
    size: int, height: int, width: int, make_shard_set: MakeShardSet
) -> None:
    shard_set = make_shard_set(12, height=height, width=width)
    normalisation = Normalisation((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    prepare = pickle.loads(pickle.dumps(CentreCrop(size, normalisation)))  # as to a worker
    pictures = Pictures(12, height=height, width=width)
    (batch,) = Images(shard_set, size=size, normalisation=normalisation)
    for image_CHW, sample in zip(batch.image_BCHW, batch.id_B.tolist(), strict=True):
        mine = prepare(Image.fromarray(pictures.pixels(sample)))
        assert mine.shape == image_CHW.shape
        assert (mine - image_CHW).abs().mean() < 1.5 / 255 / 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_its_file_turns_is_seen_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(Pictures(1, height=40, width=64).pixels(0))
    stored.save(tmp_path / "turned.png", exif=exif)
    prepare = CentreCrop(32, Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    with Image.open(tmp_path / "turned.png") as turned:
        assert torch.equal(prepare(turned), prepare(ImageOps.exif_transpose(turned)))


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF", b"Exif\0\0II*\0"])
def test_damaged_exif_turns_nothing(exif: bytes, tmp_path: Path) -> None:
    stored = Image.fromarray(Pictures(1, height=40, width=64).pixels(0))
    stored.save(tmp_path / "damaged.png", exif=exif)
    prepare = CentreCrop(32, Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    with Image.open(tmp_path / "damaged.png") as damaged:
        assert torch.equal(prepare(damaged), prepare(stored))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("form", ["png", "tif"])
def test_grey_of_16_bits_becomes_what_a_shard_set_makes_of_it(form: str, bits: int) -> None:
    values_HWC = np.random.RandomState(bits).randint(0, 2**bits, (20, 30, 1)).astype(np.uint16)
    values_HWC[0, 0] = 2**bits - 1
    data = png_of_16_bits(values_HWC) if form == "png" else tiff_of(values_HWC, 16)
    with Image.open(io.BytesIO(data)) as mine, Image.open(io.BytesIO(data)) as theirs:
        pixels_HWC = _upright(mine)
        assert np.array_equal(pixels_HWC, upright_pixels(theirs)[0])
    assert np.array_equal(pixels_HWC, (values_HWC // 2 ** (bits - 8)).repeat(3, axis=2))


@pytest.mark.parametrize("kind", ["f4", "i4"])
def test_pixels_of_32_bits_are_refused(kind: str, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30), kind)).save(tmp_path / "numbers.tif")
    prepare = CentreCrop(16, Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    refused = pytest.raises(ValueError, match="its pixels are 32-bit numbers")
    with Image.open(tmp_path / "numbers.tif") as image, refused:
        prepare(image)


def test_an_encoder_of_one_s_own_is_written_and_read_again(
    tmp_path: Path, make_shard_set: MakeShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(MODULES, str(EXAMPLES / "own_encoder.py"))
    words = ["--method.encoder", "own_encoder.Strided", "--method.encoder.width", "8"]
    path = export(tmp_path, make_shard_set, *words)
    written = safetensors.torch.load_file(path)
    assert {"stem.0.weight", "last.bias"} <= written.keys()
    encoder, _ = load(path)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 8)
    assert all(torch.equal(written[name], each) for name, each in encoder.state_dict().items())
    other = type(encoder)(width=8)
    weights.fill(other, weights.read(str(path)).tensors, "here")
    assert all(torch.equal(written[name], each) for name, each in other.state_dict().items())


def test_other_files_are_refused_by_what_they_lack(
    tmp_path: Path, make_shard_set: MakeShardSet
) -> None:
    encoder, path = SmallResNet(width=4), tmp_path / exported.NAME
    exported.write(path, encoder, {"size": 32, "step": 1})
    with pytest.raises(ValueError, match="do not say class, arguments, mean, std; of an older v"):
        open_encoder(path, device="cpu")
    pixels: dict[str, Any] = {"mean": encoder.mean, "std": encoder.std}
    facts = {"class": "os.system", "arguments": {}, "size": 32, "step": 1, **pixels}
    exported.write(path, encoder, facts)
    with pytest.raises(ValueError, match="encoder"):
        open_encoder(path, device="cpu")
    facts |= {"class": "model.encoder.SmallResNet", "arguments": {"width": 8}}
    exported.write(path, encoder, facts)
    with pytest.raises(ValueError, match=r"does not fit the model\.encoder\.SmallResNet that its"):
        open_encoder(path, device="cpu")
    for wrong in ([0.5, 0.5], [0.5, 0.5, None], [0.5, 0.5, math.nan], [1, 1, 10**400], [0, 0, 0]):
        exported.write(path, encoder, {**facts, "std": wrong})
        with pytest.raises(ValueError, match="do not say mean, std;"):
            exported.read(path)
