"""The loader's promises: which samples it gives, in which memory, and from where it continues."""

import os
import resource
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.host_operators import described_for_gpu, on_the_cpu
from pipeline.augment import BYOLViews, Crop, Policy, SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.loader import Batch, Loader
from pipeline.normalisation import IMAGENET, Normalisation
from pipeline.tuning import Tuning
from shards.layout import ShardSet, open_shards
from shards.source import ImageFolder
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures

SMALL = ViewGroup(policy=SimCLRViews(), count=3, size=16)
MULTI_CROP = [
    ViewGroup(policy=SimCLRViews(), count=2, size=24),
    ViewGroup(policy=SimCLRViews(), count=3, size=16),
]
UNCHANGED = ViewGroup(
    policy=Policy(crop=Crop(area=(1, 1), aspect=(1, 1), flip=0)), count=2, size=32
)


def epoch_ids(loader: Loader) -> list[int]:
    return [sample for batch in loader for sample in batch.id_B.tolist()]


def take(loader: Loader, count: int) -> list[Batch]:
    return list(islice(loader.endless(), count))


def same(left: Batch, right: Batch) -> bool:
    pairs: list[tuple[Tensor, Tensor]] = [
        (left.id_B, right.id_B),
        (left.label_B, right.label_B),
        *zip(left.views, right.views, strict=True),
    ]
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("samples", "world_size", "batch_size"),
    [(40, 1, 8), (41, 1, 8), (47, 2, 5), (50, 3, 4), (51, 2, 25), (49, 4, 3)],
)
def test_an_epoch_repeats_nothing_and_ranks_share_nothing(
    make_shard_set: MakeShardSet, samples: int, world_size: int, batch_size: int
) -> None:
    shard_set = make_shard_set(samples)
    loaders = [
        Loader(shard_set, [SMALL], batch_size_per_rank=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    steps = samples // (world_size * batch_size)
    first_epochs: list[list[int]] = []
    for _ in range(3):
        ids = [sample for loader in loaders for sample in epoch_ids(loader)]
        assert len(ids) == steps * world_size * batch_size
        assert len(set(ids)) == len(ids), "a sample was seen twice"
        first_epochs.append(ids)
    assert first_epochs[0] != first_epochs[1] != first_epochs[2], "the order never changes"


def test_parts_are_complete_over_an_epoch(make_shard_set: MakeShardSet) -> None:
    shard_set = make_shard_set(48)
    for epoch in range(2):
        ids: set[int] = set()
        for rank in range(2):
            with Loader(
                shard_set, [SMALL], batch_size_per_rank=8, rank=rank, world_size=2
            ) as loader:
                for _ in range(epoch):
                    epoch_ids(loader)
                ids |= set(epoch_ids(loader))
        assert ids == set(range(48))


def test_every_epoch_leaves_out_other_samples(make_shard_set: MakeShardSet) -> None:
    with Loader(make_shard_set(41), [SMALL], batch_size_per_rank=8) as loader:
        left_out = {next(iter(set(range(41)) - set(epoch_ids(loader)))) for _ in range(8)}
    assert len(left_out) > 1


def test_views_carry_the_labels_and_pixels_of_their_samples(make_shard_set: MakeShardSet) -> None:
    source = Pictures(40)
    with Loader(make_shard_set(40), [UNCHANGED], batch_size_per_rank=8) as loader:
        batch = next(iter(loader))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for b, sample in enumerate(batch.id_B.tolist()):
        assert batch.label_B[b] == sample % 10
        pixels = torch.from_numpy(source.pixels(sample).copy()).permute(2, 0, 1) / 255
        for v in range(2):
            assert torch.allclose(batch.views[0][v, b], (pixels - mean) / std, atol=1e-4)


def test_views_of_a_sample_differ(make_shard_set: MakeShardSet) -> None:
    with Loader(make_shard_set(40), [SMALL], batch_size_per_rank=8) as loader:
        views = next(iter(loader)).views[0]
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])


