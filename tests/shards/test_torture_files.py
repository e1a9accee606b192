"""The expectations of the torture files, asked of the two decoders that they are about."""

import io
import os
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.shards.damaged_inputs import UNNOTICED, DamageDraw, good, torture

os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
nv = pytest.importorskip("nvidia.nvimgcodec")

PIXELS = 90_000_000


@cache
def decoder():
    backends = [nv.Backend(nv.CPU_ONLY)]
    cpu = nv.NVIMGCODEC_DEVICE_CPU_ONLY
    return nv.Decoder(backends=backends, max_num_cpu_threads=1, device_id=cpu)


def by_nvimgcodec(data: bytes) -> np.ndarray | None:
    settings = {"apply_exif_orientation": True, "color_spec": nv.SRGB, "allow_any_depth": False}
    try:
        image = decoder().decode(data, params=nv.DecodeParams(**settings))
    except RuntimeError:  # not even the format is known
        return None
    return None if image is None else np.asarray(image)


def by_pillow(data: bytes) -> Image.Image | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data))
            if image.width * image.height <= PIXELS:
                image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
    return image


def verdict(data: bytes, extension: str) -> str:
    """What the two decoders say; "disputed" where only nvImageCodec reads a file."""
    image = by_pillow(data)
    if image is not None and (image.width * image.height > PIXELS or image.mode == "F"):
        return "quarantined"
    pixels = by_nvimgcodec(data)
    if image is None:
        return "quarantined" if pixels is None else "disputed"
    shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    sound = pixels is not None and pixels.dtype == np.uint8 and np.array_equal(shown, pixels)
    deep = image.mode == "CMYK" or (image.format == "PNG" and data[24] > 8)
    fits = image.format in {"jpg": ("JPEG", "MPO"), "png": ("PNG",)}.get(extension, ())
    return "written" if sound and fits and not deep else "repaired"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("torture")
    return folder, torture(folder)


def test_both_decoders_confirm_every_expectation(made):
    folder, expected = made
    wrong = {}
    for name, expectation in expected.items():
        extension = name.rpartition(".")[2].lower().replace("jpeg", "jpg")
        found = verdict((folder / name).read_bytes(), extension)
        if found != expectation:
            wrong[name] = f"expected {expectation}, found {found}"
    assert not wrong


def test_files_are_many_and_of_many_kinds_and_all_differ(made):
    folder, expected = made
    contents = {(folder / name).read_bytes() for name in expected}
    assert len(contents) == len(expected) >= 400
    assert sum(map(len, contents)) < 30_000_000
    kinds = Counter((Path(name).name.rpartition("-")[0], what) for name, what in expected.items())
    assert len(kinds) >= 40
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == set(expected)
    assert {path.name for path in folder.iterdir()} == {f"odd_{n:02d}" for n in range(10)}


def test_the_same_seed_repeats_and_another_changes_the_files(made, tmp_path: Path):
    folder, expected = made
    assert torture(tmp_path / "again") == expected
    assert torture(tmp_path / "other", seed=1) == expected
    same = 0
    for name in expected:
        data = (folder / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == data, name
        same += (tmp_path / "other" / name).read_bytes() == data
    assert same < 10  # the empty file and its like


@pytest.mark.parametrize("kind", UNNOTICED)
def test_unnoticed_damage_is_noticed_by_one_decoder_of_two(kind: str):
    for number in range(3):
        data = UNNOTICED[kind](DamageDraw(kind, number, 0))
        assert (by_pillow(data) is None) != (by_nvimgcodec(data) is None)


def test_good_files_keep_their_bytes(tmp_path: Path):
    good(tmp_path, 40, classes=4)
    files = sorted(tmp_path.rglob("*.*"))
    assert len(files) == len({file.read_bytes() for file in files}) == 40
    assert {file.parent.name for file in files} == {f"good_{n:02d}" for n in range(4)}
    assert {verdict(file.read_bytes(), file.suffix[1:]) for file in files} == {"written"}
