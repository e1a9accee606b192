"""Every file of tools/ is a command, and `viewrank` lists and starts them all."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest

from tools import __main__ as viewrank
from training import command_line
from training.command_line import Dotted, Repeated, Rest, call, run_function

ROOT = Path(__file__).parents[2]
COMMANDS = viewrank.commands()
HELP_IS_LIGHT = set(COMMANDS) - {"train", "bench", "preview", "tune"}  # those list every network


def test_every_file_and_package_of_tools_is_a_command() -> None:
    files = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"__init__", "__main__"}
    packages = {path.parent.name for path in (ROOT / "tools").glob("*/*.py")}
    assert files | packages == set(COMMANDS) - {"train"}
    assert not files & packages


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_main_function_and_says_what_it_does(name: str) -> None:
    tree = ast.parse(COMMANDS[name].read_text())
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    line = viewrank.summary(COMMANDS[name])
    assert line[:1].isupper() and line.endswith(".") and len(line) < 98
    assert not line.startswith("Python ") and "python -m" not in line
    last = ast.unparse(tree.body[-1])
    assert last.startswith("if __name__ == '__main__':\n    run_")


def test_benchmarks_import_no_tool() -> None:
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "tools"], path


def test_the_list_has_a_line_for_each_command_and_imports_none() -> None:
    code = "import sys; from tools.__main__ import main; main(); print(*sys.modules)"
    asked = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    *lines, modules = asked.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(COMMANDS)
    for line, (name, path) in zip(lines[2:], COMMANDS.items(), strict=True):
        assert line.split(maxsplit=1) == [name, viewrank.summary(path)]
    loaded = set(modules.split())
    assert "torch" not in loaded and not {f"tools.{name}" for name in COMMANDS} & loaded


@pytest.mark.parametrize("name", sorted(HELP_IS_LIGHT))
def test_help_names_every_argument_and_loads_no_torch(name: str) -> None:
    code = "import sys; import atexit; atexit.register(lambda: print(*sys.modules))\n"
    code += "from tools.__main__ import main; main()"
    asked = subprocess.run(
        [sys.executable, "-c", code, name, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert asked.returncode == 0, asked.stderr
    shown, modules = asked.stdout.rstrip("\n").rsplit("\n", 1)
    assert shown.startswith(f"usage: viewrank {name}")
    assert not {"torch", "nvidia.dali", "torchvision"} & set(modules.split())


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("preview", ["FOLDER", "--out", "--rows"]),
        ("bench", ["{pipeline,step,feed}", "--seconds", "--rounds", "--json", "--chart"]),
        ("tune", ["--seconds", "--out"]),
    ],
)
def test_a_tool_s_own_flags_stand_before_those_of_a_recipe(
    name: str, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(viewrank._module(name)).main
    with pytest.raises(SystemExit):
        call(main, ["--help"])
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    mine, _, recipe = rest.partition("Everything that a run depends on:")
    for word in own:
        assert word in usage and f"  {word}" in mine
    assert usage.count("\n") < 3 and "--batch_size" not in usage
    assert "--batch_size" in recipe and "--batch_size" not in mine


def test_an_unknown_command_gets_the_nearest_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["viewrank", "selct"])
    with pytest.raises(SystemExit) as ended:
        viewrank.main()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1
    assert err.startswith("error: selct is no command") and "nearest are select, " in err


def test_train_starts_as_train_py_does(tmp_path: Path) -> None:
    words = ["train", "--shards", "nowhere", "--run", str(tmp_path / "run"), "--steps", "1"]
    asked = subprocess.run(
        [sys.executable, "-m", "tools", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.startswith("error: nowhere is not a folder of shards")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("my/photos", True),
        ("my/photos --max_seconds 240", True),
        ("--max_seconds 240 my/photos", True),
        ("--max_seconds=240 my/photos -- --config x", True),
        ("--config own_cpu", False),
        ("--seed 3 --config=own_cpu 4", False),
        ("--shards data/x --run runs/x --views.size -1", False),
        ("--help", False),
        ("", False),
    ],
)
def test_train_takes_a_folder_of_images_wherever_it_stands(
    words: str, folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(viewrank, "run_command", lambda main, **_: begun.append(main.__module__))
    monkeypatch.setattr(viewrank, "run_function", lambda main: begun.append(main.__module__))
    monkeypatch.setattr(sys, "argv", ["viewrank", "train", *words.split()])
    viewrank._start()
    assert begun == ["tools.train_folder" if folder else "train"]
    assert sys.argv[1:] == words.split()


# ── command lines from functions ──────────────────────────────────────────────────────────────────


def made(
    *files: Path,
    kind: Literal["a", "b"],
    sizes: list[int] | None = None,
    pairs: Repeated | None = None,
    share: float | None = None,
    numbers: Sequence[int] = (0,),
    rest: Rest,
) -> None:
    """Do a thing. And another.

    In two paragraphs.

    Args:
        files: what to read, of
            which there may be several.
        kind: one of two, 100 % of them.
        sizes: some numbers.
        pairs: K=V.
        share: from 0 to 1.
        numbers: seeds.
        rest: all else.

    Raises:
        ValueError: never.
    """
    received.append((files, kind, sizes, pairs, share, numbers, rest))


received: list[tuple[object, ...]] = []


def test_parameters_are_words_and_flags() -> None:
    words = ["x", "y", "--kind", "b", "--sizes", "1", "2", "--pairs", "a=1", "--pairs", "b=2"]
    call(made, [*words, "--share", "0.5", "--", "--kind", "c"])
    files = (Path("x"), Path("y"))
    rest = ["--kind", "c"]
    assert received.pop() == (files, "b", [1, 2], ["a=1", "b=2"], 0.5, [0], rest)
    call(made, ["--kind", "a"])
    assert received.pop() == ((), "a", None, None, None, [0], [])


def test_the_docstring_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    description, helps = command_line.described(made)
    assert description == "Do a thing. And another. In two paragraphs."
    assert helps["files"] == "What to read, of which there may be several."
    assert list(helps) == ["files", "kind", "sizes", "pairs", "share", "numbers", "rest"]
    with pytest.raises(SystemExit):
        call(made, ["--help"])
    assert "One of two, 100 % of them." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["--kind", "c"], ["kind=c", "one of a, b."]),
        (["--kind", "a", "--share", "much"], ["share=much", "a number or none"]),
        (["--kin", "a"], ["unrecognized", "--kin", "nearest flag is --kind"]),
        (["--kind", "a", "--wholly-else", "b"], ["unrecognized", "--help lists all"]),
        (["--kind", "a", "--sizes", "1", "b"], ["sizes=b", "a whole number"]),
        ([], ["required: --kind"]),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str],
    pieces: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["made", *words])
    with pytest.raises(SystemExit) as ended:
        run_function(made)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
    for piece in pieces:
        assert piece in err


def embedded(run: Path | None, data: str, *, rows: int = 1, network: Dotted = ()) -> None:
    """Do it.

    Args:
        run: what is left out.
        data: what is read.
        rows: how many.
        network: a class.
    """
    received.append((run, data, rows, network))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["x", "--rows", "2", "y"], (Path("x"), "y", 2, [])),
        (["--network", "A", "y"], (None, "y", 1, ["--network", "A"])),
        (
            ["--network.a=-1", "y", "--network=A", "--rows", "2", "--network.b", "--c"],
            (None, "y", 2, ["--network.a=-1", "--network=A", "--network.b", "--c"]),
        ),
    ],
)
def test_dotted_flags_are_handed_on_and_stand_for_a_word(
    words: list[str], expected: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    call(embedded, words)
    assert received.pop() == expected
    with pytest.raises(SystemExit):
        call(embedded, ["--help"])
    assert "--network CLASS [--network.SETTING VALUE …]" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_parameter_without_help_is_refused() -> None:
    def mute(*, size: int = 1) -> None:
        """Say nothing of size."""

    silent: Callable[..., None] = mute
    with pytest.raises(KeyError, match="size"):
        call(silent, [])
