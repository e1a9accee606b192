"""Features are the encoder's, each once, however the command was stopped and started."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from PIL import Image

from model.encoder import SmallResNet
from pipeline.tuning import Tuning
from shards.layout import ShardSet, open_shards
from shards.shard_index import lines_of
from shards.source.folder import ImageFolder
from shards.survey import rows_of
from shards.tar import components
from shards.writing.prepare import Preparation
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures
from tests.program import BIN, TWO, finish
from tools.embed import parts
from tools.embed.__main__ import _agree, _facts_of_pixels, main
from tools.embed.feature_file import COLUMNS, Joined
from training.command_line import call
from training.named_encoder import open_named

SAMPLES = 42


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    PartialState._reset_state()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallResNet, list[str]]:
    """An encoder, and the words that name it."""
    torch.manual_seed(1)
    network = SmallResNet(width=4)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(network.network.state_dict(), path)
    words = ["--encoder", "SmallResNet", "--encoder.width", "4", "--encoder.weights", str(path)]
    return network.eval(), [*words, "--size", "32", "--mixed_precision", "no", "--device", "cpu"]


def embed(out: Path, data: object, words: list[str], *more: str) -> dict[str, Any]:
    """Run the command, and return the columns of its file and its metadata."""
    call(main, [str(data), "--out", str(out), "--batch_size", "5", *words, *more])
    PartialState._reset_state()
    return read(out)


def read(out: Path) -> dict[str, Any]:
    if out.suffix == ".npz":
        with np.load(out) as file:
            found = dict(file)
        return {**found, "metadata": json.loads(str(found["metadata"]))}
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(out)
    facts = {name.decode(): json.loads(text) for name, text in table.schema.metadata.items()}
    return {**table.to_pydict(), "metadata": facts}


def of_pixels(network: SmallResNet, ids: list[int]) -> np.ndarray:
    """Return features of pictures that are as large as the encoder's input, by hand."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (network.mean, network.std))
    pictures = [torch.from_numpy(Pictures(SAMPLES).pixels(i).copy()) for i in ids]
    images = [(picture.permute(2, 0, 1) / 255 - mean) / std for picture in pictures]
    with torch.inference_mode():
        return network(torch.stack(images)).numpy()


