"""What is measured of the host's operators is kept, and the docs have the command of it."""

import sys
from pathlib import Path

import pytest

from benchmarks import host_operators


def test_without_a_shard_set_it_is_refused_and_what_was_measured_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "results.json"
    kept.write_text("what was measured")
    monkeypatch.setattr(host_operators, "RESULTS", kept)
    monkeypatch.setattr(sys, "argv", ["host_operators", "--rounds", "1"])
    with pytest.raises(SystemExit) as ended:
        host_operators.main()
    assert ended.value.code == 2
    assert "name what is read: --coco SHARDS, --cifar10 SHARDS or both." in capsys.readouterr().err
    assert kept.read_text() == "what was measured"


def test_the_table_names_the_whole_command() -> None:
    measured = {"operators": 7, "ms": 9.5, "reader_ms": 5.0}
    row = {"case": "8 × 96, resize", "batch": 256, "now": measured}
    where = {"date": "2026-11-29T10:00:00", "cpu": "a processor"}
    record = {"surroundings": where, "rounds": 2, "rows": [row]}
    command = "python -m benchmarks.host_operators --coco SHARDS --cifar10 SHARDS --rounds 2"
    assert f"`{command}`, 2026-11-29, " in host_operators.markdown(record)
    record["rows"] = [{**row, "before": measured}]
    assert f"`{command} --before CHECKOUT`, " in host_operators.markdown(record)