def test_the_hand_over_copies_nothing_and_is_channels_last(make_shard_set: MakeShardSet) -> None:
    """The views lie in DALI's own buffer, and become rows for the encoder without a copy."""
    finished_by_dali = Tuning(finish="dali")
    loader = Loader(make_shard_set(40), MULTI_CROP, batch_size_per_rank=8, tuning=finished_by_dali)
    with loader:
        batch = next(iter(loader))
        pipeline = loader._pipeline
        assert pipeline is not None
        # Take the next batch by hand, to see DALI's own address.
        outputs = pipeline.share_outputs()
        addresses = [
            output.data_ptr() for output in (outputs[0].as_tensor(), outputs[1].as_tensor())
        ]
        tensors = tuple(torch.from_dlpack(output.as_tensor()) for output in outputs)
        pipeline.release_outputs()
        by_hand = loader.finished(tensors)
    for group, address in zip(by_hand.views, addresses, strict=True):
        assert group.data_ptr() == address
    for group in batch.views:
        rows = group.transpose(0, 1).flatten(0, 1)
        assert rows.data_ptr() == group.data_ptr()
        assert rows.is_contiguous(memory_format=torch.channels_last)


def test_earlier_batches_stay_intact(make_shard_set: MakeShardSet) -> None:
    with Loader(make_shard_set(64), [SMALL], batch_size_per_rank=8) as loader:
        held = [(batch, batch.views[0].clone()) for batch in loader]
    assert all(torch.equal(batch.views[0], copy) for batch, copy in held)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stop", [0, 2, 4, 5, 7])  # epochs have 4 steps of 41 // (2 · 5) samples
def test_a_restored_loader_gives_the_very_next_batches(
    make_shard_set: MakeShardSet, world_size: int, stop: int
) -> None:
    shard_set = make_shard_set(41)
    batch_size = 10 // world_size
    for rank in range(world_size):

        def loader(rank: int = rank) -> Loader:
            return Loader(
                shard_set,
                MULTI_CROP,
                batch_size_per_rank=batch_size,
                rank=rank,
                world_size=world_size,
                seed=7,
                shuffle_buffer=12,
            )

        with loader() as straight, loader() as interrupted, loader() as resumed:
            expected = take(straight, 10)
            take(interrupted, stop)
            resumed.load_state_dict(interrupted.state_dict())
            for found, wanted in zip(take(resumed, 10 - stop), expected[stop:], strict=True):
                assert same(found, wanted)


def test_a_state_restored_twice_without_a_step_is_kept(make_shard_set: MakeShardSet) -> None:
    shard_set = make_shard_set(41)
    with Loader(shard_set, [SMALL], batch_size_per_rank=8) as first:
        take(first, 3)
        state = first.state_dict()
    with Loader(shard_set, [SMALL], batch_size_per_rank=8) as second:
        second.load_state_dict(state)
        assert torch.equal(second.state_dict()["pipeline"], state["pipeline"])


def test_threads_and_prefetch_may_change_when_a_loader_continues(
    make_shard_set: MakeShardSet,
) -> None:
    shard_set = make_shard_set(41)
    with (
        Loader(
            shard_set, [SMALL], batch_size_per_rank=8, tuning=Tuning(threads=1, prefetch=1)
        ) as first,
        Loader(
            shard_set, [SMALL], batch_size_per_rank=8, tuning=Tuning(threads=2, prefetch=3)
        ) as second,
    ):
        take(first, 3)
        second.load_state_dict(first.state_dict())
        for found, wanted in zip(take(second, 5), take(first, 5), strict=True):
            assert same(found, wanted)


def test_a_state_of_a_rewritten_shard_set_is_refused(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    state = Loader(make_shard_set(40), [SMALL], batch_size_per_rank=8).state_dict()
    other = write(Pictures(40), tmp_path / "other", seed=1, samples_per_shard=8)
    with pytest.raises(ValueError, match="is not the shard set that the run was trained on"):
        Loader(other, [SMALL], batch_size_per_rank=8).load_state_dict(state)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"batch_size_per_rank": 4}, "batch_size_per_rank=8, this run has 4"),
        # With a buffer of another size DALI would lose samples and repeat others.
        ({"shuffle_buffer": 5}, "shuffle_buffer=8192, this run has 5"),
    ],
)
def test_a_state_of_other_batches_is_refused(
    make_shard_set: MakeShardSet, other: dict[str, Any], words: str
) -> None:
    asked: dict[str, Any] = {"batch_size_per_rank": 8}
    state = Loader(make_shard_set(40), [SMALL], **asked).state_dict()
    with pytest.raises(ValueError, match=f"{words}.*--reshape_data true"):
        Loader(make_shard_set(40), [SMALL], **asked | other).load_state_dict(state)


