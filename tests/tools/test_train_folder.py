"""One command for a folder of images: what it chooses, starts and refuses."""

import json
import shlex
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from shards.layout import open_shards
from tools import select, shard, train_folder
from training import installed, shown_commands
from training.command_line import call
from training.settings import parse

Started = list[list[str]]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    """The commands that are started; those that make data are run here."""
    monkeypatch.chdir(tmp_path)
    words: Started = []

    def run(name: str, *more: str) -> None:
        words.append([name, *more])
        monkeypatch.setattr("sys.argv", [name, *more])
        if name == "shard":
            monkeypatch.setattr("sys.argv", ["shard", *more, "--workers", "1"])
            shard.main()
        if name == "select":
            call(select.main, more)

    def start(command: list[str], *, shown: list[str]) -> None:
        words.append(shown)

    monkeypatch.setattr(shown_commands, "run", run)
    monkeypatch.setattr(shown_commands, "start", start)
    return words


def images(folder: str, count: int, *, side: int) -> str:
    Path(folder).mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (side, side + 9, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(f"{folder}/{number}.jpg")
    return folder


def test_photographs_are_made_smaller_and_a_share_is_held_out(started: Started) -> None:
    call(train_folder.main, [images("my photos", 24, side=200), "--hold_out", "0.25"])
    assert [words[0] for words in started] == ["shard", "select", "train", "embed", "report"]
    whole = open_shards("data/my_photos")
    assert whole.manifest.resize_shorter == 128  # twice the CPU recipe's largest view
    held, trained = (open_shards(f"data/my_photos/subsets/{each}") for each in ("test", "train"))
    assert (len(held), len(trained)) == (6, 18)
    words = shlex.join(started[2])
    assert "--config own_cpu --shards data/my_photos/subsets/train --run runs/my_photos" in words
    assert "--batch_size 4" in words  # so that 18 images are some steps


def test_what_it_starts_is_a_run_as_the_recipe_s_but_for_what_was_chosen(started: Started) -> None:
    call(
        train_folder.main, [images("tiny", 32, side=32), "--max_seconds", "60", "--", "--seed", "7"]
    )
    found = parse(started[2][1:]).flat()
    recipe = parse(["--config", "own_cpu"]).flat()
    changed = {name: found[name] for name in found if found[name] != recipe.get(name)}
    groups = changed.pop("more_views")
    assert [(each["count"], each["size"]) for each in groups] == [(6, 20)]
    data = "data/tiny/subsets"
    assert changed == {
        "shards": f"{data}/train",
        "evaluation_train": f"{data}/train",
        "evaluation_test": f"{data}/test",
        "run": "runs/tiny",
        "views.size": 32,
        "batch_size": 4,
        "max_seconds": 60.0,
        "epochs": None,
        "warmup_epochs": 0.2,
        "evaluate_every": None,
        "evaluations": 4,
        "seed": 7,
    }
    assert open_shards("data/tiny").manifest.resize_shorter == 0


def test_the_same_command_makes_nothing_twice(started: Started) -> None:
    folder = images("twice", 24, side=40)
    call(train_folder.main, [folder, "--report", "false"])
    run, whole = Path("runs/twice"), open_shards("data/twice").manifest.digest()
    run.mkdir(parents=True)
    for step, of, made in ((5, whole, []), (3, whole, ["embed"]), (5, "another", ["embed"])):
        encoder = {"step": "5"}
        safetensors.numpy.save_file({"x": np.zeros(1)}, run / "encoder.safetensors", encoder)
        facts = json.dumps({"step": step, "data": {"manifest_sha256": of}})
        np.savez(run / "features.npz", metadata=np.array(facts))
        started.clear()
        call(train_folder.main, [folder, "--report", "false"])
        assert [words[0] for words in started] == ["train", *made]
    with pytest.raises(ValueError, match=r"hold_out=0\.3, but .*/subsets/test holds out 0\.1"):
        call(train_folder.main, [folder, "--hold_out", "0.3"])
    Path(folder, "23.jpg").rename(Path(folder, "24.jpg"))
    message = r"data/twice is a shard set of 24 images, made from another folder or before its ima"
    with pytest.raises(ValueError, match=message):
        call(train_folder.main, [folder])


def test_folders_of_one_name_are_not_taken_for_each_other(started: Started) -> None:
    for day in ("monday", "tuesday"):
        Path(day).mkdir()
        images(f"{day}/photos", 24, side=40)
    call(train_folder.main, ["monday/photos"])
    with pytest.raises(ValueError, match="data/photos is a shard set of 24 images, made from an"):
        call(train_folder.main, ["tuesday/photos"])
    call(train_folder.main, ["./monday/photos/"])  # the same one


def test_a_folder_has_several_names_where_links_lead_to_it(started: Started) -> None:
    Path("days").mkdir()
    for name in ("here", "there"):
        images(f"days/{name}", 3, side=40)
        Path(name).symlink_to(f"days/{name}")
    for first, second in (("days/here", "here"), ("there", "days/there")):
        data = Path("data", Path(first).name)
        train_folder._shard(first, data, 0)
        train_folder._refuse_others(data, second)
    Path("there").unlink()
    Path("there").symlink_to("days/here")  # it is no name of days/there any more
    with pytest.raises(
        ValueError, match="data/there is a shard set of 3 images, made from another"
    ):
        train_folder._refuse_others(Path("data/there"), "days/there")


def test_images_reduced_for_one_recipe_are_not_taken_for_a_larger_one(started: Started) -> None:
    folder = images("photos", 24, side=200)
    call(train_folder.main, [folder])
    started.clear()
    state = "but the images in data/photos are reduced to a shorter side of 128 px"
    for more, what in (
        (["--recipe", "own_gpu"], "views of 224 px are cut from images of 448 px"),
        (["--", "--views.size", "72"], "views of 72 px are cut from images of 144 px"),
        (["--resize_shorter", "0"], "resize_shorter=0"),
    ):
        with pytest.raises(ValueError, match=f"{what}, {state}.* Give --resize_shorter 128"):
            call(train_folder.main, [folder, *more])
    assert not started
    call(train_folder.main, [folder, "--recipe", "own_gpu", "--resize_shorter", "128"])
    assert parse(started[0][1:]).config.views.size == 128


def test_another_side_than_images_were_stored_with_is_refused(started: Started) -> None:
    whole, reduced = Path("whole"), Path("reduced")
    folder = images("photos", 2, side=100)
    train_folder._shard(folder, whole, 0)
    train_folder._shard(folder, reduced, 64)
    for data, largest, wanted in ((whole, 224, 0), (whole, 224, None), (reduced, 224, 64)):
        train_folder._refuse_other_side(data, largest, wanted)
    train_folder._refuse_other_side(reduced, 32, None)
    with pytest.raises(ValueError, match=r"=64, but .* in whole are as large .*resize_shorter 0 "):
        train_folder._refuse_other_side(whole, 32, 64)
    for wanted in (0, 96, None):
        with pytest.raises(ValueError, match=r"in reduced are reduced to .* 64 px since an earlie"):
            train_folder._refuse_other_side(reduced, 33, wanted)


def test_images_that_were_small_anyway_are_taken_for_any_recipe(started: Started) -> None:
    folder = Path(images("photos", 3, side=64))  # just the side to which larger ones are reduced
    for number, large in enumerate(("large", "larger", "largest")):
        train_folder._shard(str(folder), Path(f"of {number}"), 64)
        most = open_shards(f"of {number}").manifest.statistics.max_height
        assert most == 64  # the larger ones are reduced
        train_folder._refuse_other_side(Path(f"of {number}"), 224, None)
        (file,) = Path(images(large, 1, side=100)).iterdir()
        file.rename(folder / f"{large}.jpg")
    train_folder._shard(str(folder), Path("of half"), 64)
    with pytest.raises(ValueError, match="in of half are reduced"):
        train_folder._refuse_other_side(Path("of half"), 224, None)


def test_a_tenth_is_held_out_of_many_folders_of_few_images(started: Started) -> None:
    Path("days").mkdir()
    for day in range(30):
        images(f"days/{day}", 3, side=40)
    call(train_folder.main, ["days"])
    assert len(open_shards("data/days/subsets/test")) == 9


def test_any_number_of_gpus_shares_the_batch_and_the_held_out_images(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    small = "{class_path: JointEmbedding, init_args: {encoder: {class_path: SmallResNet}}}"
    Path("mine.yaml").write_text(
        f"{{epochs: 1, batch_size: 64, micro_batch_size: 32, method: {small}}}"
    )
    words = [images("many", 40, side=40), "--recipe", "mine.yaml"]  # of which 4 are held out
    for gpus, trains in ((2, 2), (3, 3), (5, 4), (8, 4)):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        started.clear()
        call(train_folder.main, words)
        launched = next(words for words in started if "launch" in words)
        assert launched[launched.index("--num_processes") + 1] == str(trains)
        config = parse(launched[launched.index("train") + 1 :]).config
        assert config.batch_size_per_rank(trains) == 8 // trains
        config.micro_batch_size_per_rank(trains)  # refuses what does not divide


def test_a_large_batch_is_rounded_to_all_gpus() -> None:
    recipe = parse(["--config", "own_gpu"]).resolved
    assert train_folder._batch(recipe, 100_000, 3) == (["--batch_size", "255"], 3)
    assert train_folder._batch(recipe, 100_000, 8) == ([], 8)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("views: {count: 3}\nepochs: 1", ""),
        ("", "config"),
        ("views: [", "cannot be read as YAML"),
        ("views: {sise: 3}", "sise is no setting"),
        ("epochs: 1\nviews: {size: small}", "views.size=small, but it must be a whole number"),
    ],
)
def test_a_recipe_of_one_s_own_is_read_as_train_reads_it(
    started: Started, text: str, says: str
) -> None:
    Path("mine.yaml").write_text(text)
    words = [images("photos", 24, side=40), "--recipe", "mine.yaml"]
    if says:
        with pytest.raises(ValueError, match=says):
            call(train_folder.main, words)
        assert not started
    else:
        call(train_folder.main, words)
        config = parse(started[2][1:]).config
        assert (config.views.count, config.views.size, config.batch_size) == (3, 40, 4)


