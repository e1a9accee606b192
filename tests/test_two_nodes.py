"""A launch over two machines, rehearsed in two network namespaces; see `tests.two_nodes`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.two_nodes import SCENARIOS, Rehearsal, available, two_nodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="network namespaces need root and iproute2"),
]
SAID = {
    "trains": "30 losses and all weights are those of one machine, to the bit",
    "trains_elastic": "30 losses and all weights are those of one machine, to the bit",
    "refuses_own_disks": "run is another folder for rank 1 on",
    "refuses_differences": "rank 1 differs from rank 0: learning_rate 0.02, not 0.01",
    "outlives_a_node": "started again: 30 losses and all weights",
    "comes_back": "30 losses and all weights",
    "says_what_hangs": "error: no step since",
}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with two_nodes() as nodes:
        yield Rehearsal(nodes, tmp_path_factory.mktemp("nodes"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_nodes(name: str, rehearsal: Rehearsal, tmp_path: Path) -> None:
    assert SAID[name] in SCENARIOS[name](rehearsal, tmp_path / "run")
