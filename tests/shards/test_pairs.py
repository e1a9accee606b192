"""Pair sets: each sample carries the stored bytes of another, and nothing else changes."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.engine import LocalWorkers
from shards.health.repair import repair
from shards.health.verification import undecodable, verify
from shards.layout import Manifest, ShardSet, open_shards
from shards.shard_index import lines_of
from shards.source.pairs import Pairs
from shards.subset.selection import select
from shards.survey import rows_of
from shards.tar import component, components
from shards.writing.prepare import Preparation
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures

ENCODINGS = ["png", "raw", "jpeg:90"]


def files_by_id(shard_set: ShardSet) -> dict[int, dict[str, bytes]]:
    """Each sample's components by id, through the index."""
    found = {}
    for shard in shard_set.manifest.shards:
        with shard_set.tar_folder.open(f"{shard.name}.tar") as tar:
            rows, lines = rows_of(shard_set, shard), lines_of(shard_set, shard)
            for row, line in zip(rows, lines, strict=True):
                extensions = [extension for extension, *_ in components(line)]
                found[row.id] = {e: component(tar, line, e) or b"" for e in extensions}
    return found


def ids(shard_set: ShardSet) -> list[int]:
    return [r.id for shard in shard_set.manifest.shards for r in rows_of(shard_set, shard)]


def some_partners(samples: int) -> NDArray[np.integer]:
    """Anyone's; every fifth sample is alone."""
    partners = np.random.RandomState(0).permutation(samples)
    partners[::5] = np.arange(samples)[::5]
    return partners


def pairs_of(
    shard_set: ShardSet, out: Path, partners: NDArray[np.integer], *, added: bool = False
) -> ShardSet:
    scores = np.linspace(0.5, 1, len(partners))
    encoding = "raw" if shard_set.manifest.raw else "original"
    return write(
        Pairs(shard_set=shard_set, partners=partners, scores=scores, added=added),
        out,
        samples_per_shard=8,
        preparation=Preparation(encoding=encoding),
    )


@pytest.fixture(params=ENCODINGS)
def both(request, make_shard_set: MakeShardSet, tmp_path: Path) -> tuple[ShardSet, ShardSet]:
    """A shard set and a pair set of it."""
    shard_set = make_shard_set(20, encoding=request.param)
    return shard_set, pairs_of(shard_set, tmp_path / "pairs", some_partners(20))


def test_a_pair_is_the_stored_bytes_of_two_samples(both: tuple[ShardSet, ShardSet]) -> None:
    shard_set, pair_set = both
    before, after = files_by_id(shard_set), files_by_id(pair_set)
    order, partners = ids(shard_set), some_partners(20)
    partner_of = {order[i]: order[partners[i]] for i in range(20)}
    assert set(after) == set(before)
    for sample, files in after.items():
        json_before = json.loads(before[sample].pop("json"))
        partner = json.loads(files.pop("json"))
        told = partner.pop("partner")
        assert partner == json_before, "what the source knew"
        assert told["id"] == partner_of[sample] and 0.5 <= told["score"] <= 1
        own = {n: data for n, data in files.items() if not n.startswith("partner.")}
        assert own == before[sample], "image, shape, id and label, byte for byte"
    for sample, files in after.items():
        theirs = {n[8:]: data for n, data in files.items() if n.startswith("partner.")}
        assert theirs and all(before[partner_of[sample]][n] == d for n, d in theirs.items())
    assert pair_set.manifest.partners and not shard_set.manifest.partners
    assert pair_set.manifest.classes == shard_set.manifest.classes


