"""A launch that silently starts fewer processes than it was asked for."""

import pytest

from training import launch


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("python accelerate launch --cpu --num_processes 2 train.py --steps 3", 2),
        ("python accelerate launch --cpu --num_processes=4 train.py", 4),
        ("python accelerate launch train.py --views.count 8", 1),
        ("python accelerate launch train.py --num_processes 3", 1),
        ("bash", 1),
        ("", 1),
    ],
)
def test_the_number_of_processes_is_read_from_the_launcher(
    words: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_command_line", lambda _: words.split())
    if asked == 1:
        launch.check_processes(1)
    else:
        with pytest.raises(ValueError, match=f"asked for {asked} processes but started one"):
            launch.check_processes(1)
        launch.check_processes(asked)
