"""Subsets: read back by DALI, which knows nothing of tables, and compared with the source."""

import io
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dali import Pipeline, fn, types
from shards.layout import ShardSet, open_shards
from shards.source.source import Sample, Source
from shards.storage import LocalFolder
from shards.subset.selection import select
from shards.survey import rows_of
from shards.writing.write import write

# Not balanced: label 0 has 120 samples, label 1 has 60, …; of label 4 there is one.
COUNTS = (120, 60, 30, 13, 1)


class Motley(Source):
    """Tiny pictures with folds, a part, and numbers for keys that are not the ids."""

    name = "motley"
    split = "all"

    def __init__(self, counts: tuple[int, ...] = COUNTS, *, labelled: bool = True) -> None:
        self.labels = np.repeat(np.arange(len(counts)), counts)
        self.classes = ["ant", "bee", "cat", "3", "2"][: len(counts)] if labelled else []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        pair = index // 2  # two and two are the same
        pixels = np.full((8 + pair % 5, 8 + pair % 3, 3), pair, dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return Sample(
            key=f"{index + 1000:d}" if index < 5 else f"m{index:04d}",
            image=file.getvalue(),
            label=int(self.labels[index]) if self.classes else -1,
            id=7 * index + 3,
            metadata={
                "folds": [index % 10, (index + 1) % 10],
                "part": "train" if index % 4 else "val",
                "whole": index % 2 == 0,
            },
        )


class Copied(Motley):
    """As a set of copies has them, labels that are ids of originals: without classes, and large."""

    def __init__(self, first: int) -> None:
        super().__init__((20,), labelled=False)
        self.first = first

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), label=self.first + index if index % 3 else -1)


SOURCE = Motley()
IDS = [7 * index + 3 for index in range(len(SOURCE))]
LABEL_OF = dict(zip(IDS, SOURCE.labels.tolist(), strict=True))


@pytest.fixture
def whole(tmp_path: Path) -> ShardSet:
    return write(SOURCE, tmp_path / "set", samples_per_shard=50)


def read_by_dali(shard_set: ShardSet) -> list[tuple[int, int]]:
    """Ids and labels, by the reader that training uses, from tars and indexes alone."""

    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        outputs = fn.readers.webdataset(
            paths=shard_set.tars,
            index_paths=shard_set.indexes,
            ext=["id.i64", "y.i64"],
            dtypes=[types.INT64, types.INT64],
            missing_component_behavior="error",
        )
        pipeline.set_outputs(*outputs)
    pipeline.build()
    read = []
    for _ in range(len(shard_set) + 1):  # one more than the manifest says must begin anew
        i, y = (np.asarray(output[0]) for output in pipeline.run())
        read.append((int(i[0]), int(y[0])))
    assert read.pop() == read[0]
    return read


def ids_of(shard_set: ShardSet) -> set[int]:
    read = read_by_dali(shard_set)
    assert len(dict(read)) == len(read), "no sample twice"
    return set(dict(read))


def one(chosen: ShardSet | tuple[ShardSet, ShardSet]) -> ShardSet:
    assert isinstance(chosen, ShardSet)
    return chosen


def two(chosen: ShardSet | tuple[ShardSet, ShardSet]) -> tuple[ShardSet, ShardSet]:
    assert isinstance(chosen, tuple)
    return chosen


def test_a_stratified_fraction_takes_its_share_of_each_class_and_at_least_one(whole):
    subset = one(select(whole, "tenth", fraction=0.1, command="as noted"))

    read = read_by_dali(subset)
    assert Counter(label for _, label in read) == {0: 12, 1: 6, 2: 3, 3: 1, 4: 1}
    assert all(LABEL_OF[i] == label for i, label in read)
    assert len(subset) == 23
    assert subset.manifest.command == "as noted"


