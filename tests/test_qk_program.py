"""QK iteration as its users run it: continued within a phase, on one process and on two."""

import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from shards.layout import ShardSet
from shards.source import Copies
from shards.writing.write import write
from tests.conftest import MakeShardSet
from tests.program import BIN, TWO, finish, losses, weights
from training.monitor import METRICS, keep_records, records

# A start of one step, then phases of 4; 70 keys of 42 samples are two views each.
RECIPE = """
views: {count: 1, size: 16, policy: {class_path: SimCLRViews, init_args: {blur_window: 3}}}
more_views:
- {count: 1, size: 16, policy: {class_path: SimCLRViews, init_args: {area: [0.8, 1.0], blur: 0.0}}}
batch_size: 8
method:
  class_path: QKIteration
  init_args:
    encoder: {class_path: SmallResNet, init_args: {width: 4}}
    hidden_size: 16
    embedding_size: 8
    start_steps: 1
    phase_steps: 4
    keys: 70
learning_rate: 0.01
clip_gradient_norm: 1.0
shuffle_buffer: 16
log_every: 1
profile_seconds: 0
check_memory: false
steps: 10
checkpoint_every: 3
keep_checkpoints: 100
"""


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(42)


@pytest.fixture(scope="module")
def copies(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for copy detection; the training set does not matter here."""
    root = tmp_path_factory.mktemp("copies")
    counts = {"queries": 12, "distractors": 8, "backgrounds": 4}
    flags = ["--evaluation_test", str(shard_set.root)]
    write(Copies(root=shard_set.root, split="queries", **counts), str(root / "queries"))
    write(Copies(root=shard_set.root, split="references", **counts), str(root / "references"))
    for name in ("queries", "references"):
        flags += [f"--evaluation_{name}", str(root / name)]
    return flags


def command(shard_set: ShardSet, run: Path, processes: int, *more: str) -> list[str]:
    recipe = run.parent / "qk.yaml"
    recipe.write_text(RECIPE)
    launch = [sys.executable] if processes == 1 else [str(BIN / "accelerate"), *TWO]
    files = ["--config", str(recipe), "--shards", str(shard_set.root), "--run", str(run)]
    return [*launch, "train.py", *files, *more]


def continued_from(step: int, whole: Path, run: Path) -> None:
    """Leave a run as a kill after a step's checkpoint would have left it."""
    shutil.copytree(whole, run)
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    (run / "encoder.safetensors").unlink()
    keep_records(run / METRICS, up_to=step)


LASTING = ["--method.fill_parts", "3", "--method.step_keys", "true"]


@pytest.mark.parametrize(
    ("processes", "more"),
    [
        (1, []),
        pytest.param(2, [], marks=pytest.mark.slow),
        pytest.param(1, LASTING, marks=pytest.mark.slow),
        pytest.param(2, LASTING, marks=pytest.mark.slow),
    ],
)
def test_a_run_continued_within_a_phase_is_the_uninterrupted_one(
    processes: int, more: list[str], shard_set: ShardSet, copies: list[str], tmp_path: Path
) -> None:
    """After 6 steps the key model trains, against queries' views of the frozen query model."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, out, err = finish(
        command(shard_set, whole, processes, *more, *copies[: 6 * (processes == 1)])
    )
    assert code == 0, out + err
    expected = weights(whole)
    turns = [r["queries_train"] for r in records(whole) if "loss" in r]
    assert turns == [1] * 5 + [0] * 4 + [1]
    memories = [name for name in expected if "_ring." in name]
    assert len(memories) == 6 * bool(more)
    if processes == 1:
        figures = ("copy_map", "copy_recall_at_p90", "copy_r1", "copy_r10", "copy_z_map")
        assert all(0 <= records(whole)[-1][name] <= 1 for name in figures)

    continued_from(6, whole, broken)
    code, out, err = finish(command(shard_set, broken, processes, *more))
    assert code == 0, out + err
    assert "continuing from step 6" in out
    assert losses(broken) == losses(whole)
    found = weights(broken)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    for part in ("encoder.", "projector.", "key_encoder.", "key_projector."):  # all did train
        names = [name for name in expected if name.startswith(part) and name.endswith("weight")]
        first = safetensors.torch.load_file(whole / "checkpoints/00000003/method.safetensors")
        assert any(not torch.equal(first[name], expected[name]) for name in names)