def test_added_pairs_stand_beside_all_samples_by_themselves(
    both: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    """The paper's training set, {(i, i)} ∪ pairs, against one made of the pair set's own files."""
    shard_set, pair_set = both
    partners = some_partners(20)
    added = pairs_of(shard_set, tmp_path / "added", partners, added=True)
    before, replaced, after = map(files_by_id, (shard_set, pair_set, added))
    paired = [i for i in range(20) if partners[i] != i]
    assert len(added) == 20 + len(paired) == len(after), "ids are different"
    for sample, files in before.items():
        alone = after.pop(sample)
        own = {n: d for n, d in alone.items() if not n.startswith("partner.")}
        theirs = {n[8:]: d for n, d in alone.items() if n.startswith("partner.")}
        told = json.loads(own.pop("json"))["partner"]
        assert own == {n: d for n, d in files.items() if n != "json"}
        assert theirs and all(files[name] == data for name, data in theirs.items())
        assert (told["id"], told["score"]) == (sample, 1)
    assert min(after) > max(before)
    # What is left are the pairs, but for their ids.
    order = ids(shard_set)
    for files, i in zip((after[key] for key in sorted(after)), paired, strict=True):
        pair = replaced[order[i]]
        assert files.pop("id.i64") != pair.pop("id.i64")
        assert files == pair
    assert verify(added.root, deep=True).problems == []


def test_a_pair_set_verifies_survives_repair_and_has_subsets(
    both: tuple[ShardSet, ShardSet],
) -> None:
    _, pair_set = both
    assert verify(pair_set.root, deep=True).problems == []
    files = {path: path.read_bytes() for path in Path(pair_set.root).iterdir()}
    done = repair(pair_set.root, deep=True)
    assert (done.rebuilt, done.quarantined, done.unrepaired) == ([], [], [])
    assert files == {path: path.read_bytes() for path in Path(pair_set.root).iterdir()}
    # A lost manifest comes back from the plan, and still says that there are partners.
    (Path(pair_set.root) / "manifest.json").write_text("{}")
    repair(pair_set.root)
    assert open_shards(pair_set.root).manifest == pair_set.manifest
    half = select(pair_set, "half", fraction=0.5)
    assert isinstance(half, ShardSet) and half.manifest.partners
    assert verify(half.root, deep=True).problems == []


def test_a_partner_that_does_not_decode_or_is_missing_is_found(
    both: tuple[ShardSet, ShardSet],
) -> None:
    _, pair_set = both
    for files in files_by_id(pair_set).values():
        assert undecodable(files, partners=True) is None
        name = next(name for name in files if name in ("partner.png", "partner.jpg", "partner.rgb"))
        cut = {**files, name: files[name][: len(files[name]) // 2]}
        reason = undecodable(cut)
        assert reason and reason.startswith("has a partner that ")
        own = {n: data for n, data in files.items() if not n.startswith("partner.")}
        assert undecodable(own) is None and undecodable(own, partners=True) == "has no partner"


def test_a_damaged_source_is_named_and_not_copied(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    shard_set = pairs_of(make_shard_set(20), tmp_path / "source", np.arange(20))
    source = Pairs(shard_set=shard_set, partners=some_partners(20), scores=np.ones(20))
    tar = Path(shard_set.tars[0])
    row = rows_of(shard_set, shard_set.manifest.shards[0])[0]
    data = bytearray(tar.read_bytes())
    data[row.offset + 512] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r"other bytes than were written.*--repair true"):
        source[0]


def test_pairs_are_the_same_by_processes_and_from_a_pair_set(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    """A pair set is a source like any other: its old partners are left behind."""
    shard_set, partners = make_shard_set(20), some_partners(20)
    first = pairs_of(shard_set, tmp_path / "first", partners)
    order = {sample: at for at, sample in enumerate(ids(first))}
    partner_of = dict(zip(ids(shard_set), np.array(ids(shard_set))[partners], strict=True))
    again = np.array([order[partner_of[sample]] for sample in ids(first)])
    source = Pairs(shard_set=first, partners=again, scores=np.ones(20))
    second = write(source, tmp_path / "second", engine=LocalWorkers(2), samples_per_shard=8)
    here, there = files_by_id(first), files_by_id(second)
    for sample in here:
        for files in (here, there):
            del files[sample]["json"]
    assert here == there
    assert pickle.loads(pickle.dumps(source))[3].key == source[3].key
    other = Pairs(shard_set=first, partners=np.arange(20), scores=np.ones(20))
    assert source.fingerprint() != other.fingerprint()


def test_a_long_key_still_fits_a_tar_header(tmp_path: Path) -> None:
    class Long(Pictures):
        def __getitem__(self, index: int):
            sample = super().__getitem__(index)
            return type(sample)(f"{'k' * 84}{index:06d}", *list(_fields(sample))[1:])

    shard_set = write(Long(4), tmp_path / "long", preparation=Preparation(encoding="raw"))
    pair_set = pairs_of(shard_set, tmp_path / "pairs", np.array([1, 0, 3, 2]))
    keys = [row.key for row in rows_of(pair_set, pair_set.manifest.shards[0])]
    assert len(set(keys)) == 4 and max(map(len, keys)) <= 82
    assert verify(pair_set.root, deep=True).problems == []


def _fields(sample) -> list:
    return [getattr(sample, name) for name in sample.__slots__]


def test_a_set_without_partners_has_the_manifest_it_had(make_shard_set: MakeShardSet) -> None:
    shard_set = make_shard_set(20)
    text = (Path(shard_set.root) / "manifest.json").read_text()
    plan = (Path(shard_set.root) / "plan.json").read_text()
    assert "partners" not in text and "partners" not in plan
    assert Manifest.from_json(text).to_json() == text


@pytest.mark.parametrize(
    ("partners", "words"),
    [(np.arange(3), "3] partners"), (np.full(20, 20), "20 to 20"), (np.full(20, -1), "-1 to -1")],
)
def test_partners_that_are_none_of_the_samples_are_refused(
    make_shard_set: MakeShardSet, partners: NDArray[np.integer], words: str
) -> None:
    with pytest.raises(ValueError) as error:
        Pairs(shard_set=make_shard_set(20), partners=partners, scores=np.ones(len(partners)))
    assert words in str(error.value) and "expected" in str(error.value)
