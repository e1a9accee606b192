"""What is exported gives other programs the encoder's features, or is refused."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from pipeline.centre_crop import CentreCrop
from pipeline.graph import scaled_shorter
from pipeline.normalisation import Normalisation
from tests.conftest import MakeShardSet, Pictures
from tools.export import __main__ as export
from tools.export.difference import measure
from tools.export.huggingface_folder import crop_share
from tools.export.subject import open_subject
from tools.export.timm_weights import TimmWeights
from training import exported
from training.command_line import call
from training.installed import remedy
from training.run import checkpoint, run_folder, state_file
from training.settings import parse
from training.trained import load, open_run

VIT = ["--method.encoder", "Timm", "--method.encoder.name", "test_vit"]
RESNET = ["--method.encoder", "ResNet"]
NARROW = ["--method.encoder", "SmallResNet", "--method.encoder.width", "4"]


def saved(run: Path, make_shard_set: MakeShardSet, *words: str) -> Path:
    """Write what a run leaves, of weights that no step has trained; none has its first value."""
    shard_set = make_shard_set(70)
    words = ("--shards", shard_set.root, "--run", str(run), "--steps", "7", *words)
    sizes = ["--method.hidden_size", "16", "--method.embedding_size", "8", "--device", "cpu"]
    settings = parse(["--views.size", "32", *sizes, *words])
    method, random = settings.config.method, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*method.parameters(), *method.buffers()):
            if tensor.is_floating_point():
                tensor += 0.05 * torch.rand(tensor.shape, generator=random)
    run_folder.prepare(run, settings, taken=False)
    parts = {checkpoint.METHOD: method.state_dict(), checkpoint.OPTIMIZER: {}}
    for name, part in {**parts, checkpoint.rank_file(0): {}}.items():
        checkpoint.write_part(run, 7, name, state_file.pieces(part))
    checkpoint.commit(run, 7, {"seconds": 0.0, "world_size": 1, "machine": "cpu, no"})
    exported.write(run / exported.NAME, method.encoder, exported.facts(settings, shard_set, step=7))
    records = [{"step": 5, "evaluation": "final", "knn_top1": 0.25}, {"step": 7, "loss": 1.0}]
    records += [{"step": 9, "evaluation": "final", "knn_top1": 0.75}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return run


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory, make_shard_set: MakeShardSet) -> Path:
    license = ["--weights", "published.safetensors", "--weights_sha256", "0" * 64]
    license += ["--weights_license", "cc-by-nc-4.0"]
    return saved(tmp_path_factory.mktemp("vit") / "run", make_shard_set, *VIT, *license)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory, make_shard_set: MakeShardSet) -> Path:
    return saved(tmp_path_factory.mktemp("resnet") / "run", make_shard_set, *RESNET)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, make_shard_set: MakeShardSet) -> Path:
    return saved(tmp_path_factory.mktemp("narrow") / "run", make_shard_set, *NARROW)


def write(run: Path, to: str, *more: str) -> None:
    words = ["export", str(run), "--to", to, *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        call(export.main)


def images(size: int, count: int = 5) -> list[Image.Image]:
    return [
        Image.fromarray(Pictures(count, height=size, width=size).pixels(i)) for i in range(count)
    ]


def original(run: Path, size: int = 32) -> tuple[Tensor, Tensor]:
    """Return images, and the encoder's own features of them."""
    encoder, prepare = load(run)
    prepare = CentreCrop(size, prepare.normalisation)
    images_NCHW = torch.stack([prepare(image) for image in images(size)])
    with torch.inference_mode():
        return images_NCHW, encoder(images_NCHW)


def assert_same(network: Any, run: Path, size: int = 32) -> None:
    images_NCHW, expected_NF = original(run, size)
    with torch.inference_mode():
        torch.testing.assert_close(network(images_NCHW), expected_NF, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_torchvision_takes_its_own_weights(resnet: Path, tmp_path: Path, ending: str) -> None:
    import safetensors.torch
    import torchvision

    out = tmp_path / f"weights{ending}"
    write(resnet, "torchvision", "--out", str(out))
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    read = safetensors.torch.load_file if ending == ".safetensors" else torch.load
    network.load_state_dict(read(out), strict=True)
    assert_same(network.eval(), resnet)
    if ending == ".pth":
        facts = json.loads((tmp_path / "weights.pth.json").read_text())
    else:
        facts = {n: json.loads(t) for n, t in exported.metadata(out.read_bytes()).items()}
    assert facts["step"] == 7 and facts["license"] is None and facts["check"]["images"] == 64
    assert facts["check"]["found"][0]["relative"] < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir())[0] == f"weights{ending}", "no partial"


