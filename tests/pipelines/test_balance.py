"""Balancing against exact arithmetic, and the hash that draws against its definition."""

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from helpers.plain_reference import MASK, plain_hash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.stages.balance import draws, keep_probability, log_misses, tail_share, threshold
from pipelines.stages.hashing import finish_lists, hash64, states, uniform


def exact(matches: list[list[int]], counts: list[int], t: int) -> list[float]:
    out = []
    for entries in matches:
        drop = Fraction(1)
        for e in entries:
            drop *= 1 - Fraction(t, max(counts[e], t))
        out.append(float(1 - drop))
    return out


@settings(max_examples=200)
@given(st.data())
def test_keep_probability_is_exact(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 10**12), min_size=1, max_size=8))
    t = data.draw(st.integers(1, 10**9))
    matches = data.draw(st.lists(st.lists(st.integers(0, len(counts) - 1), unique=True, max_size=8), max_size=8))
    got = keep_probability(pa.array(matches, pa.list_(pa.int32())), np.array(counts), t)
    np.testing.assert_allclose(got, exact(matches, counts, t), rtol=1e-12, atol=1e-15)


def test_keep_probability_by_hand() -> None:
    matches = pa.array([[], [0], [1], [0, 1], None, [2]], pa.list_(pa.int32()))
    got = keep_probability(matches, np.array([40, 80, 5]), 20)
    np.testing.assert_allclose(got, [0, 0.5, 0.25, 1 - 0.5 * 0.75, 0, 1])


def test_keep_probability_of_a_slice() -> None:
    matches = pa.array([[0], [1], [0, 1]], pa.list_(pa.int32()))[1:]
    np.testing.assert_allclose(keep_probability(matches, np.array([40, 80]), 20), [0.25, 0.625])


def test_t_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        log_misses(np.array([1]), 0)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=10), st.integers(0, MASK), st.integers(0, 2**40))
@settings(max_examples=100)
def test_hash_equals_its_definition(texts: list[str], seed: int, index: int) -> None:
    got = hash64(pa.array(texts), seed, index)
    assert [int(h) for h in got] == [plain_hash(seed, text, index) for text in texts]


@given(st.lists(st.tuples(st.text(max_size=20), st.integers(0, 4)), min_size=2, max_size=10), st.integers(0, MASK))
@settings(max_examples=100)
def test_hashes_of_lists_count_each_lists_elements(lists: list[tuple[str, int]], seed: int) -> None:
    texts, lengths = zip(*lists, strict=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    of_texts = states(pa.array(texts), seed)
    expected = [plain_hash(seed, text, i) for text, n in lists for i in range(n)]
    assert finish_lists(of_texts, offsets).tolist() == expected
    assert finish_lists(of_texts[1:], offsets[1:]).tolist() == expected[lengths[0] :]


def test_draws_are_uniform_and_do_not_depend_on_their_neighbours() -> None:
    ids = pa.array([f"image-{i}" for i in range(20_000)])
    offsets = np.arange(0, 60_001, 3, dtype=np.int32)
    numbers = draws(states(ids, 5), offsets)
    assert numbers.min() >= 0 and numbers.max() < 1
    histogram = np.histogram(numbers, 20, (0, 1))[0]
    assert ((histogram - 3000) ** 2 / 3000).sum() < 50  # chi-squared with 19 degrees: 50 is beyond 0.9999
    assert abs(np.corrcoef(numbers[::3], numbers[1::3])[0, 1]) < 0.03
    alone = draws(states(ids[7000:7001], 5), np.array([0, 3], np.int32))
    np.testing.assert_array_equal(alone, numbers[21000:21003])
    assert (draws(states(ids, 6), offsets) != numbers).all()


def test_uniform_never_reaches_one() -> None:
    assert uniform(np.array([MASK, 0], np.uint64)).tolist() == [1 - 2.0**-53, 0.0]


def test_threshold_is_the_largest_t_within_the_share() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 1000, 400)
    for share in (0.0, 0.06, 0.5):
        t = threshold(counts, share)
        assert tail_share(counts, t) <= share < tail_share(counts, t + 1)


def test_threshold_needs_a_match() -> None:
    with pytest.raises(ValueError, match="matches any metadata entry"):
        threshold(np.zeros(3, np.int64), 0.06)
