"""YAML of strangers is counted before it unfolds, wherever it is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.program import RECIPE
from training import machine_settings, yaml_text
from training.run import run_folder
from training.settings import parse


def nested(depth: int, width: int) -> str:
    """Lists of lists that unfold to width^depth words."""
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join(lines) + "\n"


def merged(depth: int, width: int) -> str:
    """Mappings that are merged from mappings."""
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, depth):
        above = ", ".join([f"*a{i - 1}"] * width)
        lines.append(f"a{i}: &a{i} {{<<: [{above}], k{i}: 1}}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("text", ["1e-3", "3e4", "1_0", "no", "12", "a: b", "~", "two\nlines"])
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    written = yaml_text.dump({"name": text})
    assert yaml_text.load(written) == yaml_text.load_setting(written) == {"name": text}


TOO_MUCH = {
    "lists": nested(10, 9),
    "mappings": merged(10, 9),
    "one long list": "a: &a [" + "x, " * 2000 + "x]\n" + "".join(f"b{i}: *a\n" for i in range(900)),
    "one long text": f"a: &a {'x' * 50_000}\nb: [*a, *a]\n",
    "itself": "a: &a [1, *a]\n",
    "each other": "a: &a {b: &b [*a], c: *b}\n",
    "long": "a: " + "x" * 200_000 + "\n",
}
MALFORMED = ["a: !!bool maybe", "a: 2001-99-99", "a: " + "9" * 5000, "a: !!int ''", "a: *b", "a: ["]
READERS: dict[str, Callable[[Path], Any]] = {
    "a recipe": lambda run: parse(["--config", str(run / run_folder.CONFIG)]),
    "a run": run_folder.read_config,
    "settings of the pipeline": lambda run: machine_settings.read(run / machine_settings.NAME),
}


def written(run: Path, text: str) -> Path:
    for name in (run_folder.CONFIG, machine_settings.NAME):
        (run / name).write_text(text)
    return run


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", TOO_MUCH.values(), ids=list(TOO_MUCH))
def test_what_unfolds_to_too_much_is_refused_before_it_does(
    tmp_path: Path, reader: str, text: str
) -> None:
    run = written(tmp_path, f"shards: x\nrun: r\nsteps: 5\n{RECIPE}{text}")
    with pytest.raises(
        ValueError, match=r"characters; expected 100,000|100,000 characters at most"
    ):
        READERS[reader](run)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", MALFORMED)
def test_what_yaml_itself_stumbles_over_is_refused_in_a_line(
    tmp_path: Path, reader: str, text: str
) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+") as refused:
        READERS[reader](written(tmp_path, f"{text}\n"))
    assert "\n" not in str(refused.value)


def test_aliases_of_a_persons_own_recipe_are_read(tmp_path: Path) -> None:
    text = RECIPE.replace("count: 2, size: 24", "count: &two 2, size: 24")
    text = text.replace("count: 2, size: 16", "count: *two, size: 16")
    assert text.count("two") == 2
    run = written(tmp_path, f"shards: x\nrun: r\nsteps: 5\n{text}")
    assert [
        group.count for group in parse(["--config", str(run / "config.yaml")]).config.groups
    ] == [
        2,
        2,
    ]


@pytest.mark.parametrize(
    "text",
    ["a: [1, 2.5, 1e3, no, null, x]\nb: {c: 2001-01-01}\n", nested(4, 3), merged(4, 3), "", "5"],
)
def test_all_else_is_read_as_pyyaml_reads_it(text: str) -> None:
    assert yaml_text.load(text) == yaml_text.load(text.encode()) == yaml.safe_load(text)


def test_no_other_file_reads_yaml() -> None:
    root = Path(yaml_text.__file__).parent.parent
    readers = {
        str(path.relative_to(root))
        for path in [*root.glob("[a-z]*/**/*.py"), root / "train.py"]
        if "tests" not in path.parts
        and ("safe_load" in path.read_text() or "get_loader" in path.read_text())
    }
    # The second reads only what it has just written.
    assert readers == {"training/yaml_text.py", "training/settings.py"}
