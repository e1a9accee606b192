"""Recipes that come with viewrank are found by their names."""

from pathlib import Path

import pytest

from training.packaged_recipes import RECIPES, located


def test_a_run_s_folder_may_be_called_as_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = str(RECIPES / "own_cpu.yaml")
    words = ["--config", "own_cpu", "--config=own_cpu", "--run", "own_cpu"]
    for make in (None, Path("own_cpu").mkdir):  # the second time, the run is there
        if make:
            make()
        assert located(words) == ["--config", own, f"--config={own}", "--run", "own_cpu"]
    Path("own_cpu").rmdir()
    Path("own_cpu").touch()
    assert located(words) == words
