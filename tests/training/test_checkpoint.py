"""Checkpoints: what was saved comes back, and what is not complete is never read."""

from pathlib import Path

import pytest
import torch

from training import checkpoint


def save(run: Path, step: int, *, keep: int = 2) -> dict[str, torch.Tensor]:
    method = {"weight": torch.full((3,), float(step)), "count": torch.tensor(step)}
    checkpoint.save(
        run,
        step=step,
        seconds=step / 2,
        method=method,
        optimizer={"optimizer": {"state": {0: {"momentum": torch.ones(2)}}}, "scaler": {}},
        rank_state={"random": checkpoint.random_state()},
        rank=0,
        world_size=1,
        machine="cpu, no",
        keep=keep,
        barrier=lambda: None,
    )
    return method


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    method = save(tmp_path, 7)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert (newest.step, newest.seconds, newest.world_size) == (7, 3.5, 1)
    assert all(torch.equal(newest.method()[name], value) for name, value in method.items())
    assert torch.equal(newest.optimizer()["optimizer"]["state"][0]["momentum"], torch.ones(2))


def test_random_numbers_go_on_where_they_were() -> None:
    state = checkpoint.random_state()
    expected = torch.rand(5)
    torch.rand(100)
    checkpoint.set_random_state(state)
    assert torch.equal(torch.rand(5), expected)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000003", "00000010"]


def test_a_folder_without_its_record_is_not_complete(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "checkpoints/00000002/checkpoint.json").unlink()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and newest.step == 1


def test_a_write_that_fails_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(*_: object, **__: object) -> None:
        raise checkpoint.safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint.safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"No space left.*earlier ones are untouched"):
        save(tmp_path, 2)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and newest.step == 1


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "checkpoints/00000001/method.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"00000001 is damaged \(method.safetensors.*Remove"):
        checkpoint.newest(tmp_path)
