"""What several tests of training need."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture
def accelerate_as_it_was() -> Iterator[None]:
    """Accelerate keeps its first settings for the process, and other tests want others."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
