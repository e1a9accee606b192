"""What tools.inspect reports, on a set whose every number is known, and the picture it draws."""

import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from shards.duplicates import groups_of_copies
from shards.layout import ShardSet, open_shards
from shards.one_line import one_line
from shards.source.source import Sample, Source
from shards.subset.selection import select
from shards.survey import survey
from shards.writing.prepare import Preparation
from shards.writing.write import write
from tools.inspect import __main__ as inspect
from training.command_line import call
from training.terminal import aspect_bins, bar, bins_of, show

Inspect = Callable[..., str]


class Known(Source):
    """30 classes of 1 to 30 samples; some copies, some with another label, three no images."""

    name = "known"
    split = "test"

    def __init__(self) -> None:
        self.classes = [f"[kind] {label:02d}" for label in range(30)]
        self.labels = np.repeat(np.arange(30), np.arange(1, 31)).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        # 400 to 404 are the same picture of label 27; 10 and 440 one picture of labels 4 and 29.
        like = 400 if 400 <= index < 405 else 10 if index == 440 else index
        pixels = np.full((16, 16 if like % 2 else 32, 3), like % 256, dtype=np.uint8)
        pixels[0, 0] = like // 256
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        data = file.getvalue()
        if index in (100, 101):
            data = b"this is text"
        elif index == 102:
            data = b""
        return Sample(
            key=f"k{index:04d}",
            image=data,
            label=self.labels[index],
            id=index,
            metadata={"file": f"folder/{index}." + ("jpg" if index == 200 else "png")},
            extension="jpg" if index == 200 else "png",
        )


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    whole = write(
        Known(), tmp_path_factory.mktemp("known") / "set", samples_per_shard=100, command="as noted"
    )
    select(whole, "ten", fraction=0.1, command="how ten was made")
    return whole


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inspect:
    def run(*flags: object) -> str:
        monkeypatch.setattr(sys, "argv", ["inspect", *map(str, flags)])
        call(inspect.main)
        return capsys.readouterr().out

    return run


def section(text: str, title: str) -> list[str]:
    """The lines of a section, without its title, spaces squeezed."""
    for part in text.split("\n\n"):
        lines = part.splitlines()
        if lines and lines[0].startswith(title):
            return [re.sub(" +", " ", line).strip() for line in lines[1:]]
    raise AssertionError(f"no section {title!r} in\n{text}")


def test_the_overview_accounts_for_every_sample(known, run):
    lines = section(run(known.root), known.root)
    assert "source known test" in lines
    assert "samples 462" in lines
    assert "account 465 found = 462 written + 3 quarantined + 0 dropped" in lines
    assert "of the written 1 repaired, 5 duplicates" in lines
    assert "encoding original: png 462" in lines
    assert "width 16 to 32 px" in lines
    assert "written by as noted" in lines
    tars = sum(Path(tar).stat().st_size for tar in known.tars)
    assert any(
        line.startswith("shards 5 of ") and f"{tars / 1e6:,.1f} MB" in line for line in lines
    )


def test_bytes_an_image_are_those_of_the_files(known):
    source = Known()
    usable = [i for i in range(len(source)) if i not in (100, 101, 102)]
    sizes = [len(source[i].image) for i in usable]
    assert sorted(survey(known).image_bytes.tolist()) == sorted(sizes)


def test_quarantine_is_counted_with_an_example_of_each_reason(known, run):
    lines = section(run(known.root), "quarantine")
    assert len(lines) == 2
    assert re.fullmatch(r"not an image 2 folder/10[01]\.png: .+", lines[0])
    assert re.fullmatch(r"empty 1 folder/102\.png: the file has no bytes", lines[1])
    assert section(run(known.root), "remarks") == ["wrong extension 1"]


def test_of_many_classes_the_largest_and_smallest_are_shown(known, run):
    text = run(known.root)
    assert "classes: 30 of 30, largest : smallest = 30.0, the 10 largest and smallest" in text
    lines = section(text, "classes")
    assert len(lines) == 21
    assert lines[0].startswith("29 [kind] 29 30 ██████████████████████████████")
    assert lines[10] == "…"
    assert lines[-1].startswith("0 [kind] 00 1 █")


