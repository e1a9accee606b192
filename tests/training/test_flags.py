"""None is null, a flag beats a recipe, and messages speak of flags, not of Python's types."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from pipeline.tuning import Tuning
from training import command_line
from training.config import Config
from training.settings import CLASSES, concrete, parse, parser

LEAST = ["--shards", "x", "--run", "r"]
OPTIONAL = [each.name for each in fields(Config) if "None" in str(each.type)]
OPTIONAL += [f"tuning.{each.name}" for each in fields(Tuning) if "None" in str(each.type)]


@pytest.mark.parametrize("none", ["none", "None", "null"])
def test_none_is_no_value_of_every_optional_field(none: str, tmp_path: Path) -> None:
    names = [name for name in OPTIONAL if name != "steps"]
    assert {"epochs", "max_seconds", "evaluation_test", "tuning.decode"} < set(names)
    given = {"epochs": "3", "max_seconds": "9", "tuning.threads": "2", "evaluation_test": "e"}
    before = [word for name, value in given.items() for word in (f"--{name}", value)]
    words = [word for name in names for word in (f"--{name}", none)]
    flat = parse([*LEAST, *before, "--steps", "5", *words]).flat()
    assert {name: flat[name] for name in names} == dict.fromkeys(names)

    tops = [name for name in names if "." not in name]
    inner = [name.partition(".")[2] for name in names if "." in name]
    recipe = tmp_path / "recipe.yaml"
    text = [f"{name}: {none}" for name in tops]
    text += ["steps: 5", "tuning:", *(f"  {name}: {none}" for name in inner)]
    recipe.write_text("\n".join(text))
    assert parse([*LEAST, "--config", str(recipe)]).flat() == flat


def test_none_is_a_word_where_a_setting_takes_text(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("tuned: none\nsteps: 5\n")
    assert parse([*LEAST, "--config", str(recipe)]).config.tuned == "none"
    assert parse([*LEAST, "--steps", "5", "--tuned", "none"]).config.tuned == "none"


def test_no_without_quotes_is_no_mixed_precision(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mixed_precision: no\nsteps: 5\n")
    assert parse([*LEAST, "--config", str(recipe)]).config.mixed_precision == "no"


@pytest.mark.parametrize(
    ("text", "words"), [("", "holds no settings"), ("a: [1", "cannot be read as YAML")]
)
def test_a_recipe_without_settings_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"--config .*recipe\.yaml {words}"):
        parse([*LEAST, "--config", str(tmp_path / "recipe.yaml")])


def test_a_tilde_is_the_user_s_home_in_recipes_and_after_an_equals_sign(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("run: ~/r\nsteps: 5\n")
    config = parse(["--config", str(recipe), "--shards=~/x"]).config
    assert (config.run, config.shards) == (tmp_path / "r", f"{tmp_path}/x")


def test_a_flag_of_several_values_may_stand_twice() -> None:
    def main(folder: str, *, ids: list[int] = [], names: list[str] | None = None) -> None:  # noqa: B006
        """Choose.

        Args:
            folder: of images.
            ids: numbers.
            names: words.
        """

    words = ["--ids", "1", "2", "--names=a=b", "images", "--ids=3", "--names", "c", "d"]
    given = {"folder": "images", "ids": [1, 2, 3], "names": ["a=b", "c", "d"]}
    assert command_line.read(main, words) == ([], given)


def test_a_list_of_a_class_may_stand_twice_and_a_number_s_last_value_counts() -> None:
    class Protocol:
        labels: list[float]
        epochs: int

    words = ["--p.labels", "0.1", "--p.epochs", "3", "--p.labels=1", "--p.epochs", "5"]
    found = ["--p.epochs", "3", "--p.labels", "[0.1, 1]", "--p.epochs", "5"]
    assert command_line.several_as_lists(words, Protocol) == found


@pytest.mark.parametrize(
    ("recipe", "words", "length"),
    [
        ("steps: 500", ["--epochs", "2"], (2.0, None)),
        ("epochs: 9", ["--steps=3"], (None, 3)),
        ("steps: 500", ["--steps", "3"], (None, 3)),
        ("steps: 500", ["--epochs", "none"], (None, 500)),
        ("epochs: 9", ["--epochs", "none", "--steps", "3"], (None, 3)),
    ],
)
def test_a_length_on_the_command_line_replaces_a_recipe_s(
    recipe: str, words: list[str], length: tuple[float, int], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    config = parse([*LEAST, "--config", str(file), *words]).config
    assert (config.epochs, config.steps) == length
    if recipe.split(":")[0] not in " ".join(words):  # else the later one wins, as ever
        config = parse([*LEAST, *words, "--config", str(file)]).config
        assert (config.epochs, config.steps) == length


def test_evaluations_on_the_command_line_replace_a_recipe_s(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("steps: 5\nevaluate_every: 2")
    config = parse([*LEAST, "--config", str(file), "--evaluations", "3"]).config
    assert (config.evaluate_every, config.evaluations) == (None, 3)


def test_no_message_names_a_type_of_python() -> None:
    """Every flag, with a value that it cannot have."""
    refused = 0
    for flag in parser().flags():
        if flag.endswith(("help", "config")):
            continue
        try:
            parse([*LEAST, "--steps", "5", flag, "{oh: no}"])
        except ValueError as error:
            refused += 1
            message = str(error)
            assert flag.removeprefix("--") in message, message
            assert not re.search(r"typing|<class|Parser key|Literal|Union", message), message
    assert refused > 40


@pytest.mark.parametrize(
    ("recipe", "pieces"),
    [
        ("batchsize: 3", ["batchsize is no setting", "nearest is batch_size"]),
        ("views: {cuont: 3}", ["views.cuont is no setting", "nearest is count"]),
        (
            "method: {class_path: SwAV, init_args: {protoypes: 3}}",
            ["method.protoypes is no setting of SwAV", "nearest is prototypes"],
        ),
        ("more_views: [{count: x, policy: SimCLRViews}]", ["more_views.count=x", "whole number"]),
    ],
)
def test_a_wrong_word_in_a_recipe_gets_the_nearest(
    recipe: str, pieces: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    with pytest.raises(ValueError) as error:
        parse([*LEAST, "--config", str(file)])
    for piece in pieces:
        assert piece in str(error.value)


# ── help ──────────────────────────────────────────────────────────────────────────────────────────


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


SETTINGS = ["method", "method.encoder", "method.objective", "views.policy"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_help_of_a_class_names_its_settings_by_the_flags_that_set_them(
    setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in concrete(CLASSES[setting.rpartition(".")[2]]):
        if not each.__module__.startswith(("model.", "pipeline.")):  # another test's
            continue
        text = shown(capsys, f"--{setting}.help", each.__name__)
        flags = set(re.findall(r"^  (--[\w.]+) ", text, re.MULTILINE))
        known = {f"--{setting}.{name}" for name in inspect.signature(each).parameters}
        assert known <= flags
        for flag in flags - known:  # of a class within it, such as Policy's crop
            assert flag.rpartition(".")[0] in known


def test_a_flag_of_the_help_of_a_class_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--method.encoder.help", "Timm")
    flag = next(each for each in re.findall(r"--[\w.]+", text) if each.endswith("drop_path"))
    words = ["--method.encoder", "Timm", flag, "0.2", "--method.encoder.name", "convnext_atto"]
    method = parse([*LEAST, "--steps", "5", *words]).resolved["method"]
    assert method["init_args"]["encoder"]["init_args"]["drop_path"] == 0.2


def test_help_without_a_name_is_of_the_class_that_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--method JointEmbedding " in shown(capsys, "--method.help")
    assert "--method.hidden_size" in shown(capsys, "--method.help")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"method": {"class_path": "SwAV"}}))
    text = shown(capsys, "--config", str(recipe), "--method.help")
    assert "--method SwAV " in text and "--method.prototypes" in text
    text = shown(capsys, "--method.encoder", "SmallResNet", "--method.encoder.help")
    assert "--method.encoder.stem_stride" in text


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["--method.encoder.help", "SmalResNet"], ["SmalResNet", "nearest is SmallResNet"]),
        (["--method.hidden_size.help"], ["method.hidden_size is no class"]),
    ],
)
def test_help_of_what_is_no_class_says_so(words: list[str], pieces: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        parse(words)
    for piece in pieces:
        assert piece in str(error.value)
