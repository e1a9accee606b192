"""The challenge's files: read and written as its own code does, and refused where that would.

Where the authors' package can be imported (`git clone` of facebookresearch/isc2021 on PYTHONPATH)
it reads and scores what is written here.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from evaluation.best_pairs import best_pairs
from evaluation.challenge_files import (
    check_descriptors,
    check_predictions,
    read_ground_truth,
    write_descriptors,
    write_predictions,
)
from evaluation.copy_detection import judge

QUERIES = [f"Q{n:05d}" for n in range(12)]
REFERENCES = [f"R{n:06d}" for n in range(9)]
NAMES = (QUERIES, REFERENCES)


def descriptors(D: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference_GD = F.normalize(torch.randn(9, D, generator=generator), dim=1)
    query_QD = torch.randn(12, D, generator=generator)
    query_QD[:9:2] += 2 * reference_GD[::2]
    return F.normalize(query_QD, dim=1), reference_GD


def truth() -> dict[str, str]:
    return {QUERIES[n]: REFERENCES[n] if n < 9 and n % 2 == 0 else "" for n in range(12)}


def write_truth(path: Path) -> Path:
    lines = [f"{query},{reference}" for query, reference in truth().items()]
    path.write_text("\n".join(["query_id,reference_id", *lines, ""]))
    return path


@pytest.mark.parametrize("text", ["Q1,R1\nQ2,\n", "query_id,reference_id\r\nQ1,R1\r\nQ2,\r\n"])
def test_a_ground_truth_may_have_a_header(text: str, tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_bytes(b"\xef\xbb\xbf" * ("\r" in text) + text.encode())
    assert read_ground_truth(path) == {"Q1": "R1", "Q2": ""}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Q1,R1,0.5\n", r"line 1: found 'Q1,R1,0.5', expected query_id,reference_id"),
        ("Q1,R1\nQ1,R2\n", r"line 2: Q1 stands there twice"),
        ("query_id,reference_id\nQ1,\n", r"names no query that is a copy"),
        ("", r"names no query that is a copy"),
    ],
)
def test_a_wrong_ground_truth_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_ground_truth(path)


def test_scores_are_read_back_to_the_last_bit(tmp_path: Path) -> None:
    path, (query_QD, reference_GD) = tmp_path / "predictions.csv", descriptors()
    pairs = best_pairs(query_QD, reference_GD, limit=50)
    write_predictions(path, pairs, *NAMES)
    check_predictions(path, *NAMES, limit=50)
    header, *lines = path.read_text().splitlines()
    assert header == "query_id,reference_id,score" and len(lines) == 50
    scores = torch.tensor([float(line.split(",")[2]) for line in lines])
    assert torch.equal(scores, pairs.score_P)
    assert lines[0].startswith(f"{QUERIES[pairs.query_P[0]]},{REFERENCES[pairs.reference_P[0]]},")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["Q00000,R000000,0.5"] * 2, "line 2: Q00000,R000000 stands there twice"),
        (["Q00000,R000000,nan"], "line 1: a name of no image, or no score"),
        (["Q00000,R99,0.5"], "line 1: a name of no image"),
        (["Q00000,R000000"], "line 1: expected query_id,reference_id,score"),
        (["Q00000,R000000,1", "Q00000,R000001,1"], "has 2 predictions, expected 1 at most"),
    ],
)
def test_predictions_against_the_rules_are_refused(
    lines: list[str], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=words):
        check_predictions(path, *NAMES, limit=1)


def test_descriptors_are_the_challenge_s_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path, (query_QD, reference_GD) = tmp_path / "descriptors.hdf5", descriptors()
    write_descriptors(path, query_QD, reference_GD, *NAMES)
    check_descriptors(path, *NAMES)
    with h5py.File(path, "r") as file:
        assert {*file} == {"query", "reference", "query_ids", "reference_ids"}
        assert file["query"].dtype == file["reference"].dtype == "float32"
        assert torch.equal(torch.from_numpy(file["query"][:]), query_QD)
        assert file["query_ids"][:].astype(str).tolist() == QUERIES
        assert file["reference_ids"][:].astype(str).tolist() == REFERENCES


def test_descriptors_against_the_rules_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path, (query_QD, reference_GD) = tmp_path / "descriptors.hdf5", descriptors()

    def refused(words: str, **changed: object) -> None:
        write_descriptors(path, query_QD, reference_GD, *NAMES)
        with h5py.File(path, "a") as file:
            for name, value in changed.items():
                del file[name]
                if value is not None:
                    file[name] = value
        with pytest.raises(ValueError, match=words):
            check_descriptors(path, *NAMES)

    refused("has no query_ids", query_ids=None)
    refused("query is float64 with 2 axes", query=query_QD.double().numpy())
    refused("descriptors of 257 numbers, expected 256", query=torch.zeros(12, 257).numpy())
    refused("11 descriptors query have 12 ids", query=query_QD[1:].numpy())
    swapped = [name.encode() for name in [QUERIES[1], QUERIES[0], *QUERIES[2:]]]
    refused("query_ids are not the 12 names of the query set, sorted", query_ids=swapped)
    refused(r"descriptors of sizes \[3, 4\]", query=query_QD[:, :3].numpy())


def test_the_authors_code_gives_the_same_figures(tmp_path: Path) -> None:
    metrics = pytest.importorskip("isc.metrics", reason="the authors' code is not on the path")
    io = pytest.importorskip("isc.io")
    path, (query_QD, reference_GD) = tmp_path / "predictions.csv", descriptors()
    write_predictions(path, best_pairs(query_QD, reference_GD, limit=70), *NAMES)
    matches = io.read_ground_truth(str(write_truth(tmp_path / "truth.csv")))
    theirs = metrics.evaluate(matches, io.read_predictions(str(path)))
    read = read_ground_truth(tmp_path / "truth.csv")
    assert {match.query: match.db for match in matches} == {q: r for q, r in read.items() if r}
    original_Q = torch.tensor(
        [REFERENCES.index(read[query]) if read[query] else -1 for query in QUERIES]
    )
    ours = judge(query_QD, reference_GD, original_Q, limit=70)
    assert ours["copy_map"] == pytest.approx(theirs.average_precision, abs=1e-12)
    assert ours["copy_recall_at_p90"] == pytest.approx(theirs.recall_at_p90 or 0, abs=1e-12)
    assert ours["copy_r1"] == pytest.approx(theirs.recall_at_rank1, abs=1e-12)
    assert ours["copy_r10"] == pytest.approx(theirs.recall_at_rank10, abs=1e-12)
