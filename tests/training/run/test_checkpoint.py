"""Checkpoints: what was saved comes back, and what is not complete is never read."""

import shutil
from pathlib import Path

import pytest
import torch

from model.random_numbers import random_state, set_random_state
from training.run import checkpoint, state_file


def save(run: Path, step: int) -> dict[str, torch.Tensor]:
    method = {"weight": torch.full((3,), float(step)), "count": torch.tensor(step)}
    optimizer = {"optimizer": {"state": {0: {"momentum": torch.ones(2)}}}, "scaler": {}}
    own = {"random": random_state()}
    parts = {checkpoint.METHOD: method, checkpoint.OPTIMIZER: optimizer}
    for name, part in {**parts, checkpoint.rank_file(0): own}.items():
        checkpoint.write_part(run, step, name, state_file.pieces(part))
    facts = {"seconds": step / 2, "world_size": 1, "machine": "cpu, no"}
    checkpoint.commit(run, step, facts)
    return method


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    method = save(tmp_path, 7)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert (newest.step, newest.seconds, newest.world_size) == (7, 3.5, 1)
    assert all(torch.equal(newest.method()[name], value) for name, value in method.items())
    assert torch.equal(newest.optimizer()["optimizer"]["state"][0]["momentum"], torch.ones(2))
    assert torch.equal(newest.rank(0)["random"]["cpu"], torch.get_rng_state())


def test_a_machine_reads_it_where_it_has_the_run_s_folder(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    method = save(there, 7)
    found = checkpoint.newest(there)
    there.rename(here)
    assert found is not None
    assert torch.equal(found.below(here).method()["weight"], method["weight"])


def test_random_numbers_go_on_where_they_were() -> None:
    state = random_state()
    expected = torch.rand(5)
    torch.rand(100)
    set_random_state(state)
    assert torch.equal(torch.rand(5), expected)


def test_the_state_of_a_cpu_s_run_does_not_wake_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert random_state().keys() == {"cpu"}


def test_a_folder_without_its_record_is_not_complete(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "checkpoints/00000002/checkpoint.json").unlink()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and newest.step == 1


def test_copies_beside_them_are_no_checkpoints(tmp_path: Path) -> None:
    """Nor does a step of nine digits come before one of eight."""
    steps = (5, 99_999_999, 100_000_000)
    for step in steps:
        save(tmp_path, step)
    folder = tmp_path / "checkpoints"
    copies = {f"00000005{more}" for more in ("-2", "_1", ".old2", " 2", "\N{SUPERSCRIPT TWO}")}
    copies |= {"\N{ARABIC-INDIC DIGIT ONE}9", "0x9"}
    for copy in copies:
        shutil.copytree(folder / "00000005", folder / copy)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and newest.step == checkpoint.last_step(tmp_path) == steps[-1]
    checkpoint.drop_old(tmp_path, step=steps[-1], keep=1, keep_every=0)
    assert {path.name for path in folder.iterdir()} == copies | {"100000000"}


def test_damage_is_found_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "checkpoints/00000002/method.safetensors")
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and newest.step == 1
    assert "00000002 is damaged (method.safetensors is not what" in capsys.readouterr().err
    damage(tmp_path / "checkpoints/00000001/rank-0.safetensors")
    with pytest.raises(ValueError, match=r"all 2 checkpoints.*are damaged.*remove that folder"):
        checkpoint.newest(tmp_path)


def test_without_a_part_there_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in (checkpoint.METHOD, checkpoint.OPTIMIZER, checkpoint.rank_file(0)):
        checkpoint.write_part(tmp_path, 2, name, state_file.pieces({}))
    with pytest.raises(OSError, match="rank-1"):
        checkpoint.commit(tmp_path, 2, {"seconds": 1.0, "world_size": 2, "machine": "cpu, no"})
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1