@pytest.mark.parametrize("samples_per_shard", [8, SAMPLES])
def test_both_kinds_of_file_hold_each_sample_s_features_in_the_set_s_order(
    samples_per_shard: int,
    make_shard_set: MakeShardSet,
    encoder: tuple[SmallResNet, list[str]],
    tmp_path: Path,
) -> None:
    """With few samples a shard a part is several shards, with many a piece of one."""
    shard_set = make_shard_set(SAMPLES, samples_per_shard=samples_per_shard)
    network, words = encoder
    words = [*words, "--samples_per_part", "19"]
    assert len(parts.cut(shard_set, 19)) == 3
    npz = embed(tmp_path / "a.npz", shard_set.root, words)
    parquet = embed(tmp_path / "a.parquet", shard_set.root, words, "--float16", "true")
    rows = [row for shard in shard_set.manifest.shards for row in rows_of(shard_set, shard)]
    for name in ("key", "id", "label"):
        assert list(npz[name]) == list(parquet[name]) == [getattr(row, name) for row in rows]
    expected = of_pixels(network, [row.id for row in rows])
    assert npz["feature"].dtype == np.float32
    np.testing.assert_allclose(npz["feature"], expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(np.float16(parquet["feature"]), np.float16(npz["feature"]))
    facts = parquet["metadata"]
    assert (facts["size"], facts["step"], facts["left_out"]) == (32, 0, [])
    assert facts["data"]["manifest_sha256"] == shard_set.manifest.digest()
    assert facts["encoder"]["arguments"] == {"width": 4, "stem_stride": 1}
    assert facts["mean"] == list(network.mean) and facts["std"] == list(network.std)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.parquet"]


def test_a_command_that_was_stopped_goes_on_and_leaves_the_same_bytes(
    make_shard_set: MakeShardSet,
    encoder: tuple[SmallResNet, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, words = make_shard_set(SAMPLES).root, [*encoder[1], "--samples_per_part", "8"]
    embed(tmp_path / "whole.npz", root, words)
    made: list[int] = []
    make = parts.Maker.make

    def stopped(maker: parts.Maker, part: parts.Part) -> None:
        if part.number == 2 and len(made) == 2:
            raise KeyboardInterrupt
        made.append(part.number)
        make(maker, part)

    monkeypatch.setattr(parts.Maker, "make", stopped)
    out = tmp_path / "broken.npz"
    with pytest.raises(KeyboardInterrupt):
        embed(out, root, words)
    assert not out.exists() and f"stays in {out}.partial" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"parts of another command or device: dtype differ"):
        embed(out, root, words, "--float16", "true")
    made.append(-1)
    embed(out, root, words)
    assert made == [0, 1, -1, 2, 3, 4, 5]
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    with pytest.raises(ValueError, match="is there already"):
        embed(out, root, words)


def test_parts_of_another_device_are_not_joined(
    make_shard_set: MakeShardSet,
    encoder: tuple[SmallResNet, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, out = make_shard_set(SAMPLES).root, tmp_path / "a.npz"

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.Maker, "make", stopped)
        embed(out, root, encoder[1])
    PartialState._reset_state()
    plan = tmp_path / "a.npz.partial" / "plan.json"
    here = json.loads(plan.read_text())
    plan.write_text(json.dumps({**here, "device": "gpu", "decoder": ["gpu", 0.9]}))
    with pytest.raises(ValueError, match="parts of another command or device: device differ"):
        embed(out, root, encoder[1])
    PartialState._reset_state()
    assert here.pop("device") == "cpu"
    plan.write_text(json.dumps(here))  # as versions before wrote it
    assert "device" not in embed(out, root, encoder[1])["metadata"]


def test_each_decoder_of_a_gpu_is_another_one_than_the_cpu_s(tmp_path: Path) -> None:
    words = ["--encoder", "SmallResNet", "--encoder.width", "4"]
    trained = open_named(None, words, size=32, device="cpu")
    gpu = replace(trained, device=torch.device("cuda"))
    kinds = [trained, gpu]
    kinds += [replace(gpu, tuning=Tuning(decode="cpu"))]
    kinds += [replace(gpu, tuning=Tuning(hw_decoder_load=0.0))]
    for (i, one), (j, other) in product(enumerate(kinds), repeat=2):
        folder = tmp_path / f"{i} {j}"
        folder.mkdir()
        _agree(folder, _facts_of_pixels(one))
        with nullcontext() if i == j else pytest.raises(ValueError, match=r"(device|decoder) dif"):
            _agree(folder, _facts_of_pixels(other))
    cached = replace(gpu, tuning=Tuning(decode="cache"))  # which one pass has no use for
    assert _facts_of_pixels(cached) == _facts_of_pixels(gpu)


@pytest.mark.parametrize("samples_per_part", [8, 3])
def test_a_sample_that_cannot_be_read_is_left_out_and_named(
    samples_per_part: int,
    make_shard_set: MakeShardSet,
    encoder: tuple[SmallResNet, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = make_shard_set(SAMPLES)
    root = tmp_path / "set"
    shutil.copytree(whole.root, root)
    key = zeroed(open_shards(root), shard=1, position=3)
    words = [*encoder[1], "--samples_per_part", str(samples_per_part)]
    expected = embed(tmp_path / "a.npz", whole.root, words)
    found = embed(tmp_path / "b.npz", root, words)
    (line,) = found["metadata"]["left_out"]
    assert line.startswith(f"00001.tar, sample {key} ") and line in capsys.readouterr().out
    kept = expected["key"] != key
    assert np.count_nonzero(~kept) == 1
    assert np.array_equal(found["key"], expected["key"][kept])
    np.testing.assert_allclose(found["feature"], expected["feature"][kept], rtol=1e-5, atol=1e-6)


def test_a_part_of_which_nothing_can_be_read_is_left_out_and_named(
    make_shard_set: MakeShardSet, encoder: tuple[SmallResNet, list[str]], tmp_path: Path
) -> None:
    whole = make_shard_set(SAMPLES)
    root = tmp_path / "set"
    shutil.copytree(whole.root, root)
    count = whole.manifest.shards[1].samples
    damaged = [zeroed(open_shards(root), shard=1, position=place) for place in range(count)]
    words = [*encoder[1], "--samples_per_part", str(count)]
    expected = embed(tmp_path / "whole.npz", whole.root, words)
    kept = ~np.isin(expected["key"], damaged)
    assert np.count_nonzero(kept) == SAMPLES - count
    for name in ("sound.npz", "sound.parquet"):
        found = embed(tmp_path / name, root, words)
        lines = found["metadata"]["left_out"]
        assert [line.partition(" has ")[0] for line in lines] == [
            f"00001.tar, sample {key}" for key in damaged
        ]
        for column in ("key", "id", "label"):
            assert list(found[column]) == list(expected[column][kept])
        feature_NF = np.array(found["feature"])
        np.testing.assert_allclose(feature_NF, expected["feature"][kept], rtol=1e-5, atol=1e-6)


def test_damage_hides_no_image_that_could_never_be_decoded(
    encoder: tuple[SmallResNet, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.writing.write.MEASURED", 1)  # for its colours the first is decoded
    folder, file = tmp_path / "images", io.BytesIO()
    folder.mkdir()
    for number in range(11):
        Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(folder / f"{number}.png")
    Image.effect_noise((40, 40), 50).save(file, "JPEG")
    (folder / "cut.jpg").write_bytes(file.getvalue()[:-100])
    how = Preparation(verify_decode=False)
    whole = write(ImageFolder(root=folder), tmp_path / "set", samples_per_shard=4, preparation=how)
    keys = [[row.key for row in rows_of(whole, shard)] for shard in whole.manifest.shards]
    sound = next(shard for shard, of in enumerate(keys) if "cut" not in of)
    zeros = zeroed(whole, shard=sound, position=1)
    found = embed(tmp_path / "a.npz", whole.root, encoder[1])
    assert len(found["metadata"]["left_out"]) == 2
    assert {*found["key"]} == {key for of in keys for key in of} - {"cut", zeros}


@pytest.mark.parametrize("by_id", [False, True])
def test_parts_are_joined_without_all_of_them_open(
    by_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_N = np.random.default_rng(0).permutation(150)
    kinds: list[Any] = [("key", "S3"), ("id", np.int64), ("label", np.int64)]
    table = np.empty(150, [*kinds, ("feature", np.float32, (2,))])
    table["key"], table["id"], table["label"] = id_N.astype("S3"), id_N, id_N % 10
    table["feature"] = id_N[:, None] + [0.25, 0.5]
    cuts = sorted([*range(3, 150, 3), 60])  # 50 parts of three, and an empty one
    paths = [tmp_path / f"{number:06d}.npy" for number in range(51)]
    for path, part in zip(paths, np.split(table, cuts), strict=True):
        np.save(path, part)
    load, most = np.load, []

    def counted(*given: Any, **how: Any) -> Any:
        found = load(*given, **how)
        most.append(len(os.listdir("/proc/self/fd")))
        return found

    monkeypatch.setattr(np, "load", counted)
    before = len(os.listdir("/proc/self/fd"))
    joined = Joined(paths, by_id=by_id)
    assert len(joined) == 150
    expected = table[np.argsort(id_N)] if by_id else table
    for column in COLUMNS:
        assert np.array_equal(np.concatenate([*joined.blocks(column)]), expected[column])
    assert len(most) >= 4 * 50 and max(most) < before + 10


def zeroed(shard_set: ShardSet, *, shard: int, position: int) -> str:
    """Overwrite an image with zeros, and return its key."""
    line = lines_of(shard_set, shard_set.manifest.shards[shard])[position]
    ((offset, size, name),) = [(at, n, m) for e, at, n, m in components(line) if e == "png"]
    with open(shard_set.tars[shard], "r+b") as tar:
        tar.seek(offset)
        tar.write(bytes(size))
    return name.partition(".")[0]


def test_folders_and_tables_keep_the_order_of_their_files(
    encoder: tuple[SmallResNet, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = tmp_path / "images", tmp_path / "table.csv"
    lines = ["path,label"]
    for index in range(11):
        file = folder / f"class{index % 2}" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(Pictures(SAMPLES).pixels(index)).save(file)
        lines.append(f"images/class{index % 2}/{index}.png,{index % 2}")
    (folder / "class1" / "3.png").write_bytes(b"no image")
    table.write_text("\n".join(lines))
    network, words = encoder
    words = [*words, "--samples_per_part", "4"]
    for data, order in ((folder, [0, 2, 4, 6, 8, 10, 1, 5, 7, 9]), (table, [*range(11)])):
        found = embed(tmp_path / f"{data.stem}.npz", data, words)
        order = [index for index in order if index != 3]
        assert [int(key.rpartition("/")[2]) for key in found["key"]] == order
        assert found["label"].tolist() == [index % 2 for index in order]
        expected = of_pixels(network, order)
        np.testing.assert_allclose(found["feature"], expected, rtol=1e-4, atol=1e-5)
        (line,) = found["metadata"]["left_out"]
        assert "3.png: " in line
        said = capsys.readouterr()
        assert "is no shard set: its 11 images are copied" in said.err and line in said.out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "images",
        "images.npz",
        "table.csv",
        "table.npz",
    ]


def test_other_images_than_before_the_stop_are_not_taken_for_them(
    encoder: tuple[SmallResNet, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        for index in range(3):
            picture = Image.fromarray(Pictures(SAMPLES).pixels(index))
            picture.save(tmp_path / folder / f"{index}.png")

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.Maker, "make", stopped)
        embed(tmp_path / "a.npz", tmp_path / "one", encoder[1])
    PartialState._reset_state()
    with pytest.raises(ValueError, match=r"is a copy of other images than .*other holds now"):
        embed(tmp_path / "a.npz", tmp_path / "other", encoder[1])
    PartialState._reset_state()
    assert len(embed(tmp_path / "a.npz", tmp_path / "one", encoder[1])["key"]) == 3


def test_a_strip_that_would_fill_the_memory_is_left_out_and_named(
    encoder: tuple[SmallResNet, list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (20000, 1)).save(folder / "strip.png")
    Image.new("RGB", (40, 40)).save(folder / "other.png")
    found = embed(tmp_path / "a.npz", folder, encoder[1])
    assert list(found["key"]) == ["other"]
    (line,) = found["metadata"]["left_out"]
    assert "strip.png" in line


@pytest.mark.slow
def test_two_processes_leave_the_features_of_one(
    make_shard_set: MakeShardSet, encoder: tuple[SmallResNet, list[str]], tmp_path: Path
) -> None:
    root, words = make_shard_set(SAMPLES).root, [*encoder[1], "--samples_per_part", "8"]
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    embed(one, root, words)
    more = [root, "--out", str(two), "--batch_size", "5", *words]
    code, out, err = finish([str(BIN / "accelerate"), *TWO, "-m", "tools.embed", *more])
    assert code == 0, out + err
    assert out.count("42 of ") == 1
    expected, found = read(one), read(two)
    for name in ("key", "id", "label"):
        assert np.array_equal(found[name], expected[name])
    np.testing.assert_allclose(found["feature"], expected["feature"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "Tim"], r"Tim does not exist.*The nearest is Timm"),
        (["--encoder", "SmallResNet"], r"published for no size .*Give --size"),
        (["--encoder", "SmallResNet", "--encoder.width", "0"], r"width=0 channels"),
        (["--encoder.width", "4"], r"--encoder CLASS is missing"),
        (["--encoder", "SmallResNet", "--encoder.wdth", "4"], r"The nearest is width"),
        (["--encoder", "ResNet", "--encoder.weights", "x.pth"], r"encoder.weights x.pth does not"),
        (["--encoder", "Timm", "--size", "50"], r"cannot take .*50.* Change --size, or --encoder"),
    ],
)
def test_what_names_no_encoder_is_refused_in_the_words_of_this_command(
    words: list[str], message: str, make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    root = make_shard_set(SAMPLES).root
    with pytest.raises(ValueError, match=message) as error:
        call(main, [root, "--out", str(tmp_path / "x.npz"), "--device", "cpu", *words])
    assert "method." not in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
