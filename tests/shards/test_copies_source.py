"""Edited copies: what is shown, that nothing leaks, and that a seed repeats."""

import io
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from shards.layout import ShardSet, open_shards
from shards.source import Copies
from shards.source.edit import edit, kinds
from shards.survey import rows_of
from shards.writing.prepare import Preparation
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures

COUNTS: dict[str, Any] = {"queries": 12, "distractors": 8, "backgrounds": 5}
RED = Image.new("RGB", (9, 7), (255, 0, 0))


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(Pictures(1, height=height, width=width).pixels(3))


@pytest.fixture(scope="module")
def held_out(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)


def pixels(sample) -> np.ndarray:
    if isinstance(sample.image, bytes):
        return np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))
    return sample.image


@pytest.mark.parametrize("kind", list(kinds(RED)))
@pytest.mark.parametrize("size", [(32, 32), (120, 77)])
def test_an_edit_changes_the_image_keeps_its_size_and_repeats(
    kind: str, size: tuple[int, int]
) -> None:
    image = picture(*size)
    before = np.asarray(image).copy()
    for seed in range(6):
        one, same = (kinds(RED)[kind](image, np.random.default_rng(seed)) for _ in range(2))
        assert one.mode == "RGB"
        assert one.size == size or (kind == "rotate" and one.size == size[::-1])
        assert one.tobytes() == same.tobytes()
        assert not np.array_equal(np.asarray(one), before)
    assert np.array_equal(np.asarray(image), before), "the original itself was changed"


def test_strengths_are_those_of_the_docstrings() -> None:
    white = Image.new("RGB", (100, 100), (255, 255, 255))
    shown = []
    for seed in range(60):
        onto = np.asarray(kinds(RED)["onto"](white, np.random.default_rng(seed)))
        shown.append((onto[..., 1] > 128).mean())
    assert 0.25 <= min(shown) < 0.3 and 0.58 < max(shown) <= 0.64  # 0.5² to 0.8² of the area
    ramp = np.tile(np.linspace(0, 255, 256).round().astype(np.uint8), (256, 1))
    seen = []
    for seed in range(60):
        cut = kinds(RED)["crop"](
            Image.fromarray(np.stack([ramp, ramp.T, ramp], -1)), np.random.default_rng(seed)
        )
        left, top = np.asarray(cut)[..., 0].astype(int), np.asarray(cut)[..., 1].astype(int)
        seen.append(np.ptp(left) * np.ptp(top) / 255**2)
    assert 0.27 <= min(seen) < 0.4 and 0.7 < max(seen) <= 0.82  # 30 to 80 % of the area


def test_the_number_of_edits_and_their_kinds_are_uniform() -> None:
    image, counts, used = picture(16, 16), [], dict.fromkeys(kinds(RED), 0)
    for seed in range(400):
        edited = edit(image, RED, np.random.default_rng(seed), 1, 3)
        counts.append(len(edited.edits))
        assert list(edited.edits) == [kind for kind in used if kind in edited.edits]
        for kind in edited.edits:
            used[kind] += 1
    assert np.bincount(counts)[1:].min() > 100
    assert min(used.values()) > 35 and max(used.values()) < 90  # 800 / 13 = 62


def test_queries_name_their_originals_and_distractors_have_none(held_out: ShardSet) -> None:
    queries = Copies(root=held_out.root, **COUNTS)
    references = Copies(root=held_out.root, split="references", **COUNTS)
    assert (len(queries), len(references)) == (20, 42 - 8 - 5)
    assert queries.classes == references.classes == []
    originals = {references[i].id: references[i] for i in range(len(references))}
    source = Pictures(42)
    for id, reference in originals.items():  # the picture with this id, as it was
        assert reference.label == -1
        assert np.array_equal(pixels(reference), source.pixels(id))
    labels = [queries[i].label for i in range(20)]
    assert len(set(labels[:12])) == 12 and set(labels[:12]) <= set(originals)
    assert labels[12:] == [-1] * 8
    for i in range(20):
        sample = queries[i]
        assert 1 <= len(sample.metadata["edits"]) <= 3
        assert sample.key.startswith("copy" if i < 12 else "distractor")


