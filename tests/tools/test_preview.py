"""The view sheet: what the trainer gets, for every recipe."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.normalisation import IMAGENET
from tests.conftest import MakeShardSet
from tools import preview
from training.command_line import call

KEYS = ("views", "more_views")
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
# Of recipes with the same views one is enough.
VIEWS = {str([yaml.safe_load(path.read_text()).get(key) for key in KEYS]): path for path in RECIPES}


@pytest.mark.parametrize("recipe", [None, *VIEWS.values()], ids=lambda path: path and path.stem)
def test_a_sheet_can_be_drawn_for_every_recipe_and_for_none(
    recipe: Path | None,
    make_shard_set: MakeShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "views.png"
    words = ["preview", str(make_shard_set(12).root), "--out", str(out), "--rows", "2"]
    monkeypatch.setattr(sys, "argv", [*words, *(["--config", str(recipe)] if recipe else [])])
    call(preview.main)
    width, height = Image.open(out).size
    assert width >= height > 60


def test_the_sheet_undoes_the_normalisation_and_keeps_rows_and_columns() -> None:
    V, B, size = 2, 3, 5
    shades = torch.arange(V * B).view(V, B, 1, 1, 1) * 40  # one gray a view
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET.mean_255, IMAGENET.std_255))
    views_VBCHW = (shades - mean) / std * torch.ones(V, B, 3, size, size)
    sheet = preview.contact_sheet((views_VBCHW,))
    step = size + preview.GAP
    for v in range(V):
        for b in range(B):
            top, left = preview.GAP + b * step, preview.GAP + v * step
            cell = sheet[top : top + size, left : left + size]
            assert (cell == int(shades[v, b])).all()
    assert (sheet[0] == 255).all() and sheet.dtype == np.uint8
