"""What Accelerate's launcher was asked for: followed, named, or refused."""

from pathlib import Path

import pytest
from accelerate.commands.config import config_args

from shards.layout import ShardSet
from tests.conftest import MakeShardSet
from tests.program import BIN, arguments, finish
from training import launch, launcher_options
from training.config import Config
from training.settings import parse

TWO_ON_CPU = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: true
"""
COMPILED = """
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
dynamo_config: {dynamo_backend: INDUCTOR}
mixed_precision: fp16
num_machines: 1
num_processes: 1
use_cpu: true
"""
HARMLESS = COMPILED.replace("INDUCTOR", "'NO'").replace("fp16", "'no'")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", *launcher_options.STRATEGIES):
        monkeypatch.delenv(name, raising=False)


def launcher(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    for module in (launch, launcher_options):
        monkeypatch.setattr(module, "started_with", lambda _: words.split())


@pytest.fixture
def config(tmp_path: Path) -> Config:
    flags = ["--shards", "data/x", "--run", str(tmp_path), "--steps", "1", "--device", "cpu"]
    return parse([*flags, "--mixed_precision", "bf16"]).config


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("python accelerate launch --cpu --num_processes 2 train.py --steps 3", 2),
        ("python accelerate launch --cpu --num_processes=4 train.py", 4),
        ("python accelerate launch --config_file FILE train.py", 2),
        ("python accelerate launch --config_file=FILE train.py", 2),
        ("python accelerate launch --config_file FILE --num_processes 1 train.py", 1),
        ("python accelerate launch train.py --views.count 8", 1),
        ("python accelerate launch train.py --num_processes 3", 1),
        ("torchrun train.py", 1),
        ("bash", 1),
        ("", 1),
    ],
)
def test_the_number_of_processes_is_read_from_the_launcher_and_its_file(
    words: str, asked: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(TWO_ON_CPU)
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "none.yaml"))
    launcher(monkeypatch, words.replace("FILE", str(file)))
    if asked == 1:
        launcher_options.refuse(1)
    else:
        with pytest.raises(ValueError, match=f"asked for {asked} processes by .* but started one"):
            launcher_options.refuse(1)
        launcher_options.refuse(asked)


def test_accelerate_s_own_file_counts_unless_the_launcher_reads_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "default_config.yaml"
    file.write_text(TWO_ON_CPU)
    monkeypatch.setattr(config_args, "default_config_file", str(file))
    launcher(monkeypatch, "python accelerate launch --cpu train.py")
    launcher_options.refuse(1)
    launcher(monkeypatch, "python accelerate launch train.py")
    with pytest.raises(ValueError, match=r"asked for 2 processes by .*default_config\.yaml"):
        launcher_options.refuse(1)
    file.write_text(HARMLESS)
    launcher_options.refuse(1)


@pytest.mark.parametrize("variable", launcher_options.STRATEGIES)
def test_a_divided_network_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "false")
    launcher_options.refuse(1)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=launcher_options.STRATEGIES[variable]):
        launcher_options.refuse(1)


@pytest.mark.parametrize(
    ("backend", "precision", "named"),
    [
        ("NO", "no", []),
        ("NO", "bf16", []),  # what is trained with
        ("INDUCTOR", "no", ["dynamo_backend=inductor is not followed: --compile of train.py"]),
        ("NO", "fp16", ["mixed_precision=fp16 is not followed: --mixed_precision of train.py"]),
        ("NO", "fp8", ["decides, here bf16"]),
    ],
)
def test_what_the_run_s_settings_overrule_is_named(
    backend: str, precision: str, named: list[str], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", backend)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    lines = list(launcher_options.overruled(config))
    assert len(lines) == len(named)
    assert all(part in line for part, line in zip(named, lines, strict=True))


@pytest.mark.slow
def test_a_file_of_accelerate_compiles_nothing_behind_the_run_s_back(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    shard_set: ShardSet = make_shard_set(42)
    file = tmp_path / "accelerate.yaml"
    file.write_text(COMPILED)
    launch = [str(BIN / "accelerate"), "launch", "--config_file", str(file)]
    command = arguments(shard_set, tmp_path / "run", "--steps", "3")
    # A compiler that is not there: whatever compiles fails.
    code, out, err = finish([*launch, *command], CXX="/none", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert code == 0, out + err
    assert "the launcher's dynamo_backend=inductor is not followed" in out
    assert "the launcher's mixed_precision=fp16 is not followed" in out
    assert not list(tmp_path.glob("**/*.cpp"))
