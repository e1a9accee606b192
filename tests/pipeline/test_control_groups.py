"""The cores of a process: those that it may run on, or as many as its groups let it keep busy."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import control_groups
from pipeline.tuning import default_threads

Cores = Callable[[str, dict[str, str]], int]


@pytest.fixture
def cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cores:
    """The answer on a machine of 64 cores, given a process's groups and their files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

    def cores(own: str, files: dict[str, str]) -> int:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return control_groups.cores(tmp_path / "fs", tmp_path / "own")

    return cores


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max", 64), ("400000", 4), ("150000", 2), ("50000", 1), ("12800000", 64)],
)
def test_a_quota_of_version_2_counts_up_to_the_root(
    quota: str, expected: int, cores: Cores
) -> None:
    inner = {"job/step/cpu.max": "max 100000\n"}
    outer = {"job/cpu.max": f"{quota} 100000\n"}
    assert cores("0::/job/step\n", inner | outer) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("250000", 3)])
def test_a_quota_of_version_1_and_a_container_s_own_root(
    quota: str, expected: int, cores: Cores
) -> None:
    files = {"cpu/cpu.cfs_quota_us": f"{quota}\n", "cpu/cpu.cfs_period_us": "100000\n"}
    own = "5:cpu,cpuacct:/docker/123\n4:memory:/docker/123\n0::/\n"
    assert cores(own, files) == expected


def test_the_smallest_of_several_quotas_counts(cores: Cores) -> None:
    files = {"a/b/cpu.max": "800000 100000\n", "a/cpu.max": "300000 50000\n"}
    assert cores("0::/a/b\n", files) == 6


def test_without_groups_all_cores_of_the_affinity_count(cores: Cores, tmp_path: Path) -> None:
    assert cores("", {}) == 64
    assert control_groups.cores(tmp_path, tmp_path / "nothing") == 64


def test_a_rank_gets_its_share_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tuning.cores", lambda: 6)
    assert [default_threads(ranks) for ranks in (1, 2, 4, 8)] == [6, 3, 1, 1]
