"""Published weights: every layout is read, what does not fit is said, and runs begin with them."""

import copy
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from model.encoder import Encoder, ResNet, SmallResNet, Timm
from pipeline.centre_crop import CentreCrop
from pipeline.normalisation import IMAGENET, Normalisation
from training import exported, weights
from training.named_encoder import open_named
from training.own_modules import MODULES
from training.run import checkpoint, run_folder, state_file
from training.settings import parse

Tensors = dict[str, Tensor]
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
SHIFTED = f"""
from model.encoder import SmallResNet

class ShiftedResNet(SmallResNet):
    mean, std = {MEAN}, {STD}
"""
"""A class whose pixels are others than those of the class that takes its weights."""


def saved(tensors: Any, path: Path) -> Path:
    """Write what a training program would."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path, {"license": "cc-by-nc-4.0"})
    else:
        torch.save(tensors, path)
    return path


def filled(encoder: Any, path: Path) -> list[str]:
    return weights.fill(encoder, weights.read(str(path)).tensors, str(path))


@pytest.mark.parametrize(
    ("wrap", "suffix"),
    [
        (lambda state: state, ".safetensors"),
        (lambda state: state, ".pth"),
        (lambda state: {"state_dict": state, "epoch": 7, "arch": "resnet18"}, ".pth.tar"),
        (lambda state: {"model": {f"module.{n}": t for n, t in state.items()}}, ".pt"),
        (
            lambda state: {
                "state_dict": {
                    **{f"module.encoder_q.{n}": t for n, t in state.items() if n[:2] != "fc"},
                    **{f"module.encoder_k.{n}": t + 1 for n, t in state.items()},
                    "module.queue": torch.zeros(128, 64),
                }
            },
            ".tar",
        ),
        (
            lambda state: {
                "student": {f"module.backbone.{n}": t + 1 for n, t in state.items()},
                "teacher": {f"backbone.{n}": t for n, t in state.items()},
            },
            ".pth",
        ),
    ],
    ids=["safetensors", "torchvision", "epoch beside it", "module.", "MoCo", "DINO"],
)
@pytest.mark.parametrize("kind", ["ResNet", "Timm"])
def test_a_resnet_is_filled_from_every_layout(
    kind: str, wrap: Any, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    path = saved(wrap(theirs.state_dict()), tmp_path / f"weights{suffix}")
    encoder = ResNet(depth=18) if kind == "ResNet" else Timm(name="resnet18")
    lines = filled(encoder, path)
    theirs.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder.eval()(images), theirs.eval()(images))
    assert "begins with 120 of its 120 tensors" in lines[0] and "stay random" not in str(lines)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("vit_small_patch14_dinov2", {"img_size": 518}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 518}),
        ("vit_small_patch16_dinov3", {"img_size": 256}),
        ("deit_tiny_patch16_224", {}),
        ("convnext_atto", {}),
    ],
)
def test_published_layouts_give_timm_s_own_weights(
    name: str, made: dict[str, Any], tmp_path: Path
) -> None:
    if name not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {name}")
    torch.manual_seed(0)
    theirs: Any = timm.create_model(name, **made)
    path = saved(theirs.state_dict(), tmp_path / "published.pth")
    image_size = 98 if "patch14" in name else 96 if "convnext" not in name else None
    torch.manual_seed(1)
    encoder = Timm(name=name, image_size=image_size)
    lines = filled(encoder, path)
    sized: dict[str, Any] = {"img_size": image_size} if image_size else {}
    expected: Any = timm.create_model(
        name,
        pretrained=True,
        num_classes=0,
        pretrained_cfg_overlay={"file": str(path), "custom_load": False},
        **sized,
    )
    own = encoder.network.state_dict()
    for each, tensor in expected.state_dict().items():
        assert torch.equal(own[each], tensor), each
    if "pos_embed" in own:
        assert own["pos_embed"].shape != theirs.state_dict()["pos_embed"].shape, "resampled"
    blocks = [n for n in own if n.startswith(("blocks", "stages"))]
    assert blocks and all(torch.equal(own[n], theirs.state_dict()[n]) for n in blocks)
    assert "stay random" not in str(lines)


def test_what_did_not_match_is_listed_and_too_much_is_refused(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    del state["bn1.weight"]
    path = saved({**state, "queue": torch.zeros(3)}, tmp_path / "most.pth")
    lines = filled(ResNet(depth=18), path)
    assert lines[1:] == [
        "these stay random: bn1.weight [64]",
        "not used of it: fc.bias, fc.weight, queue",
    ]
    with pytest.raises(ValueError, match=r"of another network: 100 % of the encoder's"):
        filled(SmallResNet(width=4), path)
    with pytest.raises(ValueError, match=r"of another network"):
        filled(ResNet(depth=50), path)
    state["conv1.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"not finite: conv1.weight"):
        filled(ResNet(depth=18), saved(state, tmp_path / "nan.pth"))


class Runs:
    def __reduce__(self) -> Any:
        return (print, ("this ran",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": Runs()}, "without running code of its own"),
        ({"epoch": 3}, "holds no weights by name, but a dict with epoch"),
        ([torch.zeros(2)], "holds no weights by name, but a list"),
    ],
)
def test_files_without_weights_are_refused_and_run_nothing(
    content: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=words):
        weights.read(str(path))
    assert capsys.readouterr().out == ""
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as weights"):
        weights.read(str(path))
    with pytest.raises(ValueError, match="does not exist; give a file"):
        weights.read(str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    "content", [b"shards: data\n", b"h", b"j", b"{}", b"", b"\x80\x02}q\x01(K"]
)
def test_files_that_are_no_weights_at_all_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read as weights .*: safetensors"):
        weights.read(str(path))


def test_a_legacy_file_is_refused_wherever_it_is_cut_off(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"w": torch.ones(3)}, whole, _use_new_zipfile_serialization=False)
    content, path = whole.getvalue(), tmp_path / "legacy.pth"
    path.write_bytes(content)
    assert torch.equal(weights.read(str(path)).tensors["w"], torch.ones(3))
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match="cannot be read as weights"):
            weights.read(str(path))


def test_memory_that_ends_is_not_the_file_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise MemoryError

    path = saved({"w": torch.ones(3)}, tmp_path / "large.pth")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(MemoryError):
        weights.read(str(path))


def safetensors_of(path: Path, metadata: dict[str, str] | None, *, dtype: str = "F32") -> str:
    """Write a file of two bytes' or two float32s' tensor, by its specification."""
    size = 8 if dtype == "F32" else 2
    tensor = {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "w": tensor}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    return str(path)


def test_strange_safetensors_files_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"1234567890")
    with pytest.raises(ValueError, match="is no safetensors file"):
        weights.read(str(path))
    with pytest.raises(ValueError, match="has numbers of a type 'F8_E8M0', not PyTorch's"):
        weights.read(safetensors_of(path, {}, dtype="F8_E8M0"))
    with pytest.raises(ValueError, match="is no encoder that a run exported"):
        exported.read(path)
    assert weights.read(safetensors_of(path, None)).license is None
    deep = {"license": "[" * 100_000}
    assert weights.read(safetensors_of(path, deep)).license == deep["license"]
    # As others may write it: of pixels in 0..255.
    found = weights.read(safetensors_of(path, {"mean": "[123, 116, 103]", "std": "[58, 57, 57]"}))
    assert found.normalisation is None


@pytest.mark.parametrize("name", ["MoCo", "DINO"])
def test_copies_of_the_encoder_begin_with_the_weights_too(name: str, tmp_path: Path) -> None:
    donor = SmallResNet(width=4)
    path = saved(copy.deepcopy(donor.network.state_dict()), tmp_path / "small.safetensors")
    words = ["--method", name, "--method.encoder", "SmallResNet", "--method.encoder.width", "4"]
    words += ["--views.count", "2", "--weights", str(path)]
    base = ["--shards", "x", "--run", str(tmp_path / "run"), "--steps", "1"]
    settings = weights.recorded(parse([*base, *words]))
    assert settings.resolved["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert settings.resolved["weights_license"] == settings.config.weights_license
    assert settings.config.weights_license == "cc-by-nc-4.0"
    method = settings.config.method
    weights.begin(settings.config, method)
    encoders = [part for part in method.modules() if isinstance(part, Encoder)]
    assert len(encoders) == 2
    for network in encoders:
        for name, tensor in donor.state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="it is another file"):
        weights.recorded(parse([*base, *words, "--weights_sha256", "0" * 64]))
    # A flag's weights are not those whose hash a recipe, such as this run's config.yaml, names.
    recipe = tmp_path / "config.yaml"
    recipe.write_text(settings.yaml())
    other = saved(SmallResNet(width=4).network.state_dict(), tmp_path / "other.pth")
    again = ["--config", str(recipe), "--weights", str(other), "--run", str(tmp_path / "again")]
    found = weights.recorded(parse(again)).config
    assert found.weights_sha256 == hashlib.sha256(other.read_bytes()).hexdigest()
    assert found.weights_license is None


def test_a_file_that_was_written_over_since_is_not_what_a_run_begins_with(tmp_path: Path) -> None:
    state = SmallResNet(width=4).network.state_dict()
    path = saved(state, tmp_path / "small.pth")
    words = ["--shards", "x", "--run", str(tmp_path / "run"), "--steps", "1"]
    words += ["--method.encoder", "SmallResNet", "--method.encoder.width", "4"]
    config = weights.recorded(parse([*words, "--weights", str(path)])).config
    before = copy.deepcopy(config.method.state_dict())
    saved({name: tensor + 1 for name, tensor in state.items()}, path)
    with pytest.raises(ValueError, match=f"but weights_sha256={config.weights_sha256}: it is ano"):
        weights.begin(config, config.method)
    for name, tensor in config.method.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_run_goes_on_with_its_weights_elsewhere_but_not_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, first = tmp_path / "run", tmp_path / "first.pth"
    saved(SmallResNet(width=4).network.state_dict(), first)
    words = ["--shards", "x", "--run", str(run), "--steps", "1"]
    words += ["--method.encoder", "SmallResNet", "--method.encoder.width", "4"]
    begun = weights.recorded(parse([*words, "--weights", str(first)]))
    run_folder.prepare(run, begun, taken=run_folder.take(run))
    monkeypatch.setattr(checkpoint, "exists", lambda _: True)
    monkeypatch.setattr(run_folder, "exists", lambda _: True)

    moved = first.rename(tmp_path / "moved.pth")
    for again in ([*words, "--weights", str(first)], ["--config", str(run / run_folder.CONFIG)]):
        gone = weights.recorded(parse(again))
        assert gone.resolved == begun.resolved
        run_folder.check(run, gone)
    run_folder.check(run, weights.recorded(parse([*words, "--weights", str(moved)])))
    other = saved(SmallResNet(width=4).network.state_dict(), tmp_path / "other.pth")
    for without in ([], ["--weights", str(other)]):
        with pytest.raises(ValueError, match=r"another configuration \(weights_sha256: "):
            run_folder.check(run, weights.recorded(parse([*words, *without])))


def test_a_name_that_timm_cannot_fetch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"weights nothing cannot be had .*give a file"):
        weights.read("timm:nothing")

    made: Any = timm.create_model("resnet18")
    made.pretrained_cfg["license"] = "mit"
    monkeypatch.setattr(timm, "create_model", lambda _, **__: made)
    found = weights.read("timm:resnet18")
    monkeypatch.undo()
    assert found.license == "mit" and len(found.sha256) == 64
    encoder = Timm(name="resnet18")
    weights.fill(encoder, found.tensors, "timm:resnet18")
    assert torch.equal(encoder.network.state_dict()["conv1.weight"], made.conv1.weight)


def test_the_licence_of_a_run_s_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"license": json.dumps("mit")})
    assert weights.read(str(path)).license == "mit"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"license": json.dumps(None)})
    assert weights.read(str(path)).license is None


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of a class of one's own; no step has trained it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_shifted.py").write_text(SHIFTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv(MODULES, str(folder / "own_shifted.py"))
        yield left_by_a_run(folder / "shifted")


def left_by_a_run(run: Path) -> Path:
    """Write a checkpoint and the exported encoder."""
    words = ["--shards", "x", "--run", str(run), "--steps", "1", "--device", "cpu"]
    words += ["--method.encoder", "ShiftedResNet", "--method.encoder.width", "4"]
    settings = parse(words)
    method = settings.config.method
    run_folder.prepare(run, settings, taken=False)
    parts = {checkpoint.METHOD: method.state_dict(), checkpoint.OPTIMIZER: {}}
    for name, part in {**parts, checkpoint.rank_file(0): {}}.items():
        checkpoint.write_part(run, 0, name, state_file.pieces(part))
    checkpoint.commit(run, 0, {"seconds": 0.0, "world_size": 1, "machine": "cpu, no"})
    exported.write(run / exported.NAME, method.encoder, exported.facts(settings, None, step=0))
    return run


def assert_pixels_of_weights(words: list[str], network: nn.Module) -> None:
    """Compare the encoder that words name with a network, whose input is made by hand."""
    pixels_HWC = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8)
    trained = open_named(None, words, size=32, device="cpu", mixed_precision="no")
    found_CHW = CentreCrop(32, trained.normalisation)(Image.fromarray(pixels_HWC))
    expected_HWC = (pixels_HWC / 255 - np.array(MEAN)) / np.array(STD)
    expected_CHW = torch.from_numpy(expected_HWC.astype(np.float32)).permute(2, 0, 1)
    with torch.inference_mode():
        found_1F = trained.encoder.eval()(found_CHW[None])
        torch.testing.assert_close(found_1F, network.eval()(expected_CHW[None]))


@pytest.mark.parametrize("left", ["", exported.NAME], ids=["run", "file"])
def test_features_are_of_the_pixels_that_a_run_s_weights_were_trained_on(
    left: str, shifted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = SmallResNet(width=4)
    filled(network, shifted / exported.NAME)
    words = ["--encoder", "SmallResNet", "--encoder.width", "4"]
    assert_pixels_of_weights([*words, "--encoder.weights", str(shifted / left)], network)
    assert f"pixels get the mean {MEAN} and std {STD} of these weights" in capsys.readouterr().err


def test_features_are_of_the_pixels_of_the_tag_that_timm_brings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create = timm.create_model
    torch.manual_seed(0)
    theirs: Any = create("test_vit", num_classes=0, dynamic_img_size=True)
    theirs.pretrained_cfg |= {"mean": MEAN, "std": STD}
    monkeypatch.setattr(
        timm, "create_model", lambda n, **more: theirs if "." in n else create(n, **more)
    )
    words = ["--encoder", "Timm", "--encoder.name", "test_vit"]
    assert_pixels_of_weights([*words, "--encoder.weights", "timm:test_vit.dino"], theirs)
    assert "(0.5, 0.5, 0.5) of timm's test_vit\n" in capsys.readouterr().err

    base = ["--shards", "x", "--run", "run", "--steps", "1", "--weights", "timm:test_vit.dino"]
    config = parse([*base, "--method.encoder", "Timm", "--method.encoder.name", "test_vit"]).config
    *_, line = weights.begin(config, config.method)
    assert line.startswith(f"timm:test_vit.dino was trained on pixels of mean {MEAN} and std")
    assert "but this run's have mean (0.5, 0.5, 0.5)" in line
    assert line.endswith("--method.encoder.name test_vit.dino")
    assert config.normalisation == Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_run_says_that_its_pixels_are_others_than_its_weights(shifted: Path) -> None:
    words = ["--shards", "x", "--run", "run", "--steps", "1", "--weights", str(shifted)]
    found = []
    for name in ("SmallResNet", "ShiftedResNet"):
        encoder = ["--method.encoder", name, "--method.encoder.width", "4"]
        config = parse([*words, *encoder]).config
        found.append(weights.begin(config, config.method))
    (_, line), (_,) = found
    assert line.startswith(f"{shifted} was trained on pixels of mean {MEAN} and std {STD}, but")
    assert f"have mean {IMAGENET.mean} and std {IMAGENET.std}" in line