def test_the_three_parts_share_no_image_not_even_under_two_ids(tmp_path: Path) -> None:
    class Doubled(Pictures):
        """Samples 0 and 20, 1 and 21, … are the same picture."""

        def pixels(self, index: int) -> np.ndarray:
            return super().pixels(index % 20)

    root = write(Doubled(40), str(tmp_path / "doubled")).root
    counts: dict[str, Any] = {"queries": 6, "distractors": 7, "backgrounds": 4}
    queries = Copies(root=root, **counts)
    references = Copies(root=root, split="references", **counts)
    assert "20 left out because another has the same bytes" in queries.notes[0]
    shown = {pixels(references[i]).tobytes() for i in range(len(references))}
    assert len(shown) == len(references) == 20 - 7 - 4
    keys = {references[i].key for i in range(len(references))}
    for i in range(len(queries)):
        metadata = queries[i].metadata
        assert (metadata["original"] in keys) == (i < 6)
        assert metadata.get("background") not in keys
    apart = {pixels_of(root, queries[i].metadata["original"]) for i in range(6, 13)}
    assert len(apart) == 7 and not apart & shown


def pixels_of(root: str, key: str) -> bytes:
    return Pictures(40).pixels(int(key) % 20).tobytes()


def test_a_seed_repeats_and_more_queries_leave_the_others_as_they_are(held_out: ShardSet) -> None:
    one = Copies(root=held_out.root, **COUNTS)
    larger: dict[str, Any] = COUNTS | {"queries": 20}
    more = Copies(root=held_out.root, **larger)
    other = Copies(root=held_out.root, draw_seed=1, **COUNTS)
    again = pickle.loads(pickle.dumps(one))
    for i in range(12):
        assert np.array_equal(one[i].image, again[i].image)
        assert np.array_equal(one[i].image, more[i].image) and one[i].label == more[i].label
    assert [one[i].label for i in range(12)] != [other[i].label for i in range(12)]
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()


def test_bare_pixels_are_read_too(make_shard_set: MakeShardSet, held_out: ShardSet) -> None:
    raw = make_shard_set(42, encoding="raw")
    assert raw.manifest.raw
    splits: list[Literal["queries", "references"]] = ["queries", "references"]
    for split in splits:
        one, two = (Copies(root=s.root, split=split, **COUNTS) for s in (raw, held_out))
        # The same ids are divided alike, whatever they are stored as.
        for i in range(len(one)):
            assert one[i].label == two[i].label
            assert np.array_equal(pixels(one[i]), pixels(two[i]))


def test_both_sets_are_written_and_read_back(held_out: ShardSet, tmp_path: Path) -> None:
    splits: list[Literal["queries", "references"]] = ["queries", "references"]
    for split in splits:
        source = Copies(root=held_out.root, split=split, **COUNTS)
        write(source, str(tmp_path / split), preparation=Preparation())
    queries, references = (open_shards(str(tmp_path / s)) for s in ("queries", "references"))
    assert queries.manifest.classes == references.manifest.classes == []

    def column(shard_set: ShardSet, name: str) -> list[int]:
        return [
            getattr(row, name)
            for shard in shard_set.manifest.shards
            for row in rows_of(shard_set, shard)
        ]

    labels = column(queries, "label")
    assert labels.count(-1) == 8 and set(labels) - {-1} <= set(column(references, "id"))
    assert set(column(references, "label")) == {-1}
    assert (len(queries), len(references)) == (20, 29)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"queries": 40}, ["42 different images", "leave 29 references", "too few for 40"]),
        ({"distractors": 40}, ["leave 0 references"]),
        ({"queries": 0, "distractors": 0}, ["nothing to write"]),
        ({"backgrounds": 0}, ["backgrounds=0", "1 or more"]),
        ({"least_edits": 3, "most_edits": 2}, ["least_edits=3", "most_edits=2"]),
        ({"most_edits": 14}, ["most_edits=14", "13"]),
    ],
)
def test_impossible_counts_are_refused(held_out: ShardSet, flags: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        Copies(root=held_out.root, **COUNTS | flags)
    for word in words:
        assert word in str(error.value)