def test_a_batch_larger_than_the_shard_set_is_refused(make_shard_set: MakeShardSet) -> None:
    with pytest.raises(ValueError, match=r"batch_size=41 exceeds the 40 samples.*--batch_size 40"):
        Loader(make_shard_set(40), [SMALL], batch_size_per_rank=41)


def test_a_path_that_dali_cannot_open_is_refused_in_a_line(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(make_shard_set(16).root, root)
    with pytest.raises(ValueError, match=r"caf\\udce9' is not UTF-8, and DALI opens no such path"):
        next(iter(Loader(open_shards(root), [SMALL], batch_size_per_rank=4)))


def test_an_unreadable_image_names_the_sample_and_the_remedy(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    damaged = _copy(make_shard_set(40), tmp_path)
    tar = Path(damaged.tars[0])
    content = bytearray(tar.read_bytes())
    start = content.index(b"\x89PNG")
    content[start : start + 400] = bytes(400)
    tar.write_bytes(content)
    with (
        Loader(damaged, [SMALL], batch_size_per_rank=8) as loader,
        pytest.raises(
            ValueError,
            match=r"00000\.tar, sample \d+ has other bytes than were.*tools\.verify .* --repair",
        ),
    ):
        epoch_ids(loader)


def _copy(shard_set: ShardSet, folder: Path) -> ShardSet:
    for path in Path(shard_set.root).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return open_shards(folder)


def test_bare_pixels_give_the_views_of_the_png(make_shard_set: MakeShardSet) -> None:
    batches = []
    for encoding in ("png", "raw"):
        shard_set = make_shard_set(40, encoding=encoding, height=48)
        with Loader(shard_set, MULTI_CROP, batch_size_per_rank=8) as loader:
            batches.append(take(loader, 7))
    assert all(same(png, raw) for png, raw in zip(*batches, strict=True))


@pytest.mark.gpu
def test_gpu_views_equal_cpu_views(make_shard_set: MakeShardSet) -> None:
    def first(device: str) -> Batch:
        loader = Loader(
            make_shard_set(40), MULTI_CROP, batch_size_per_rank=8, device=torch.device(device)
        )
        with loader:
            return next(iter(loader))

    cpu, gpu = first("cpu"), first("cuda:0")
    assert torch.equal(cpu.id_B, gpu.id_B.cpu())
    for on_cpu, on_gpu in zip(cpu.views, gpu.views, strict=True):
        # Rounding a pixel to one of 255 levels a few times is 0.02 after normalising.
        assert (on_cpu - on_gpu.cpu()).abs().mean() < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("finish", ["fused", "dali"])
def test_the_host_never_waits_for_the_gpu(make_shard_set: MakeShardSet, finish: Any) -> None:
    device = torch.device("cuda", 0)
    loader = Loader(
        make_shard_set(64),
        MULTI_CROP,
        batch_size_per_rank=8,
        device=device,
        tuning=Tuning(finish=finish),
    )
    with loader:
        batches = loader.endless()
        next(batches)  # constants are copied, kernels compiled
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):
                next(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("finish", ["fused", "dali"])
def test_pixels_are_normalised_as_the_encoder_wants(
    make_shard_set: MakeShardSet, finish: Any
) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found: list[Tensor] = []
    loaders = [
        Loader(
            make_shard_set(12),
            [SMALL],
            batch_size_per_rank=4,
            tuning=Tuning(finish=finish),
            normalisation=normalisation,
        )
        for normalisation in (IMAGENET, Normalisation(mean, std))
    ]
    for loader in loaders:
        with loader:
            (batch,) = take(loader, 1)
        given = (loader.normalisation.std, loader.normalisation.mean)
        scale, shift = (torch.tensor(values).view(3, 1, 1) for values in given)
        found.append(batch.views[0] * scale + shift)
    torch.testing.assert_close(*found, atol=2e-3, rtol=0)
    differences = loaders[0].differences(loaders[1].state_dict())
    assert list(differences) == ["normalisation"]


def test_the_state_of_an_older_graph_is_refused_by_name(make_shard_set: MakeShardSet) -> None:
    with Loader(make_shard_set(40), [SMALL], batch_size_per_rank=8) as loader:
        next(iter(loader))
        state = loader.state_dict()
    del state["graph"]  # as versions wrote it that drew a flip and colours by an operator each
    with Loader(make_shard_set(40), [SMALL], batch_size_per_rank=8) as loader:
        assert loader.differences(state).keys() == {"graph"}
        with pytest.raises(ValueError, match=r"another version of viewrank.*--reshape_data true"):
            loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("resampling", "grows"), [("warp", False), ("supersample", False), ("resize", True)]
)
def test_one_operator_makes_all_views(
    make_shard_set: MakeShardSet, resampling: Any, grows: bool
) -> None:
    """Only with "resize" does the number of operators on pixels grow with the views."""

    def pixel_operators(count: int) -> int:
        group = ViewGroup(policy=SimCLRViews(), count=count, size=16, resampling=resampling)
        with Loader(make_shard_set(16), [group], batch_size_per_rank=4) as loader:
            graph = loader.stage("augment")
            names = [op.name.strip("_").split("_")[0] for op in graph._ops or []]
        assert "Uniform" in names  # this test knows the operators' names
        pixelwise = ("WarpAffine", "Resize", "RandomResizedCrop", "Filter", "Reshape")
        return sum(name in pixelwise for name in names)

    few, many = pixel_operators(2), pixel_operators(16)
    assert (many - few == 14) if grows else (many == few)


@pytest.mark.parametrize("resampling", ["warp", "supersample", "resize"])
@pytest.mark.parametrize("groups", [[2], [8], [32], [2, 6]], ids=str)
def test_a_gpu_waits_for_few_operators_of_the_cpu(
    make_shard_set: MakeShardSet, resampling: Any, groups: list[int]
) -> None:
    """DALI runs them one at a time; the graph is described for a GPU, which need not be there."""
    described = described_for_gpu(
        [
            ViewGroup(policy=BYOLViews(second=True), count=count, size=16, resampling=resampling)
            for count in groups
        ],
        make_shard_set(16).root,
        4,
    )
    on_cpu = [op.name for op in on_the_cpu(described)[0]]
    assert any("Uniform" in name for name in on_cpu)  # this test knows how they are described
    per_group = 6 if resampling == "resize" else 18
    drawn_before = 0 if resampling == "resize" else sum(groups)
    assert len(on_cpu) <= 3 + per_group * len(groups) + drawn_before


def test_the_decoder_sees_only_what_two_crops_show_and_gives_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding a part of a JPEG is exact: bit for bit the views of the whole image."""
    folder = tmp_path / "images"
    folder.mkdir()
    pictures = Pictures(16, height=120, width=160)
    for index in range(16):
        Image.fromarray(pictures.pixels(index)).save(folder / f"{index}.jpg", quality=85)
    shard_set = write(ImageFolder(root=folder), tmp_path / "shards")
    group = ViewGroup(policy=SimCLRViews(), count=2, size=32)

    def views() -> Tensor:
        with Loader(shard_set, [group], batch_size_per_rank=16) as loader:
            return next(iter(loader)).views[0].clone()

    parts = views()
    monkeypatch.setattr("pipeline.graph.FEW_VIEWS", 0)
    # Rounding a coordinate in float32 once is the only difference.
    assert (parts - views()).abs().max() < 1.01 / 255 / 0.224


def test_a_shuffle_buffer_takes_no_memory_for_samples_that_are_mapped(
    make_shard_set: MakeShardSet,
) -> None:
    shard_set = make_shard_set(2048)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    # By DALI's default it takes 1 MiB for each of the three components of a sample: 6 GiB.
    resource.setrlimit(resource.RLIMIT_AS, (taken + 3 * 2**30, limits[1]))
    try:
        with Loader(shard_set, [SMALL], batch_size_per_rank=64, shuffle_buffer=2048) as loader:
            assert len(set(epoch_ids(loader))) == 2048
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