def test_a_subset_has_the_statistics_sizes_and_duplicates_of_its_samples(whole):
    subset = one(select(whole, "part", fraction=0.4, stratified=False, seed=5))

    indices = [IDS.index(i) for i in ids_of(subset)]
    assert len(indices) == round(0.4 * len(SOURCE))
    images = [SOURCE[index].image for index in indices]
    sizes = [Image.open(io.BytesIO(image)).size for image in images]  # type: ignore[arg-type]
    manifest = subset.manifest
    assert manifest.statistics.median_shorter_side == np.median([min(size) for size in sizes])
    assert manifest.statistics.min_height == min(height for _, height in sizes)
    assert manifest.statistics.max_width == max(width for width, _ in sizes)
    assert manifest.statistics.mean == whole.manifest.statistics.mean
    assert manifest.account.found == manifest.account.written == len(indices)
    assert manifest.account.duplicates == len(images) - len(set(images)) > 5
    assert manifest.extensions == ["png"]
    assert (manifest.source, manifest.classes) == (whole.manifest.source, whole.manifest.classes)


def test_nothing_is_copied_and_the_set_stays_as_it_was(whole):
    before = {p.name: p.read_bytes() for p in Path(whole.root).iterdir()}

    subset = one(select(whole, "few", per_class=1))

    files = {p.name for p in Path(subset.root).iterdir()}
    assert not [name for name in files if name.endswith(".tar")]
    assert all(os.path.samefile(tar, tar.replace("subsets/few/../../", "")) for tar in subset.tars)
    assert {p.name: p.read_bytes() for p in Path(whole.root).iterdir() if p.is_file()} == before
    assert os.listdir(Path(whole.root) / "subsets") == ["few"]
    names = {shard.name for shard in subset.manifest.shards}
    assert files == {f"{name}.{ext}" for name in names for ext in ("idx", "jsonl")} | {
        "manifest.json"
    }
    assert len(names) <= 5  # one sample a class: shards without one are left out


def test_the_smaller_draw_lies_in_the_larger_one(whole):
    drawn = [ids_of(one(select(whole, f"f{f}", fraction=f))) for f in (0.01, 0.1, 0.5, 1.0)]
    assert drawn[0] < drawn[1] < drawn[2] < drawn[3] == set(IDS)
    per_class = [ids_of(one(select(whole, f"n{n}", per_class=n))) for n in (1, 12)]
    assert per_class[0] < per_class[1]

    other = ids_of(one(select(whole, "other", fraction=0.5, seed=1)))
    assert other != drawn[2]


@pytest.mark.parametrize("stratified", [True, False])
def test_how_the_set_was_shuffled_and_cut_does_not_matter(whole, tmp_path, stratified):
    anew = write(SOURCE, tmp_path / "anew", samples_per_shard=17, seed=99)

    chosen = [
        ids_of(one(select(s, "a", fraction=0.3, per_class=40, seed=4, stratified=stratified)))
        for s in (whole, anew)
    ]
    assert chosen[0] == chosen[1]
    # For ever: whoever draws so today must get the same samples tomorrow.
    assert ids_of(one(select(whole, "fixed", per_class=1, seed=4))) == FIXED


# The first of each class in sorted(IDS), shuffled by numpy.random.RandomState(4).
FIXED = {332, 990, 1431, 1543, 1564}


def test_fraction_and_rest_are_disjoint_and_together_all_that_the_others_choose(whole):
    train, val = two(
        select(whole, "train", fraction=0.8, rest="val", classes=["bee", "cat"], seed=2)
    )

    assert not ids_of(train) & ids_of(val)
    assert ids_of(train) | ids_of(val) == {i for i in IDS if LABEL_OF[i] in (1, 2)}
    assert Counter(label for _, label in read_by_dali(train)) == {1: 48, 2: 24}


def test_what_a_fraction_leaves_has_samples_of_every_class(whole):
    test, train = two(select(whole, "test", fraction=0.1, rest="train"))
    assert Counter(label for _, label in read_by_dali(test)) == {0: 12, 1: 6, 2: 3, 3: 1}
    assert Counter(label for _, label in read_by_dali(train)) == {0: 108, 1: 54, 2: 27, 3: 12, 4: 1}


