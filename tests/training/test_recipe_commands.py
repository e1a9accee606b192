"""A recipe whose data are missing names the commands of its own head that make them."""

from pathlib import Path

import pytest
import yaml

from training import recipe_commands
from training.config import SHARD_SETS
from training.settings import parse

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_s_head_makes_every_set_that_it_reads(recipe: Path) -> None:
    settings = yaml.safe_load(recipe.read_text())
    sets = {settings[name] for name in SHARD_SETS if name in settings}
    made = [
        each for command in recipe_commands.of(recipe) for each in recipe_commands.made(command)
    ]
    assert sets and sets <= set(made)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_without_its_data_quotes_its_head(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = parse(["--config", str(recipe)])
    with pytest.raises(ValueError) as error:
        settings.check_data(*SHARD_SETS)
    message, head = str(error.value), recipe.read_text().partition("\n\n")[0]
    assert f"shards={settings.config.shards} is not there" in message and str(recipe) in message
    commands = message.partition("that make it: ")[2].split(" && ")
    assert commands and all(f"#   {command}" in head for command in commands)
    assert "tools." in commands[0] and "\n" not in message


def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = next(each for each in RECIPES if each.stem == "cifar10_cpu_spp")
    settings = parse(["--config", str(recipe)])
    for name in ("cifar10-train20k", "cifar10-test4k"):
        Path("data", name).mkdir(parents=True)
    with pytest.raises(ValueError) as error:
        settings.check_data(*SHARD_SETS)
    train, mine = str(error.value).partition("that make it: ")[2].split(" && ")
    assert "train.py --config recipes/cifar10_cpu_simclr.yaml" in train
    assert "tools.mine_pairs" in mine
    Path("data", "cifar10-train20k-pairs").mkdir()
    settings.check_data(*SHARD_SETS)


def test_other_places_are_the_user_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("mine", "s3://bucket/mine"):
        none = ["--evaluation_train", "none", "--evaluation_test", "none"]
        parse(["--config", str(RECIPES[0]), "--shards", place, *none]).check_data(*SHARD_SETS)
