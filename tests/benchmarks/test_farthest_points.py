from pathlib import Path

import numpy as np
import pytest

from benchmarks.farthest_points import farthest_points, main


def test_each_is_the_one_whose_nearest_chosen_image_is_farthest() -> None:
    h_NF = np.random.default_rng(0).normal(size=(60, 5))
    chosen, cosine = farthest_points(h_NF, 12)
    unit_NF = h_NF / np.linalg.norm(h_NF, axis=1, keepdims=True)
    nearest: dict[int, float] = {}
    for n in range(1, 12):
        nearest = {
            other: max(float(unit_NF[other] @ unit_NF[each]) for each in chosen[:n])
            for other in range(60)
            if other not in chosen[:n]
        }
        assert chosen[n] == min(nearest, key=lambda other: nearest[other])
    assert cosine == pytest.approx(nearest[chosen[11]])
    assert len(set(farthest_points(h_NF, 60)[0])) == 60


def test_the_list_names_ids_and_a_count_that_cannot_be_is_refused(tmp_path: Path) -> None:
    file, out = tmp_path / "features.npz", tmp_path / "ids.txt"
    np.savez(file, id=np.array([70, 30, 50]), feature=np.eye(3))
    main(file, count=3, out=out)
    assert out.read_text() == "id=30\nid=50\nid=70\n"
    with pytest.raises(ValueError, match=r"count=4; expected 1 to 3"):
        main(file, count=4, out=out)