def test_the_rest_of_per_class_is_everything_else(whole):
    labelled, others = two(select(whole, "labelled", per_class=2, rest="others"))
    assert Counter(label for _, label in read_by_dali(labelled)) == {0: 2, 1: 2, 2: 2, 3: 2, 4: 1}
    assert ids_of(others) == set(IDS) - ids_of(labelled)


def test_classes_by_name_and_label_where_a_name_comes_first(whole):
    subset = one(select(whole, "named", classes=["ant", "2", "1"]))
    assert {label for _, label in read_by_dali(subset)} == {0, 4, 1}  # "2" is the name of label 4


def test_folds_and_fields_are_read_from_the_metadata(whole):
    fold = ids_of(one(select(whole, "fold", fold=3)))
    assert fold == {IDS[i] for i in range(len(IDS)) if i % 10 in (2, 3)}

    both = one(select(whole, "both", where=["part=val", "whole=true"], fold=4, classes=["ant"]))
    assert ids_of(both) == {IDS[i] for i in range(120) if i % 4 == 0 and i % 10 in (3, 4)}


def test_ids_and_keys_are_read_from_a_file(whole, tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text(f"{IDS[9]}\n\n m0007 \nkey=1003\nid={IDS[200]}\n")
    assert ids_of(one(select(whole, "listed", ids=file))) == {IDS[i] for i in (9, 7, 3, 200)}
    file.write_text("m0007\n", encoding="utf-8-sig")  # as Windows writes it
    assert ids_of(one(select(whole, "marked", ids=file))) == {IDS[7]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("4", "no sample of id 4, which"),
        ("m9999\nm9998", r"no sample of key m9999 \(nor of 1 more\)"),
        ("1004", "1004 .* could be an id, or the key of sample 31; write id=1004"),
        ("id=four", "'id=four'; expected a number"),
        ("", "lists no samples"),
        ("\udcff", "is not text"),
    ],
)
def test_a_line_that_names_no_sample_is_an_error(whole, tmp_path, line, message):
    file = tmp_path / "ids.txt"
    file.write_bytes(f"{IDS[5]}\n{line}\n".encode(errors="surrogateescape") if line else b"\n")
    with pytest.raises(ValueError, match=message):
        select(whole, "x", ids=file)
    assert not (Path(whole.root) / "subsets").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "nothing says what to select"),
        ({"fraction": 0.0}, "fraction=0.0; expected more than 0"),
        ({"fraction": 1.5}, "fraction=1.5; expected"),
        ({"per_class": 0}, "per_class=0; expected 1 or more"),
        ({"seed": -1, "fraction": 0.5}, "seed=-1; expected a number from 0"),
        ({"classes": ["dog"]}, "no class 'dog'; expected one of ant, bee, cat, 3, 2"),
        ({"classes": ["9"]}, "no class '9'; .* label from 0 to 4"),
        ({"where": ["part"]}, "where='part'; expected FIELD=VALUE"),
        ({"where": ["prt=val"]}, "the field 'prt'; expected one of .* folds, part, whole"),
        ({"where": ["part=test"]}, "no sample .* fits all criteria"),
        ({"fraction": 1.0, "rest": "y"}, "subset y would be empty"),
        ({"fraction": 0.5, "rest": "x"}, "both called x"),
        ({"classes": ["ant"], "rest": "y"}, "rest=y is what a draw leaves"),
    ],
)
def test_wrong_criteria_are_refused_before_anything_is_written(whole, flags, message):
    with pytest.raises(ValueError, match=message):
        select(whole, "x", **flags)
    assert not (Path(whole.root) / "subsets").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b"])
def test_a_name_stays_in_its_folder(whole, name):
    with pytest.raises(ValueError, match="is no name for a subset"):
        select(whole, name, fraction=0.5)


def test_an_existing_subset_is_refused_and_stays(whole):
    first = one(select(whole, "once", fraction=0.5))
    before = ids_of(first)
    for names in (("once", None), ("other", "once")):
        with pytest.raises(FileExistsError, match="once already exists"):
            select(whole, names[0], fraction=0.2, rest=names[1])
    assert ids_of(first) == before
    assert os.listdir(Path(whole.root) / "subsets") == ["once"]


