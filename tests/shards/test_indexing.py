"""Sets over foreign tars: the same samples as in a copy, nothing copied, changes noticed.

The oracle is the set that `write` makes of the same tars: what it promises has tests of its own.
"""

import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset.writer import ShardWriter

from pipeline.augment import Crop, Policy, SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Batch, Loader
from pipeline.part import part_of
from shards import as_webdataset
from shards.engine import Job, LocalWorkers, Serial
from shards.health.leave_out import find_bad, leave_out
from shards.health.repair import repair
from shards.health.verification import verify
from shards.layout import Manifest, ShardSet, open_shards
from shards.named_numbers import numbered, numbers_in
from shards.sealed_json import seal, unseal
from shards.shard_index import check_indexes
from shards.source import WebDataset
from shards.source.pairs import Pairs
from shards.subset.selection import select
from shards.survey import rows_of
from shards.tar import file_of
from shards.writing.index_tar import FOREIGN
from shards.writing.indexing import index_tars
from shards.writing.write import write
from tests.conftest import Pictures

SAMPLES = 44
WHOLE = ViewGroup(policy=Policy(crop=Crop(area=(1, 1), aspect=(1, 1), flip=0)), count=1, size=32)
VIEWS = ViewGroup(policy=SimCLRViews(blur=0.0), count=2, size=16)
NAMES = ["beaver", "ant", "cow"]


