"""What a measurement leaves names no folder of the machine that it was made on."""

import json
from pathlib import Path

from benchmarks.record import write
from tests.program import texts

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_a_record_is_written_without_absolute_paths(tmp_path: Path) -> None:
    command = f"python -m benchmarks.x --shards data/s --out {Path.cwd()}/results/x.json {tmp_path}"
    write({"command": command, "cases": [{"seconds": 1.5}]}, tmp_path / "x.json")
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["cases"] == [{"seconds": 1.5}]
    words = f"python -m benchmarks.x --shards data/s --out results/x.json {tmp_path.name}"
    assert found["command"] == words


def test_no_result_names_a_folder_of_a_machine() -> None:
    everywhere = {"/", "/dev/shm"}  # of every Linux
    for path in sorted(RESULTS.glob("*.json")):
        words = [word for text in texts(json.loads(path.read_text())) for word in text.split()]
        assert not [word for word in words if word[0] == "/" and word not in everywhere], path.name