@pytest.mark.parametrize(
    ("run", "name"),
    [("vit", "test_vit"), pytest.param("resnet", "resnet18", marks=pytest.mark.slow)],
    ids=["ViT", "torchvision's"],
)
def test_timm_takes_weights_strictly_and_as_pretrained(
    run: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    import safetensors.torch
    import timm

    run_path, out = request.getfixturevalue(run), tmp_path / "w.safetensors"
    write(run_path, "timm", "--out", str(out))
    arguments: Any = {"dynamic_img_size": True} if name == "test_vit" else {}
    strict = timm.create_model(name, num_classes=0, **arguments)
    strict.load_state_dict(safetensors.torch.load_file(out), strict=True)
    overlay = {"file": str(out)}
    pretrained = timm.create_model(
        name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **arguments
    )
    for network in (strict, pretrained):
        assert_same(network.eval(), run_path)


def test_the_line_that_reads_weights_by_timm_tells_it_how_images_are_prepared(
    vit: Path, tmp_path: Path
) -> None:
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    normalisation = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))  # none of timm's
    subject = replace(open_subject(vit, projector=False), normalisation=normalisation)
    out = tmp_path / "w.safetensors"
    TimmWeights().save(subject, out, {})
    shown = "".join(TimmWeights().usage(out, subject)).removeprefix("network = ")
    network = eval(shown, {"timm": timm})
    assert_same(network.eval(), vit)
    process: Any = create_transform(**resolve_model_data_config(network))
    prepare = CentreCrop(32, normalisation)
    for image in images(32):
        torch.testing.assert_close(process(image), prepare(image))
    for image in images(48):  # the scaled ones differ by a grey level at most
        grey_CHW = (process(image) - prepare(image)).abs() * 255
        assert grey_CHW.max() < 1.01 / min(normalisation.std)


