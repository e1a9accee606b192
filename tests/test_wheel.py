"""The wheel holds one package: it works beside a user's own `model` and `tools`, without ours."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.test_house import imports
from training.recipe_commands import of

ROOT = Path(__file__).parent.parent
OWN = {"shards", "pipeline", "model", "training", "evaluation", "tools", "train"}
USER = "raise SystemExit('the user has a module of this name')\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel holds."""
    there = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(there / "base")]
    subprocess.run([*words, "--build-lib", str(there / "lib")], cwd=ROOT, check=True)
    return there / "lib"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A user's folder, with files called as ours are."""
    for name in OWN:
        (tmp_path / f"{name}.py").write_text(USER)
    return tmp_path


def viewrank(built: Path, users: Path, *words: str) -> str:
    """Return what a command prints."""
    return python(built, users, "-m", "viewrank", *words)


def python(built: Path, users: Path, *words: str) -> str:
    """Return what a program of the user's prints, which finds the wheel."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=users,
        env={**os.environ, "PYTHONPATH": str(built), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_has_one_package_and_the_recipes(built: Path) -> None:
    assert [path.name for path in built.iterdir()] == ["viewrank"]
    here = {path.relative_to(ROOT) for path in ROOT.glob("recipes/**/*.yaml")}
    assert {path.relative_to(built / "viewrank") for path in built.rglob("*.yaml")} == here
    assert {path.name for path in built.rglob("page.*")} >= {"page.html", "page.css", "page.js"}


def test_nothing_in_it_names_a_package_that_is_not_there(built: Path) -> None:
    quoted = re.compile(rf"({'|'.join(OWN)})((\.\w+)+)( .*)?", re.DOTALL)
    files = list(built.rglob("*.py"))
    assert len(files) > 200
    for path in files:
        assert not imports(path, "viewrank") & OWN, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = quoted.fullmatch(node.value)
                named = found and built / "viewrank" / found[1] / found[2].split(".")[1]
                assert not named or not (named.exists() or named.with_suffix(".py").exists()), (
                    path,
                    node.value,
                )
                assert "python -m tools." not in node.value, path


def test_a_message_that_names_a_command_names_one_of_the_wheel(built: Path) -> None:
    (path,) = built.rglob("launcher_options.py")
    messages = [
        "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr)
    ]
    (message,) = (text for text in messages if "accelerate launch" in text)
    assert "-m viewrank train …; for a single one, viewrank train …" in message
    assert "train.py" not in message


def test_no_recipe_s_head_names_a_file_or_module_of_the_checkout(built: Path) -> None:
    heads = {
        path: [line for line in path.read_text().splitlines() if line.startswith("#")]
        for path in built.rglob("*.yaml")
    }
    launched = [line for head in heads.values() for line in head if "accelerate launch" in line]
    assert any("-m viewrank train --config" in line for line in launched)
    assert any("-m viewrank evaluate RUN" in line for line in launched)
    for path, head in heads.items():
        assert head, path
        assert not [line for line in head if "train.py" in line or "tools." in line], path


def test_a_recipe_s_head_is_read_there_as_here(built: Path) -> None:
    for path in ROOT.glob("recipes/*.yaml"):
        there = of(built / "viewrank" / "recipes" / path.name)
        assert len(there) == len(of(path)), path
        assert all(line.startswith(("viewrank ", "accelerate ")) for line in there), there


def test_a_user_shards_trains_and_evaluates_beside_modules_of_those_names(
    built: Path, users: Path
) -> None:
    (users / "images").mkdir()
    for number in range(16):
        Image.new("RGB", (48, 40), (16 * number, 99, 7)).save(users / f"images/{number}.png")
    viewrank(built, users, "shard", "folder", "--root", "images", "--out", "data")
    words = """--config own_cpu --shards data --run run --steps 2 --batch_size 4 --device cpu
        --views.size 32 --warmup_epochs 0 --method.encoder SmallResNet --method.hidden_size 16
        --method.embedding_size 8 --evaluation_train none --evaluation_test none
        --evaluate_every none"""
    ended = viewrank(built, users, "train", *words.split())
    lines = [line[4:] for line in ended.splitlines() if line.startswith("    ")][-2:]
    assert lines[0] == "import viewrank" and ".load(" in lines[1]
    python(built, users, "-c", "\n".join(lines))  # as the run says how its encoder is used
    config = (users / "run" / "config.yaml").read_text()
    assert "class_path: model.encoder.SmallResNet" in config  # as a checkout's run has it
    shown = viewrank(built, users, "evaluate", "run", "--test", "data", "--protocol", "views")
    assert "view" in shown
    assert b"viewrank.model" not in (users / "run" / "encoder.safetensors").read_bytes()
