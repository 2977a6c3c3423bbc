"""What stands at a place under online balancing, against proposals that are made one by one."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from llip.data.shards import KeepProbabilities

ROWS = [[1.0], [0.1, 0.4], [0.02], [0.5, 1e-12, 0.3]]


def literal(rng: np.random.Generator, proposed: int) -> tuple[int, tuple[int, ...]]:
    """Propose rows until one keeps a caption."""
    while True:
        kept = tuple(i for i, p in enumerate(ROWS[proposed]) if rng.random() < p)
        if kept:
            return proposed, kept
        proposed = int(rng.integers(len(ROWS)))


def test_rows_and_captions_come_as_from_rejection_sampling() -> None:
    keep, rng, trials = KeepProbabilities(pa.array(ROWS)), np.random.default_rng(0), 40_000
    ours, theirs = Counter[tuple[int, tuple[int, ...]]](), Counter[tuple[int, tuple[int, ...]]]()
    for trial in range(trials):
        row = keep.row(trial % len(ROWS), *rng.random(2))
        ours[row, tuple(keep.captions(row, rng.random(len(ROWS[row]))))] += 1
        theirs[literal(rng, trial % len(ROWS))] += 1
    for outcome in ours.keys() | theirs.keys():
        spread = 4 * np.sqrt(max(ours[outcome], theirs[outcome])) * np.sqrt(2) + 4
        assert abs(ours[outcome] - theirs[outcome]) < spread, outcome


def test_a_row_comes_as_often_as_its_probability_says() -> None:
    keep = KeepProbabilities(pa.array(ROWS))
    np.testing.assert_allclose(keep.of_row, [1 - np.prod([1 - p for p in row]) for row in ROWS], rtol=1e-9)
    rng = np.random.default_rng(1)
    taken = Counter(keep.row(trial % len(ROWS), *rng.random(2)) for trial in range(100_000))
    shares = keep.of_row / keep.of_row.sum()
    assert [taken[i] / 100_000 for i in range(len(ROWS))] == pytest.approx(shares.tolist(), abs=0.006)


def test_a_row_that_is_taken_keeps_a_caption_however_unlikely() -> None:
    keep = KeepProbabilities(pa.array([[1e-300, 1e-17]]))
    assert keep.captions(0, np.array([0.999999999, 0.999999999999])) == [1]
    assert keep.row(0, 0.5, 0.999999999) == 0