def test_copies_are_named_and_those_of_two_labels_called_out(known, run):
    text = run(known.root)
    assert "duplicates: 2 images occur more than once, 7 times in all" in text
    five, pair = section(text, "duplicates")
    assert five.startswith("5 times k04") and five.endswith("and 1 more")
    assert len(re.findall(r"k040[0-4] \(\[kind\] 27\)", five)) == 4
    (at_odds,) = section(text, "WARNING: 1 of them have DIFFERENT LABELS")
    assert at_odds == pair
    assert {"k0010 ([kind] 04)", "k0440 ([kind] 29)"} == set(pair[8:].split(", "))


def test_histograms_count_every_image(known, run):
    text = run(known.root)
    assert section(text, "shorter side") == ["16 462 100.0% " + "█" * 30]
    found = survey(known)
    wide = int((found.widths == 32).sum())
    ratios = section(text, "width : height")
    assert ratios[0].startswith(f"1:1 {462 - wide} ") and ratios[-1].startswith(f"2:1 {wide} ")


def test_subsets_are_listed_and_inspected(known, run):
    counts = [11 if size == 14 else size for size in range(1, 31)]  # three are quarantined
    ten = sum(max(1, round(0.1 * count)) for count in counts)
    share = f"{ten / 462:.1%}"
    assert section(run(known.root), "subsets") == [f"ten {ten} ({share}) how ten was made"]

    text = run(f"{known.root}/subsets/ten")
    lines = section(text, f"{known.root}/subsets/ten")
    assert f"subset of {known.root}" in lines
    assert f"samples {ten}" in lines
    assert "subsets" not in text.split("\n\n", 1)[1]


def test_the_picture_shows_the_pixels_of_the_samples(known, run, tmp_path):
    out = tmp_path / "sheet.png"
    assert f"contact sheet of 9 samples: {out}" in run(known.root, "--out", out, "--samples", 9)

    with Image.open(out) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    drawn = np.random.RandomState(0).permutation(462)[:9]
    ids = [id_ for shard in known.manifest.shards for id_ in ids_of(known, shard.name)]
    shown = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    for position in drawn.tolist():
        index = ids[position]
        value = (400 if 400 <= index < 405 else 10 if index == 440 else index) % 256
        assert (value,) * 3 in shown
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    run(known.root, "--out", tmp_path / "again.png", "--samples", 9)
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()


def ids_of(shard_set: ShardSet, name: str) -> list[int]:
    """Ids in the order of a tar, by the names in its index."""
    lines = shard_set.folder.read(f"{name}.idx").decode().splitlines()[1:]
    return [int(re.findall(r" k(\d+)\.", line)[0]) for line in lines]


def test_bare_pixels_and_small_sets_are_drawn_too(run, tmp_path):
    whole = write(Known(), tmp_path / "raw", limit=3, preparation=Preparation(encoding="raw"))
    assert "encoding raw: rgb " in re.sub(" +", " ", run(whole.root, "--out", tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 1000


def test_a_picture_that_no_longer_decodes_is_named_on_the_sheet(tmp_path):
    from tools.inspect.sheet import contact_sheet, pictures

    whole = write(Known(), tmp_path / "set", limit=20, max_missing=1)
    tar = Path(whole.tars[0])
    tar.write_bytes(tar.read_bytes().replace(b"\x89PNG", b"\x00PNG"))  # same size
    shown = pictures(whole, 5, 0)
    assert [picture.pixels for picture in shown] == [None] * 5
    assert contact_sheet(whole, survey(whole), shown).height > 300


def test_a_set_in_an_object_store(run, tmp_path, request):
    whole = write(Known(), f"memory://{request.node.name}/set", samples_per_shard=100)
    select(whole, "half", fraction=0.5)
    text = run(whole.root, "--out", tmp_path / "a.png", "--samples", 3)
    assert "samples 462" in section(text, whole.root)
    assert section(text, "subsets")[0].startswith("half 2")
    assert "duplicates" in run(f"{whole.root}/subsets/half", "--out", tmp_path / "b.png")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "0"], "samples=0; expected 1 or more"),
        (["--seed", "-1"], "seed=-1; expected a number"),
        (["--out", "a.jpg"], r"out=a.jpg; expected a name that ends with \.png"),
        (["--out", "/nowhere/a.png"], "/nowhere is no folder; --out FILE"),
    ],
)
def test_wrong_flags_are_refused(known, run, flags, message):
    with pytest.raises(ValueError, match=message):
        run(known.root, *flags)