def test_a_subset_has_no_subsets(whole):
    subset = one(select(whole, "once", fraction=0.5, command="how it came"))
    with pytest.raises(ValueError, match=r"Select from .*/set, with .* its own: how it came"):
        select(subset, "twice", fraction=0.5)


def test_unlabelled_samples_are_drawn_as_one_class(tmp_path):
    whole = write(Motley((100,), labelled=False), tmp_path / "set")
    assert len(one(select(whole, "tenth", fraction=0.1))) == 10
    with pytest.raises(ValueError, match="has no classes"):
        select(whole, "x", per_class=3)
    with pytest.raises(ValueError, match="has no classes"):
        select(whole, "x", classes=["ant"])


@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_failed_attempt_leaves_no_subset(whole, monkeypatch, after):
    create, calls = LocalFolder.create, []

    def failing(self, name):
        calls.append(name)
        if len(calls) > after:
            raise OSError(28, "No space left on device", name)
        return create(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "create", failing)
        with pytest.raises(OSError, match="No space left"):
            select(whole, "a", fraction=0.5, rest="b")
    assert not list((Path(whole.root) / "subsets").glob("*"))
    for subset in two(select(whole, "a", fraction=0.5, rest="b")):
        assert len(open_shards(subset.root))


def test_a_changed_table_is_refused(whole):
    table = Path(whole.tars[1]).with_suffix(".jsonl")
    table.write_bytes(table.read_bytes().replace(b'"label":0', b'"label":1'))
    with pytest.raises(ValueError, match=r"00001\.jsonl is not the file that was written"):
        select(whole, "x", fraction=0.5)


def test_tables_of_a_subset_are_those_of_the_set_filtered(whole):
    subset = one(select(whole, "few", fraction=0.2))
    rows = {row.id: row for shard in whole.manifest.shards for row in rows_of(whole, shard)}
    own = [row for shard in subset.manifest.shards for row in rows_of(subset, shard)]
    assert [row.id for row in own] == [i for i, _ in read_by_dali(subset)]
    assert all(rows[row.id] == row for row in own)


def test_subsets_in_an_object_store(request):
    place = f"memory://{request.node.name}"
    whole = write(SOURCE, f"{place}/set", samples_per_shard=50)

    train, val = two(select(whole, "train", fraction=0.8, rest="val", fold=3))

    assert train.tars[0] == f"{place}/set/00000.tar"
    own = [
        [row.id for shard in s.manifest.shards for row in rows_of(s, shard)] for s in (train, val)
    ]
    assert sorted(own[0] + own[1]) == [IDS[i] for i in range(len(IDS)) if i % 10 in (2, 3)]
    with pytest.raises(FileExistsError, match="already exists"):
        select(whole, "val", fraction=0.5)
    with pytest.raises(ValueError, match=f"Select from {place}/set"):
        select(val, "more", fraction=0.5)


def test_a_failed_attempt_in_an_object_store_leaves_no_subset(request, monkeypatch):
    from shards.storage import RemoteFolder

    whole = write(SOURCE, f"memory://{request.node.name}/set", samples_per_shard=50)
    write_file = RemoteFolder.write

    def failing(self, name, data):
        if name == "manifest.json" and self.location.endswith("/b"):
            raise OSError(5, "the store is gone", name)
        write_file(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "write", failing)
        with pytest.raises(OSError, match="the store is gone"):
            select(whole, "a", fraction=0.5, rest="b")
    for name in ("a", "b"):
        with pytest.raises(FileNotFoundError):
            open_shards(f"{whole.root}/subsets/{name}")
    assert len(two(select(whole, "a", fraction=0.5, rest="b"))[0])


def test_the_manifest_says_how_it_was_made(whole):
    subset = one(select(whole, "few", fraction=0.2, seed=8, command="python -m tools.select …"))
    written = json.loads((Path(subset.root) / "manifest.json").read_text())
    assert written["parent"] == "../.."
    assert written["seed"] == 8
    assert written["command"] == "python -m tools.select …"


