"""Recipes of one data set differ by their method, and not in how its encoder begins."""

import inspect
from pathlib import Path

import yaml

from model.encoder import ResNet

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def test_every_resnet_begins_its_residual_branches_at_zero_as_docs_say() -> None:
    assert inspect.signature(ResNet).parameters["zero_init_residual"].default is True
    checked = 0
    for path in RECIPES:
        encoder = yaml.safe_load(path.read_text())["method"]["init_args"]["encoder"]
        if encoder["class_path"] == "ResNet":
            assert encoder["init_args"].get("zero_init_residual", True), path.name
            checked += 1
    assert checked > 20