def test_flags_of_train_are_read_before_anything_is_made(started: Started) -> None:
    with pytest.raises(ValueError, match="The nearest flag is --seed"):
        call(train_folder.main, [images("photos", 24, side=40), "--", "--sed", "3"])
    assert not started


@pytest.mark.parametrize("share", ["0.1428571", "0.1", "0.33333333333333331"])
def test_a_share_and_seconds_are_passed_on_as_they_were_given(started: Started, share: str) -> None:
    words = [images("photos", 24, side=40), "--hold_out", share, "--max_seconds", "1234567"]
    call(train_folder.main, words)
    call(train_folder.main, words)
    assert [each[0] for each in started].count("train") == 2
    assert parse(started[2][1:]).config.max_seconds == 1234567


def test_shards_and_run_may_lie_among_the_images(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(images("photos", 40, side=40))
    (folder / "broken.jpg").write_bytes(b"<html>")
    monkeypatch.chdir(folder)
    call(train_folder.main, ["."])
    assert list(Path("data/photos/quarantine").rglob("*broken.jpg"))
    started.clear()
    for written in (".", "./", str(Path.cwd())):
        call(train_folder.main, [written, "--report", "false"])
    assert [words[0] for words in started] == ["train", "embed"] * 3


def test_without_the_packages_of_a_page_it_says_how_to_get_them(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(installed.EXTRAS, "report", ("none_such",))
    call(train_folder.main, [images("photos", 24, side=40)])
    assert [words[0] for words in started] == ["shard", "select", "train", "embed"]
    assert "  none: the package none_such is not installed here" in capsys.readouterr().out


def test_what_cannot_be_trained_on_is_refused_before_it_is_tried(started: Started) -> None:
    few = images("few", 5, side=40)
    for words, message in (
        (["nothing"], "nothing is not a folder"),
        ([few, "--recipe", "none_such"], "recipe=none_such: there is no such file"),
        ([few, "--hold_out", "1"], "hold_out=1.0; expected a share"),
        ([few], "few has 5 images; expected 20 or more"),
        (["data/few"], "data/few is a shard set already"),
    ):
        with pytest.raises(ValueError, match=message):
            call(train_folder.main, words)
    assert [words[0] for words in started] == ["shard"]


@pytest.mark.slow
def test_a_folder_becomes_an_encoder_its_features_and_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = images("mine", 40, side=64)
    call(train_folder.main, [folder, "--", "--epochs", "1", "--warmup_epochs", "0"])
    run = Path("runs/mine")
    assert (run / "encoder.safetensors").exists() and (run / "report.html").exists()
    assert len(np.load(run / "features.npz")["key"]) == 40
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert any("view_map" in json.loads(line) for line in lines)