def test_a_folder_is_read_by_timm_and_transformers_with_its_preparation(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    import timm

    folder = tmp_path / "mine"
    write(vit, "huggingface", "--out", str(folder))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    assert_same(lambda images_NCHW: model(images_NCHW).pooler_output, vit)
    _, prepare = load(vit)
    process = transformers.AutoImageProcessor.from_pretrained(folder)
    for image in images(32):
        torch.testing.assert_close(process(image)["pixel_values"][0], prepare(image))
    with pytest.raises(FileExistsError, match="is not empty"):
        write(vit, "huggingface", "--out", str(folder))
    (shown,) = re.findall(r"^ +network = (timm.*)$", capsys.readouterr().out, re.MULTILINE)
    network = eval(shown, {"timm": timm})
    assert_same(network.eval(), vit)
    assert_same(network, vit, size=48)


def test_a_model_card_says_what_is_known(vit: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write(vit, "huggingface", "--out", str(tmp_path / "mine"))
    text = (tmp_path / "mine" / "README.md").read_text()
    _, head, rest = text.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-nc-4.0"
    assert "# timm's test_vit" in rest and "| updates | 7 |" in rest
    assert "| data | 70 images of pictures, all |" in rest
    assert "at step 5" in rest and "| k-NN | 25.0 % |" in rest and "75.0 %" not in rest
    assert str(tmp_path) not in text and str(vit) not in text, "paths of this machine"
    recipe = yaml.safe_load(rest.split("```yaml\n")[1].split("```")[0])
    assert recipe["method"]["init_args"]["encoder"]["init_args"]["name"] == "test_vit"


def test_timm_scales_to_the_side_that_is_cropped_here() -> None:
    for size in range(1, 2000):
        assert int(size / crop_share(size)) == scaled_shorter(size), size


def test_onnxruntime_computes_embeddings_of_any_batch_and_size(vit: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "z.onnx"
    write(vit, "onnx", "--projector", "true", "--out", str(out))
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    method = open_run(vit, device="cpu").settings.config.method.eval()
    for size, count in ((32, 1), (48, 5), (160, 2)):  # 160: what its positions are made for
        images_NCHW = original(vit, size)[0][:count]
        with torch.inference_mode():
            expected_ND = method.embed(images_NCHW[None])[0].numpy()
        (found_ND,) = session.run(None, {"images": images_NCHW.numpy()})
        np.testing.assert_allclose(found_ND, expected_ND, atol=1e-4, rtol=1e-4)
    facts = {each.key: json.loads(each.value) for each in onnx.load(out).metadata_props}
    assert (facts["size"], facts["step"], facts["license"]) == (32, 7, "cc-by-nc-4.0")
    assert facts["mean"] == [0.5, 0.5, 0.5] and facts["output"] == "embeddings"
    assert [(each["size"], each["batch_size"]) for each in facts["check"]["found"]] == [
        (32, 32),
        (64, 7),
    ]


def test_a_program_takes_any_batch_and_size(
    narrow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(narrow / "checkpoints" / "00000007", "torch_export")
    said = capsys.readouterr().out
    assert "any number of images, of any size" in said and "torch.export.load" in said
    files = {"viewrank.json": ""}
    program = torch.export.load(narrow / "encoder-00000007.pt2", extra_files=files).module()
    for size in (32, 37):
        images_NCHW, expected_NF = original(narrow, size)
        for count in (1, 5):
            found_NF = program(images_NCHW[:count])
            torch.testing.assert_close(found_NF, expected_NF[:count], atol=1e-4, rtol=1e-4)
    assert json.loads(files["viewrank.json"])["resize_shorter"] == 32


@pytest.mark.slow
def test_a_size_that_is_no_example_of_others_is_the_only_one(
    tmp_path: Path, make_shard_set: MakeShardSet
) -> None:
    """At 8 pixels the last feature map is a single one, for which PyTorch writes other code."""
    run = saved(tmp_path / "run", make_shard_set, *NARROW, "--views.size", "8")
    write(run, "torch_export")
    program = torch.export.load(run / "encoder.pt2").module()
    images_NCHW, expected_NF = original(run, 8)
    torch.testing.assert_close(program(images_NCHW), expected_NF, atol=1e-4, rtol=1e-4)
    with pytest.raises(AssertionError, match="== 8"):
        program(torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("to", ["torchvision", "timm", "huggingface"])
def test_a_library_that_has_no_such_network_is_refused_with_the_formats_that_do(
    to: str, narrow: Path
) -> None:
    before = sorted(narrow.iterdir())
    found = rf"--to {to} cannot hold SmallResNet: .* What can: --to onnx, torch_export\."
    with pytest.raises(ValueError, match=found):
        write(narrow, to)
    assert sorted(narrow.iterdir()) == before


def test_a_network_of_timm_s_and_a_small_stem_are_none_of_torchvision_s(
    vit: Path, tmp_path: Path, make_shard_set: MakeShardSet
) -> None:
    with pytest.raises(ValueError, match=r"timm's test_vit.*--to timm.*, onnx, torch_export\."):
        write(vit, "torchvision")
    run = saved(tmp_path / "run", make_shard_set, *RESNET, "--method.encoder.stem", "small")
    with pytest.raises(ValueError, match="hold ResNet with a small stem"):
        write(run, "timm")


def test_wrong_words_are_refused_before_the_work(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "away.safetensors"
    away.write_bytes((vit / exported.NAME).read_bytes())
    projector = ["--projector", "true"]
    refused: list[tuple[Path, list[str], str]] = [
        (vit, ["timm", *projector], r"has no projector\. What can: --to onnx, torch_export"),
        (away, ["timm", *projector], "holds an encoder without its projector"),
        (away, ["timm"], "--images DIR"),
        (away, ["timm", "--images", str(tmp_path)], "neither a shard set nor a folder with images"),
        (vit, ["timm", "--out", "w.pth"], r"out=w\.pth has to end in \.safetensors"),
        (tmp_path / "none", ["timm"], "does not exist"),
    ]
    for run, words, piece in refused:
        with pytest.raises(ValueError, match=piece):
            write(run, *words)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError) as error:
        write(vit, "onnx")
    assert "onnx is not installed" in remedy(error.value) and "[export]" in remedy(error.value)


def test_an_encoder_outside_of_its_run_is_checked_with_a_folder_of_images(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = tmp_path / "away.safetensors"
    away.write_bytes((vit / exported.NAME).read_bytes())
    for number, image in enumerate(images(40, count=3)):
        image.save(tmp_path / f"{number}.png")
    write(away, "timm", "--images", str(tmp_path))
    assert "3 images of" in capsys.readouterr().out
    assert (tmp_path / "away.timm.safetensors").exists()
    cut = tmp_path / "2.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"2\.png cannot be decoded"):
        write(away, "timm", "--images", str(tmp_path))


def test_an_export_that_computes_something_else_gets_no_name(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def readers(self: TimmWeights, path: Path, subject: Any) -> dict[str, Any]:
        assert path.exists()
        return {"another timm": lambda images_NCHW: 1.001 * subject.network(images_NCHW)}

    monkeypatch.setattr(TimmWeights, "readers", readers)
    with pytest.raises(ValueError, match=r"another timm computes other features.*1\.0e-03"):
        write(vit, "timm", "--out", str(tmp_path / "w.safetensors"))
    assert not list(tmp_path.iterdir())


def test_a_difference_is_the_largest_of_all_images() -> None:
    expected_NF = torch.tensor([[3.0, 4.0], [30.0, 40.0], [0.0, 1.0]])
    found_NF = torch.tensor([[3.0, 4.5], [30.0, 39.0], [0.0, 1.0]])
    rows_N = torch.arange(3)
    found = measure(
        lambda rows: expected_NF[rows],
        lambda rows: found_NF[rows],
        rows_N,
        name="x",
        batch_size=2,
    )
    assert found.absolute == pytest.approx(1.0)  # of the second
    assert found.relative == pytest.approx(0.5 / 5)  # of the first
    with pytest.raises(ValueError, match="not finite"):
        measure(lambda rows: rows / 0, lambda rows: rows, rows_N, name="x", batch_size=2)