def test_on_a_terminal_there_are_tables(known):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=90)
    shard_set = open_shards(known.root)
    show(list(inspect.report(shard_set, survey(shard_set))), console)
    assert "[kind] 29" in text.getvalue() and "┃" not in text.getvalue()
    assert all(
        len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 90 for line in text.getvalue().split("\n")
    )


@pytest.mark.parametrize(
    "values",
    [[7], [1, 2], [5] * 99 + [6], [*range(100, 500)], [1, 10**9], [3] * 500 + [10**6], [0, 0, 9]],
)
def test_bins_hold_every_value_once_in_a_dozen_or_so(values):
    bins = bins_of(np.array(values))
    assert sum(count for _, count in bins) == len(values)
    assert len(bins) <= 14
    for label, count in bins:
        numbers = [int(text.replace(",", "")) for text in re.findall(r"[\d,]+", label)]
        low, high = numbers[0], numbers[-1]
        if label.startswith("under"):
            low, high = -1, high - 1
        elif label.endswith("more"):
            high = 10**12
        assert count == sum(low <= value <= high for value in values), label


def test_ratios_are_counted_at_the_nearest_usual_one():
    widths, heights = (
        np.array([640, 640, 640, 100, 1, 427]),
        np.array([480, 427, 426, 100, 90, 640]),
    )
    assert {name: count for name, count in aspect_bins(widths, heights) if count} == {
        "1:3 or narrower": 1,
        "2:3": 1,
        "1:1": 1,
        "4:3": 1,
        "3:2": 2,
    }


def test_a_bar_shows_something_of_every_count(monkeypatch):
    assert (bar(0, 1000), bar(1, 1000), bar(1000, 1000)) == ("", "▏", "█" * 30)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert bar(500, 1000) == "#" * 15


def test_groups_of_copies_are_those_of_a_dictionary():
    random = np.random.default_rng(0)
    # Halves that are equal alone are no copies.
    contents = [bytes(random.integers(0, 3, 2).repeat(8).astype(np.uint8)) for _ in range(40)]
    contents += [random.bytes(16) for _ in range(200)] + [bytes(16)] * 7
    groups: dict[bytes, list[int]] = {}
    for position, content in enumerate(contents):
        groups.setdefault(content, []).append(position)
    expected = sorted(
        (group for group in groups.values() if len(group) > 1), key=lambda g: (-len(g), g[0])
    )
    found = groups_of_copies(np.frombuffer(b"".join(contents), dtype="V16"))
    assert [group.tolist() for group in found] == expected
    assert groups_of_copies(np.frombuffer(b"".join(contents[40:45]), dtype="V16")) == []


class Odd(Source):
    """Two samples of each of a few classes whose names are unfit to show."""

    name = "odd"
    split = "new\nline"
    classes: list[str] = ["two\nlines", "bell\a\x1b[31mred", "tab\there", "caf\udce9", "\u202eback"]  # noqa: RUF012

    def __len__(self) -> int:
        return 2 * len(self.classes)

    def __getitem__(self, index: int) -> Sample:
        pixels = np.full((16, 16, 3), index, dtype=np.uint8)
        return Sample(f"k{index}", pixels, index // 2, index, {})


def test_names_of_classes_that_are_unfit_to_show_are_shown_escaped(run, tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9\n")
    write(Odd(), root)
    text = run(root, "--out", tmp_path / "sheet.png")
    assert all(line.isprintable() for line in text.split("\n"))
    shown = [r"two\nlines", r"bell\x07\x1b[31mred", r"tab\there", r"caf\udce9", r"\u202eback"]
    rows = section(text, "classes: 5 of 5")
    assert [row.split(" 2 ")[0] for row in rows] == [f"{i} {name}" for i, name in enumerate(shown)]
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    sheet = tmp_path / os.fsdecode(b"sheet\xe9.png")  # a flag need not be UTF-8 either
    assert r"sheet\udce9.png" in run(root, "--out", sheet) and sheet.exists()
    for label, name in enumerate([*Odd.classes[:3], shown[1], shown[3]]):
        subset = select(open_shards(root), f"s{label}", classes=[name])
        assert isinstance(subset, ShardSet) and len(subset) == 2


def test_text_is_shown_on_one_line_and_what_is_fit_stays_as_it_is():
    every = "".join(map(chr, range(0x30000)))
    line = one_line(every)
    assert len(line.splitlines()) == 1 and line.encode()
    assert not {c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    fit = "Zo\u00eb \u2014 \u65e5\u672c \u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f52c \\n 'x'"
    assert one_line(fit) == fit
