"""README's commands and lines of code are such as work."""

import os
import re
import shlex
import subprocess
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import torch
import torchvision

from model.encoder import Encoder, ResNet, SmallResNet, VisionTransformer
from tests.program import BIN, CPU
from tools import __main__ as viewrank
from tools.shard import SOURCES
from tools.shard import _parser as parser_of_source
from training.command_line import add_parameters
from training.flags import FlagParser
from training.run import run_folder
from training.settings import parser

ROOT = Path(__file__).parent.parent
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
TEXTS += sorted((ROOT / "recipes").glob("*.yaml"))
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
        source = words[words.index("tools.shard") + 1]
        return parser_of_source(source, SOURCES[source]).flags() if source in SOURCES else None
    if name not in viewrank.commands() or name == "demo":
        return None
    main = import_module(viewrank._module(name)).main
    own = FlagParser()
    add_parameters(own, main)
    return own.flags() + (parser().flags() if "settings" in signature(main).parameters else [])


def test_every_flag_that_a_text_names_exists() -> None:
    checked = 0
    for file, command in commands():
        words = shlex.split(command.replace("[", "").replace("]", "").replace("'", ""))
        known = flags_of(words)
        if known is None:
            continue
        checked += 1
        script = [n for n, word in enumerate(words) if word.endswith("train.py")]
        for word in words[script[0] if script else 0 :]:
            flag = word.partition("=")[0]
            if word == "--":  # what follows is train.py's
                known = parser().flags()
            elif flag.startswith("--no_"):
                assert f"--{flag.removeprefix('--no_')}" in known, f"{file}: {command}"
            elif flag.startswith("--") and not flag.startswith(("--method.", "--views.policy.")):
                assert flag in known or flag == "--help", f"{file}: {flag} in {command}"
    assert checked > 60


def test_launchers_are_for_several_processes_and_get_what_they_would_warn_about() -> None:
    launches = [
        (file, command)
        for file, command in commands()
        if command.partition("train.py")[0].count("accelerate launch") and "train.py --" in command
        if file == "README.md" or file.endswith(".yaml")
    ]
    assert len(launches) > 8
    for file, command in launches:
        words = command.split()
        assert set(words) >= CHOSEN, f"{file}: {command}"
        assert int(words[words.index("--num_processes") + 1]) > 1, f"{file}: {command}"


def test_the_launcher_of_readme_warns_of_nothing(tmp_path: Path) -> None:
    """As it is written there, with another program than train.py."""
    (line,) = (c for f, c in commands() if f == "README.md" and c.startswith("ACCELERATE_USE_CPU"))
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


def snippet(weights: Path) -> torch.nn.Module:
    """Return the network that README's lines load from an exported file."""
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert lines.count("runs/mine/encoder.safetensors") == 1
    names: dict[str, object] = {}
    exec(lines.replace("runs/mine/encoder.safetensors", str(weights)), names)
    network = names["resnet"]
    assert isinstance(network, torch.nn.Module)
    return network


def test_readme_s_lines_load_the_encoder_that_they_name(tmp_path: Path) -> None:
    encoder = ResNet().eval()
    run_folder.export(tmp_path, encoder, size=64, step=1)
    network = snippet(tmp_path / run_folder.ENCODER).eval()
    images = torch.randn(2, 3, 64, 64)
    assert isinstance(network, torchvision.models.ResNet)
    assert torch.equal(network(images), encoder(images))


@pytest.mark.parametrize(
    "encoder",
    [
        SmallResNet(),
        ResNet(depth=34),
        ResNet(depth=50),
        ResNet(stem="small"),
        VisionTransformer(variant="ti_16", image_size=32),
    ],
    ids=["SmallResNet", "depth 34", "depth 50", "small stem", "VisionTransformer"],
)
def test_readme_s_lines_refuse_every_other_encoder(encoder: Encoder, tmp_path: Path) -> None:
    run_folder.export(tmp_path, encoder, size=32, step=1)
    with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict"):
        snippet(tmp_path / run_folder.ENCODER)