def test_the_command_writes_sums_up_and_says_what_is_next(whole, monkeypatch, capsys):
    from tools.select import main
    from training.command_line import call

    flags = ["--fraction", "0.5", "--rest", "val", "--classes", "ant", "2", "--seed", "3"]
    monkeypatch.setattr("sys.argv", ["select", whole.root, "train", *flags])
    call(main)

    text = " ".join(capsys.readouterr().out.split())
    assert "subset train samples 61 of 224 (27.23%) classes 2 of 5, 1 to 60 samples each" in text
    assert "subset val samples 60 of 224" in text
    assert f"next --shards {whole.root}/subsets/val" in text
    train = open_shards(f"{whole.root}/subsets/train")
    expected, _ = two(select(whole, "a", fraction=0.5, rest="b", classes=["ant", "2"], seed=3))
    assert ids_of(train) == ids_of(expected)
    command = " ".join(["python -m tools.select", whole.root, "train", *flags])
    assert train.manifest.command == command


@pytest.mark.parametrize("first", [4, 2**31, 2**62])
def test_labels_that_are_ids_of_originals_are_no_classes(tmp_path, monkeypatch, capsys, first):
    from tools.select import main
    from training.command_line import call

    source = Copied(first)
    whole = write(source, tmp_path / "set")
    monkeypatch.setattr("sys.argv", ["select", whole.root, "part", "--fraction", "0.5"])
    call(main)
    text = " ".join(capsys.readouterr().out.split())
    assert "subset part samples 10 of 20 (50.00%) classes none" in text
    labels = {sample.id: sample.label for sample in map(source.__getitem__, range(20))}
    read = dict(read_by_dali(open_shards(f"{whole.root}/subsets/part")))
    assert len(read) == 10 and read.items() <= labels.items()


@pytest.mark.parametrize(
    ("flags", "first", "rest"),
    [
        (
            ["--per_class", "2"],
            "5 of 5, 1 to 2 samples each shards",
            "4 of 5, 11 to 118 samples each; lacks 1 that the other subset has shards",
        ),
        (
            ["--per_class", "200"],
            "5 of 5, 1 to 120 samples each shards",
            "none; lacks 5 that the other subset has shards",
        ),
        (
            ["--fraction", "0.1"],
            "4 of 5, 1 to 12 samples each; lacks 1 that the other subset has shards",
            "5 of 5, 1 to 108 samples each shards",
        ),
    ],
    ids=["two", "all", "tenth"],
)
def test_the_command_says_how_many_classes_a_part_of_a_draw_lacks(
    tmp_path, monkeypatch, capsys, flags, first, rest
):
    from tools.select import main
    from training.command_line import call

    source = Motley()
    source.labels = np.append(source.labels, [-1, -1, -1])  # so that something is always left
    whole = write(source, tmp_path / "set")
    monkeypatch.setattr("sys.argv", ["select", whole.root, "a", *flags, "--rest", "b"])
    call(main)
    text = " ".join(capsys.readouterr().out.split())
    before, after = text.split("subset b")
    assert f"classes {first}" in before and f"classes {rest}" in after


def test_a_set_below_a_path_that_is_not_utf_8_has_subsets_too(tmp_path, monkeypatch, capsys):
    from tools.select import main
    from training.command_line import call

    root = tmp_path / os.fsdecode(b"caf\xe9 \n") / "set"
    write(SOURCE, root, samples_per_shard=50)
    monkeypatch.setattr("sys.argv", ["select", str(root), "half", "--fraction", "0.5"])
    call(main)
    assert "caf\\udce9 \\n" in capsys.readouterr().out
    half = open_shards(root / "subsets" / "half")
    root.rename(tmp_path / "set")  # DALI reads from no such path
    assert len(half) == 112 and len(ids_of(open_shards(tmp_path / "set/subsets/half"))) == 112
    assert half.manifest.command.startswith("python -m tools.select")
