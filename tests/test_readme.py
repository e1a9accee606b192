"""The commands and lines of code of README and docs are such as work."""

import os
import re
import shlex
import subprocess
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from model.encoder import Encoder, ResNet, SmallResNet, Timm
from tests.program import BIN, CPU
from tools import __main__ as viewrank
from tools.compare.variants import TERMS, check_terms, variants
from tools.evaluate.chosen_protocols import PROTOCOLS
from tools.shard import SOURCES
from tools.shard import _parser as parser_of_source
from training import exported
from training.command_line import add_parameters
from training.flags import FlagParser
from training.settings import parser

ROOT = Path(__file__).parent.parent
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
TEXTS += sorted((ROOT / "recipes").rglob("*.yaml"))
CLASSES = ("--method.", "--views.policy.", "--encoder.")  # their settings differ
# Without them Accelerate warns that it had to choose.
CHOSEN = {"--num_processes", "--num_machines", "--mixed_precision", "--dynamo_backend"}


def commands() -> list[tuple[str, str]]:
    """Return (file, command) of all that a text tells to type."""
    found = []
    for path in TEXTS:
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"^(?:#   )?((?:\w+=\w+ )?(?:python|accelerate) .*)$", text, re.M):
            found.append((path.name, line.partition(" # ")[0]))
        found += [
            (path.name, line)
            for line in re.findall(r"`((?:\w+=\w+ )?(?:python|accelerate) [^`]+)`", text)
        ]
    return found


def flags_of(words: list[str]) -> list[str] | None:
    """Return the flags that a command takes; None if it is none of ours."""
    if any(word.endswith("train.py") for word in words):
        return parser().flags()
    name = next((word.removeprefix("tools.") for word in words if word.startswith("tools.")), "")
    if name == "shard":
        (source, *_) = [*words[words.index("tools.shard") + 1 :], ""]
        return parser_of_source(source, SOURCES[source]).flags() if source in SOURCES else None
    if name not in viewrank.commands() or name == "demo":
        return None
    main = import_module(viewrank._module(name)).main
    own = FlagParser()
    add_parameters(own, main)
    if name == "evaluate":
        for protocol, settings in PROTOCOLS.items():
            own.add_class_arguments(settings, protocol)
    return own.flags() + (parser().flags() if "settings" in signature(main).parameters else [])


def test_every_flag_that_a_text_names_exists() -> None:
    checked = 0
    inner = [
        (file, f"python -m tools.evaluate {flags}")  # quoted, for each run of a comparison
        for file, command in commands()
        for flags in re.findall(r'--evaluate "([^"]*)"', command)
    ]
    assert inner
    for file, command in [*commands(), *inner]:
        command = re.sub(r'--evaluate "[^"]*"', "--evaluate x", command)
        words = shlex.split(command.replace("[", "").replace("]", "").replace("'", ""))
        known = flags_of(words)
        if known is None:
            continue
        checked += 1
        script = [n for n, w in enumerate(words) if w.endswith("train.py") or w[:6] == "tools."]
        for word in words[script[0] if script else 0 :]:
            flag = word.partition("=")[0]
            if word == "--":  # what follows is train.py's
                known = parser().flags()
            elif flag.startswith("--no_"):
                assert f"--{flag.removeprefix('--no_')}" in known, f"{file}: {command}"
            elif f"{flag.rpartition('.')[0]}.SETTING" in known:
                (of,) = (c for n, c in PROTOCOLS.items() if flag.startswith(f"--{n}."))
                settings = {*signature(of).parameters, "recipe"}
                assert flag.rpartition(".")[2] in settings, f"{file}: {flag}"
            elif flag.startswith("--") and not flag.startswith(CLASSES):
                assert flag in known or flag == "--help", f"{file}: {flag} in {command}"
    assert checked > 60


def test_launchers_are_for_several_processes_and_get_what_they_would_warn_about() -> None:
    launches = [
        (file, command)
        for file, command in commands()
        if command.partition("train.py")[0].count("accelerate launch") and "train.py --" in command
        if file == "launching.md" or file.endswith(".yaml")
    ]
    assert len(launches) > 8
    for file, command in launches:
        words = command.split()
        assert set(words) >= CHOSEN, f"{file}: {command}"
        assert int(words[words.index("--num_processes") + 1]) > 1, f"{file}: {command}"


def test_the_launcher_of_the_guide_warns_of_nothing(tmp_path: Path) -> None:
    """As it is written there, with another program than train.py."""
    (line,) = (
        c for f, c in commands() if f == "launching.md" and c.startswith("ACCELERATE_USE_CPU")
    )
    program = tmp_path / "said.py"
    program.write_text("import os; os.write(1, f'rank {os.environ[\"RANK\"]}\\n'.encode())")
    launcher = shlex.split(line.partition(" ")[2].partition("train.py")[0])
    ran = subprocess.run(
        [str(BIN / launcher[0]), *launcher[1:], str(program)],
        env={**os.environ, **CPU, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, sorted(ran.stdout.splitlines())) == (0, ["rank 0", "rank 1"])
    assert ran.stderr == ""


@pytest.mark.parametrize(
    "encoder",
    [
        SmallResNet(width=4, stem_stride=2),
        ResNet(depth=34, stem="small"),
        Timm(name="vit_tiny_patch16_224", image_size=32),
    ],
    ids=["SmallResNet", "ResNet", "Timm"],
)
def test_readme_s_lines_load_every_encoder(encoder: Encoder, tmp_path: Path) -> None:
    path, image = tmp_path / exported.NAME, tmp_path / "one.jpg"
    Image.effect_noise((50, 40), 60).save(image)
    given: dict[str, dict[str, object]] = {
        "SmallResNet": {"width": 4, "stem_stride": 2},
        "ResNet": {"depth": 34, "stem": "small"},
        "Timm": {"name": "vit_tiny_patch16_224", "image_size": 32},
    }
    name = type(encoder).__name__
    facts = {"class": f"model.encoder.{name}", "arguments": given[name], "size": 32, "step": 1}
    exported.write(path, encoder, {**facts, "mean": encoder.mean, "std": encoder.std})

    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for there, here in (("runs/mine/encoder.safetensors", path), ("photo.jpg", image)):
        assert lines.count(there) == 1
        lines = lines.replace(there, str(here))
    names: dict[str, Any] = {}
    exec(lines, names)
    with Image.open(image) as opened:
        expected = encoder.eval()(names["prepare"](opened)[None])
    torch.testing.assert_close(names["feature_1F"], expected)


def test_every_comparison_that_a_text_names_is_one() -> None:
    """Recipes that may not be compared, as they stand there, are refused before any training."""
    checked, refused = 0, []
    for file, command in commands():
        words = shlex.split(command)
        if "tools.compare" not in words or "…" in command:
            continue
        words = words[words.index("tools.compare") + 1 :]
        end = words.index("--") if "--" in words else len(words)
        own, more = words[:end], words[end + 1 :]
        recipes = [path for word in own if word.endswith(".yaml") for path in expanded(word)]
        allowed = [word for word in own if word in TERMS]
        try:
            check_terms(variants(recipes, [], more, where_known=False), allowed)
        except ValueError as error:
            refused.append(f"{file}: {command}: {error}")
        checked += 1
    assert checked > 6 and not refused, "\n".join(refused)


def expanded(word: str) -> list[Path]:
    """Return the recipes that a shell makes of a word."""
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", word)
    words = [f"{found[1]}{each}{found[3]}" for each in found[2].split(",")] if found else [word]
    return [ROOT / path for each in words for path in sorted(ROOT.glob(each))]
