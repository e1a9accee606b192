"""Small class folders of real encoded images, made on the spot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ClassFolders = Callable[..., Path]


@pytest.fixture
def class_folders(tmp_path: Path) -> ClassFolders:
    """A function that makes ROOT/class_NN/NNNN.jpg of random pixels, and returns ROOT."""

    def make(
        *, classes: int = 3, per_class: int = 4, suffix: str = "jpg", name: str = "images"
    ) -> Path:
        random = np.random.default_rng(0)
        for label in range(classes):
            folder = tmp_path / name / f"class_{label:02d}"
            folder.mkdir(parents=True)
            for number in range(per_class):
                width, height = random.integers(8, 15, size=2)
                pixels = random.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:04d}.{suffix}")
        return tmp_path / name

    return make
