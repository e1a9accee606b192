"""What a run saved, and does not fit any more, is refused in a line by all who take it up."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.optimizer import build_optimizer, load_optimizer
from tests.fuzz_targets import DUMP, go_on, prepare, read_dump, take_out
from tools.evaluate import __main__ as evaluate
from training.command_line import call
from training.run import checkpoint, state_file
from training.trained import open_encoder

Change = Callable[[Any], Any]


pytestmark = pytest.mark.usefixtures("accelerate_as_it_was")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "case"
    prepare(root)
    return root


@pytest.fixture
def case(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "case")
    return tmp_path / "case"


def rewrite(path: Path, change: Change) -> None:
    """Change a file of a run; its hash in the checkpoint fits again."""
    changed = change(state_file.loads(path.read_bytes()))
    path.write_bytes(b"".join(state_file.pieces(changed)))
    record = path.parent / checkpoint.RECORD
    if record.exists():
        facts = json.loads(record.read_text())
        facts["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        record.write_text(json.dumps(facts))


def at(*names: Any, value: Any) -> Change:
    """Return what replaces a value inside; a function makes it of the old one."""

    def change(tree: Any) -> Any:
        if not names:
            return value(tree) if callable(value) else value
        first, *rest = names
        first = next(iter(tree)) if first == "first" else first
        inner = at(*rest, value=value)(tree[first])
        if isinstance(tree, dict):
            return {**tree, first: inner}
        return [*tree[:first], inner, *tree[first + 1 :]]

    return change


def without(*names: Any) -> Change:
    return at(*names[:-1], value=lambda tree: {k: v for k, v in tree.items() if k != names[-1]})


def shorter(tensor: Tensor) -> Tensor:
    return tensor.flatten()[:1]


ADAM = ("optimizer", "state", "first")
GROUP = ("optimizer", "param_groups", 0)
METHOD: list[tuple[Change, str]] = [
    (lambda tree: dict(list(tree.items())[1:]), "Missing key"),
    (lambda tree: {**tree, "more": torch.zeros(1)}, "Unexpected key"),
    (at("first", value=shorter), "size mismatch"),
    (at("first", value="text"), "does not fit"),
    (lambda _: [1, 2], "does not fit"),
]
OPTIMIZER: list[tuple[Change, str]] = [
    (lambda _: {}, "KeyError: 'optimizer'"),
    (at(*ADAM, "exp_avg", value=shorter), r"exp_avg=\[1\] for a parameter of"),
    (at(*ADAM, "exp_avg_sq", value=None), "does not fit"),
    (at(*ADAM, "step", value=torch.zeros(3)), r"step=\[3\]"),
    (without(*ADAM, "exp_avg"), "other values of some parameters"),
    (at(*GROUP, "betas", value=None), "betas=None"),
    (at(*GROUP, "differentiable", value=True), "differentiable=True"),
    (at(*GROUP, "lr", value="fast"), "lr=fast"),
    (at(*GROUP, "params", value=[]), "does not fit"),
    (at("optimizer", "param_groups", value=[]), "does not fit"),
    (at("optimizer", "state", value=5), "does not fit"),
]
RANK: list[tuple[Change, str]] = [
    (lambda _: {}, "KeyError: 'loader'"),
    (at("loader", value=None), "state of its loader is None"),
    (at("loader", "epoch", value=-1), "epoch=-1"),
    (at("loader", "step", value=10**30), "step=1000"),
    (at("loader", "step", value=99), "at step 99 of an epoch of"),
    (at("loader", "batch_size_per_rank", value=0), "batch_size_per_rank=0"),
    (at("loader", "pipeline", value=7), "no state of the pipeline"),
    (at("loader", "pipeline", value=shorter), "DALI cannot go on from the checkpoint"),
    (at("random", value={}), "KeyError: 'cpu'"),
    (at("random", "cpu", value=torch.zeros(3)), "does not fit this run"),
    (at("guard", value={}), "KeyError: 'skipped'"),
    (at("guard", "skipped", value=torch.zeros(2, 2)), "does not fit this run"),
]
FILES = {checkpoint.METHOD: METHOD, checkpoint.OPTIMIZER: OPTIMIZER}
FILES[checkpoint.rank_file(0)] = RANK
CHANGES = [(name, change, what) for name, changes in FILES.items() for change, what in changes]


@pytest.mark.parametrize(("name", "change", "what"), CHANGES)
def test_a_run_does_not_go_on_from_what_does_not_fit_it(
    case: Path, name: str, change: Change, what: str
) -> None:
    rewrite(case / "run" / checkpoint.FOLDER / "00000005" / name, change)
    with pytest.raises(ValueError, match=what):
        go_on(case)


@pytest.mark.parametrize(("change", "what"), METHOD)
def test_nor_does_anybody_take_an_encoder_out_of_it(case: Path, change: Change, what: str) -> None:
    rewrite(case / "run" / checkpoint.FOLDER / "00000005" / checkpoint.METHOD, change)
    with pytest.raises(ValueError, match=f"00000005 does not fit .*config.yaml.*{what}|{what}"):
        take_out(case)
    words = [str(case / "run"), "--test", str(case / "set"), "--device", "cpu"]
    with pytest.raises(ValueError, match=what):
        call(evaluate.main, words)


@pytest.mark.parametrize(
    "change",
    [
        {"world_size": 10**30},
        {"step": -5},
        {"seconds": float("nan")},
        {"sha256": []},
        {"epoch_start": {"step": 7, "epoch": 0}},
        {"epoch_start": {"step": 0, "epoch": -1}},
    ],
)
def test_a_record_of_impossible_numbers_is_a_damaged_checkpoint(
    case: Path, change: dict[str, Any]
) -> None:
    path = case / "run" / checkpoint.FOLDER / "00000005" / checkpoint.RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.read(path.parent)


DUMPS: list[tuple[Change, str]] = [
    (lambda _: {}, "no dump of a step"),
    (at("method", value=lambda tree: dict(list(tree.items())[1:])), "Missing key"),
    (at("method", "first", value="text"), "its weights are no tensors"),
    (at("views", value=[]), r"views \[V, C, H, W\] of \[\]; expected \[\(2, 3, 24, 24\)"),
    (at("views", 0, value="text"), "no images"),
    (at("views", 0, value=lambda v: v[..., :8, :8]), r"of \[\(2, 3, 8, 8\)"),
    (at("views", 0, value=lambda v: v[:, :3]), "views of 3 samples and ids of 4"),
    (at("views", 0, value=lambda v: v.long()), "no images"),
    (at("id", value=shorter), "views of 4 samples and ids of 1"),
    (at("id", value=5), "ids are no row of whole numbers"),
    (at("step", value="soon"), "no dump of a step"),
]


@pytest.mark.parametrize(("change", "what"), DUMPS)
def test_a_dump_that_is_none_is_not_replayed(case: Path, change: Change, what: str) -> None:
    read_dump(case)
    rewrite(case / "run" / DUMP, change)
    with pytest.raises(ValueError, match=what):
        read_dump(case)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_an_optimizers_own_state_is_taken_up_as_it_was(name: Any) -> None:
    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        return module, build_optimizer(
            module, name=name, learning_rate=0.1, weight_decay=0.01, momentum=0.9
        )

    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()

    module, optimizer = made()
    step(module, optimizer)
    other, fresh = made()
    other.load_state_dict(module.state_dict())
    load_optimizer(fresh, state_file.loads(b"".join(state_file.pieces(optimizer.state_dict()))))
    for each in ((module, optimizer), (other, fresh)):
        step(*each)
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("place", ["checkpoints/00000005", "."])
def test_a_recipe_that_is_a_device_is_not_read(case: Path, place: str) -> None:
    recipe = case / "run" / "config.yaml"
    recipe.unlink()
    recipe.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="is not a regular file"):
        open_encoder(case / "run" / place, device="cpu")
    with pytest.raises(OSError, match="is not a regular file"):
        read_dump(case)