def encoded(index: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(Pictures(SAMPLES).pixels(index)).save(file, kind)
    return file.getvalue()


def foreign(folder: Path) -> Path:
    """Tars as webdataset writes them: JPEG and PNG mixed, odd keys, classes by name."""
    folder.mkdir(parents=True)
    with ShardWriter(f"{folder}/odd name %d.tar", maxcount=12, verbose=0) as writer:
        for index in range(SAMPLES):
            kind, component = (("JPEG", "jpeg"), ("PNG", "png"), ("PNG", "jpg"))[index % 3]
            sample: dict[str, Any] = {"__key__": f"some folder/ä {index:03d}"}
            sample[component] = encoded(index, kind)
            sample |= {"cls": NAMES[index % 3]} if index % 5 else {}
            writer.write({**sample, "json": {"parity": index % 2}, "txt": "a text"})
    return folder


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign(tmp_path_factory.mktemp("foreign") / "tars")


@pytest.fixture(scope="module")
def indexed(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return index_tars(WebDataset(root=tars), tmp_path_factory.mktemp("index") / "out")


@pytest.fixture(scope="module")
def copied(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write(WebDataset(root=tars), tmp_path_factory.mktemp("copy") / "out")


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, ShardSet]:
    """Tars and their set, to be damaged."""
    root = foreign(tmp_path / "tars")
    return root, index_tars(WebDataset(root=root), root / "index")


def pixels_of(batches: Iterator[Batch]) -> dict[int, tuple[int, bytes]]:
    """Return {id: (label, the bytes of its view)}."""
    return {
        number: (label, view.numpy().tobytes())
        for batch in batches
        for number, label, view in zip(
            batch.id_B.tolist(), batch.label_B.tolist(), batch.views[0][0], strict=True
        )
    }


def states(folder: Path) -> dict[str, tuple[int, ...]]:
    found = {path.name: path.stat() for path in folder.glob("*.tar")}
    return {n: (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in found.items()}


# ── what training and evaluation get ──────────────────────────────────────────────────────────────


def test_every_image_comes_with_its_own_id_and_label(indexed: ShardSet, copied: ShardSet) -> None:
    seen = [pixels_of(iter(Loader(s, [WHOLE], batch_size_per_rank=4))) for s in (indexed, copied)]
    assert len(seen[0]) == SAMPLES and seen[0] == seen[1]
    labels = {number: label for number, (label, _) in seen[0].items()}
    assert {labels[number] for number in range(0, SAMPLES, 5)} == {-1}
    classes = indexed.manifest.classes
    assert [classes[labels[number]] for number in (1, 2, 3)] == ["ant", "cow", "beaver"]


def test_ids_of_up_to_eighteen_digits_that_the_tars_have_are_kept(tmp_path: Path) -> None:
    ids = [10**18 - 1, 123_456_789_012_345_678, 2**53 + 1, 9_999_999_999, 10**9, 10**9 - 1, 5, 0]
    with ShardWriter(f"{tmp_path}/%d.tar", maxcount=5, verbose=0) as writer:
        for index, number in enumerate(ids):
            sample = {"id.i64": number.to_bytes(8, "little"), "png": encoded(index, "PNG")}
            writer.write({"__key__": f"{index}", **sample})
    shard_set = index_tars(WebDataset(root=tmp_path), tmp_path / "index")
    with Loader(shard_set, [WHOLE], batch_size_per_rank=2) as loader:
        assert sorted(pixels_of(iter(loader))) == sorted(ids)
    assert [row.id for row in rows(shard_set)] == ids


def test_evaluation_gets_what_it_gets_of_the_copy(indexed: ShardSet, copied: ShardSet) -> None:
    found = []
    for shard_set in (indexed, copied):
        batches = [*Images(shard_set, size=32, batch_size=5)]
        ids = torch.cat([batch.id_B for batch in batches])
        order, columns = ids.argsort(), (ids, *(torch.cat(c) for c in _columns(batches)))
        found.append([column[order] for column in columns])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def _columns(batches: Sequence[Any]) -> Iterator[list[torch.Tensor]]:
    yield [batch.label_B for batch in batches]
    yield [batch.image_BCHW for batch in batches]


def test_ranks_share_nothing_and_an_epoch_repeats_nothing(indexed: ShardSet) -> None:
    loaders = [
        Loader(indexed, [VIEWS], batch_size_per_rank=4, rank=rank, world_size=2) for rank in (0, 1)
    ]
    epochs = []
    for _ in range(3):
        ids = [number for each in loaders for batch in each for number in batch.id_B.tolist()]
        assert len(set(ids)) == len(ids) == SAMPLES // 8 * 8
        epochs.append(ids)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("steps", [3, 5, 8])  # within the first epoch, at its end, in the second
def test_a_loader_goes_on_bit_for_bit(indexed: ShardSet, steps: int) -> None:
    def take(loader: Loader, count: int) -> list[Batch]:
        return list(islice(loader.endless(), count))

    def made() -> Loader:
        return Loader(indexed, [VIEWS], batch_size_per_rank=8, shuffle_buffer=16, seed=3)

    with made() as whole, made() as begun, made() as continued:
        expected = take(whole, steps + 4)[steps:]
        take(begun, steps)
        continued.load_state_dict(begun.state_dict())
        for one, other in zip(expected, take(continued, 4), strict=True):
            assert torch.equal(one.id_B, other.id_B) and torch.equal(one.label_B, other.label_B)
            assert torch.equal(one.views[0], other.views[0])


def test_one_process_begins_with_other_tars_by_the_seed(indexed: ShardSet) -> None:
    """Others' tars need not be shuffled; without a seed they come as they are."""
    orders: list[tuple[int, ...]] = []
    for seed in (None, *range(6)):
        with part_of(indexed, 0, 1, seed=seed) as part:
            orders.append(tuple(row.id for row in rows(part)))
    assert orders[0] == (*range(SAMPLES),)
    assert all(sorted(order) == [*range(SAMPLES)] for order in orders)
    assert len(set(orders[1:])) > 1


def test_a_state_from_before_tars_were_dealt_out_is_refused_by_name(indexed: ShardSet) -> None:
    loader = Loader(indexed, [VIEWS], batch_size_per_rank=8)
    state = loader.state_dict()
    assert not loader.differences(state)
    del state["parts"]
    assert loader.differences(state).keys() == {"parts"}
    with pytest.raises(ValueError, match=r"another version of viewrank.*--reshape_data true"):
        loader.load_state_dict(state)


def test_a_stream_gives_the_samples_of_the_copy(indexed: ShardSet, copied: ShardSet) -> None:
    found = [
        {s["id"]: (s["label"], np.asarray(s["image"]).tobytes()) for s in as_webdataset(each.root)}
        for each in (indexed, copied)
    ]
    assert len(found[0]) == SAMPLES and found[0] == found[1]
    sample = next(iter(as_webdataset(indexed.root, shuffle=3, empty_check=True)))
    assert sample["json"] == {"parity": sample["id"] % 2}


def test_a_subset_is_chosen_by_fields_and_read_through_the_same_links(
    own: tuple[Path, ShardSet],
) -> None:
    subset = select(own[1], "odd", where=["parity=1"])
    assert isinstance(subset, ShardSet) and open_shards(subset.root) == subset
    odd = {*range(1, SAMPLES, 2)}
    assert {s["id"] for s in as_webdataset(subset.root)} == odd
    with Loader(subset, [VIEWS], batch_size_per_rank=2) as loader:
        assert {number for batch in loader for number in batch.id_B.tolist()} == odd
    assert not verify(subset.root, deep=True).problems


def test_pairs_are_written_of_it(indexed: ShardSet, copied: ShardSet) -> None:
    count = len(indexed)
    partners, scores = np.roll(np.arange(count), 1), np.zeros(count)
    source = Pairs(shard_set=indexed, partners=partners, scores=scores)
    other = Pairs(shard_set=copied, partners=partners, scores=scores)
    images = {sample.id: sample.image for sample in map(other.__getitem__, range(count))}
    for index in range(count):
        sample = source[index]
        assert (sample.image, sample.label) == (images[sample.id], rows(indexed)[index].label)
        assert sample.partner == images[int(source.ids[partners[index]])]
        assert sample.metadata["parity"] == sample.id % 2


def rows(shard_set: ShardSet) -> list[Any]:
    return [row for shard in shard_set.manifest.shards for row in rows_of(shard_set, shard)]


# ── what is written ───────────────────────────────────────────────────────────────────────────────


def test_tars_stay_as_they_are_and_none_is_copied(tmp_path: Path) -> None:
    root = foreign(tmp_path / "tars")
    before, data = states(root), {path.name: path.read_bytes() for path in root.glob("*.tar")}
    shard_set = index_tars(WebDataset(root=root), tmp_path / "out", engine=LocalWorkers(2))
    assert not verify(shard_set.root, deep=True).problems
    assert len([*Loader(shard_set, [VIEWS], batch_size_per_rank=4)]) == SAMPLES // 4
    assert states(root) == before
    assert {path.name: path.read_bytes() for path in root.glob("*.tar")} == data
    assert {Path(os.readlink(tar)) for tar in shard_set.tars} == {*root.glob("*.tar")}
    written = [path for path in Path(shard_set.root).rglob("*") if not path.is_symlink()]
    assert sum(path.stat().st_size for path in written if path.is_file()) < 30_000


def test_an_index_within_the_tars_folder_moves_with_it(own: tuple[Path, ShardSet]) -> None:
    root, _ = own
    moved = root.rename(root.with_name("elsewhere"))
    assert len([*as_webdataset(moved / "index")]) == SAMPLES


def test_what_training_does_not_read_as_it_is_is_left_out_and_named(tmp_path: Path) -> None:
    root = tmp_path / "tars"
    root.mkdir()
    with ShardWriter(f"{root}/%d.tar", verbose=0) as writer:
        for index in range(30):
            data = encoded(index, "WEBP" if index == 4 else "PNG")
            data = data[: len(data) // 2] if index == 9 else b"" if index == 11 else data
            writer.write({"__key__": f"{index:03d}", "png": data})
    shard_set = index_tars(WebDataset(root=root), tmp_path / "out")
    account = shard_set.manifest.account
    assert (account.found, account.written, account.quarantined) == (30, 27, 3)
    assert {row.id for row in rows(shard_set)} == {*range(30)} - {4, 9, 11}
    (list_of_reasons,) = Path(shard_set.root, "quarantine").iterdir()  # no image's bytes
    for key, reason in (("004", FOREIGN), ("009", "truncated or corrupt"), ("011", "empty")):
        (line,) = [li for li in list_of_reasons.read_text().splitlines() if f"/{key}.png" in li]
        assert reason in line
    with pytest.raises(ValueError, match=r"3 of 30 samples.*--max_missing 0.1"):
        index_tars(WebDataset(root=root), tmp_path / "strict", max_missing=0.05)


class Stops(Serial):
    """Ends after some tasks, as a kill would."""

    def run(self, job: Job, tasks: Sequence[Any], progress: Any) -> Iterator[tuple[int, Any]]:
        yield from islice(super().run(job, tasks, progress), 2)
        raise KeyboardInterrupt


def test_indexing_goes_on_after_a_kill(tars: Path, indexed: ShardSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        index_tars(WebDataset(root=tars), out, engine=Stops())
    partial = tmp_path / "out.partial"
    done = {path.name: path.stat().st_ino for path in partial.glob("*.idx")}
    assert sorted(done) == ["00000.idx", "00001.idx"] and not out.exists()
    shard_set = index_tars(WebDataset(root=tars), out)
    assert done.items() <= {path.name: path.stat().st_ino for path in out.glob("*.idx")}.items()
    assert shard_set.manifest == indexed.manifest


def test_colours_and_sizes_are_those_of_the_copy(indexed: ShardSet, copied: ShardSet) -> None:
    one, other = indexed.manifest.statistics, copied.manifest.statistics
    assert np.allclose(one.mean + one.std, other.mean + other.std, atol=1e-6)
    assert (one.min_width, one.max_height, one.images) == (32, 32, SAMPLES)


@pytest.mark.parametrize("number", [0, 1, 10**18 - 1])
@pytest.mark.parametrize("label", [-1, 0, 10**18 - 2])
def test_numbers_come_back_from_a_name(number: int, label: int) -> None:
    assert numbers_in(numbered("a/b.jpg", number, label)) == (number, label)


@pytest.mark.parametrize(("number", "label"), [(-1, 0), (10**18, 0), (0, -2), (0, 10**18)])
def test_numbers_without_a_place_in_a_name_are_refused(number: int, label: int) -> None:
    with pytest.raises(ValueError, match=r"tools\.shard webdataset"):
        numbered("a.jpg", number, label)


# ── what has changed since ────────────────────────────────────────────────────────────────────────


def test_a_tar_that_grew_or_went_is_noticed_when_the_set_is_opened(
    own: tuple[Path, ShardSet],
) -> None:
    root, shard_set = own
    tar = root / "odd name 1.tar"
    with tar.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=r"00001\.tar has .* not the file that was written.*index"):
        open_shards(shard_set.root)
    tar.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.tar is missing.*bring these back"):
        open_shards(shard_set.root)


def damage(root: Path, shard_set: ShardSet) -> str:
    """Put zeros into an image; return its key."""
    row = rows(shard_set)[15]
    with (root / "odd name 1.tar").open("r+b") as file:
        file.seek(row.offset)
        file.write(bytes(row.bytes))
    return row.key


def test_a_changed_image_is_named_and_can_be_left_out(
    own: tuple[Path, ShardSet], tmp_path: Path
) -> None:
    root, shard_set = own
    key = damage(root, shard_set)
    found = verify(shard_set.root).problems
    assert {problem.key for problem in found} == {"", key}
    loader = Loader(shard_set, [VIEWS], batch_size_per_rank=4)
    with pytest.raises(ValueError, match=rf"{key}.*python -m tools\.index") as refused:
        list(loader)
    assert "--repair" not in str(refused.value)
    bad = find_bad(shard_set)
    left = leave_out(shard_set, bad, tmp_path / "left")
    with Loader(left, [VIEWS], batch_size_per_rank=1) as loader:
        ids = {number for batch in loader for number in batch.id_B.tolist()}
    assert ids == {*range(SAMPLES)} - {15}


def test_repair_touches_nothing_and_says_the_command(own: tuple[Path, ShardSet]) -> None:
    root, shard_set = own
    damage(root, shard_set)
    before = states(root)
    with pytest.raises(ValueError, match=r"tars that others wrote.*python -m tools\.index"):
        repair(shard_set.root, deep=True)
    assert states(root) == before


def edit_index(shard_set: ShardSet, change: Callable[[str], str]) -> ShardSet:
    """Change the first index, and seal the manifest anew."""
    path = Path(shard_set.indexes[0])
    path.write_text(change(path.read_text()))
    manifest = Path(shard_set.root, "manifest.json")
    values = unseal(manifest.read_text())
    found = file_of(path.read_bytes())
    values["shards"][0]["index"] = {"bytes": found.bytes, "sha256": found.sha256}
    manifest.write_text(seal(values, indent=1))
    return open_shards(shard_set.root)


def test_another_id_or_label_in_the_index_is_found(own: tuple[Path, ShardSet]) -> None:
    first = numbered("", 0, -1)
    for other, what in ((numbered("", 7, -1), "another id"), (numbered("", 0, 1), "another label")):
        changed = edit_index(own[1], lambda text, other=other: text.replace(first, other, 1))
        (problem,) = [p for p in verify(changed.root, deep=True).problems if p.key]
        assert what in problem.what
        edit_index(own[1], lambda text, other=other: text.replace(other, first, 1))


def test_an_index_without_ids_and_labels_is_refused(own: tuple[Path, ShardSet]) -> None:
    digits = numbered("", 1, 0).removeprefix(".")
    for other in (digits[1:], digits[:-1] + "x", "jpg"):
        changed = edit_index(own[1], lambda text, other=other: text.replace(digits, other, 1))
        with pytest.raises(ValueError, match="ids and labels in its names"):
            check_indexes(changed)
        edit_index(
            own[1], lambda text, other=other: text.replace(f".{other} json", f".{digits} json", 1)
        )


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


def test_versions_that_look_for_ids_in_tars_refuse_the_manifest_by_its_format(
    indexed: ShardSet, copied: ShardSet
) -> None:
    assert (indexed.manifest.format, copied.manifest.format) == (3, 2)
    assert "indexed" not in copied.manifest.to_json()
    for shard_set, other in ((indexed, 2), (copied, 3)):
        values = {**unseal(shard_set.manifest.to_json()), "format": other}
        with pytest.raises(ValueError, match="contradicts itself: format"):
            Manifest.from_json(seal(values))


def test_stores_and_shard_sets_of_our_own_are_refused(
    tars: Path, copied: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no links; expected local folders"):
        index_tars(WebDataset(root=tars), "memory://index")
    with pytest.raises(ValueError, match="is a shard set already"):
        index_tars(WebDataset(root=copied.root), tmp_path / "out")


def test_a_link_to_what_is_no_file_is_not_opened(own: tuple[Path, ShardSet]) -> None:
    tar = Path(own[1].tars[0])
    for target in ("/dev/zero", str(tar.parent)):
        tar.unlink()
        tar.symlink_to(target)
        with pytest.raises(FileNotFoundError, match=r"00000\.tar is missing"):
            open_shards(own[1].root)


def test_another_list_of_tars_does_not_go_on(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        index_tars(WebDataset(root=tars), tmp_path / "out", engine=Stops())
    shutil.copytree(tars, tmp_path / "tars")
    with pytest.raises(ValueError, match="another fingerprint"):
        index_tars(WebDataset(root=tmp_path / "tars"), tmp_path / "out")
