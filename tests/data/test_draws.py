"""Random draws from keys."""

import numpy as np

from llip.data import draws


def test_draws_are_uniform_and_hang_on_every_key() -> None:
    numbers = draws.uniform(0, draws.CROP, 3, np.arange(2000)[:, None], np.arange(10))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 / np.sqrt(12 * numbers.size)
    assert abs(np.corrcoef(numbers.T) - np.eye(10)).max() < 0.12  # five standard deviations
    for other in (
        draws.uniform(1, draws.CROP, 3, np.arange(2000)[:, None], np.arange(10)),
        draws.uniform(0, draws.ROWS, 3, np.arange(2000)[:, None], np.arange(10)),
        draws.uniform(0, draws.CROP, 4, np.arange(2000)[:, None], np.arange(10)),
    ):
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(numbers.size)


def test_a_draw_of_many_is_the_draw_of_each() -> None:
    many = draws.bits(7, 1, np.arange(5)[:, None], np.arange(3))
    for i in range(5):
        for j in range(3):
            assert draws.bits(7, 1, i, j)[0] == many[i, j]


def test_choices_repeat_only_where_they_have_to() -> None:
    sizes = np.array([1, 2, 4, 5, 12])
    for key in range(50):
        drawn = draws.choices(sizes, 4, 0, draws.CAPTIONS, np.arange(5) + 10 * key)
        for size, row in zip(sizes.tolist(), drawn.tolist(), strict=True):
            counts = np.bincount(row, minlength=size)
            assert len(counts) == size
            assert counts.max() - counts.min() <= 1


def test_choices_do_not_hang_on_their_neighbours() -> None:
    sizes, keys = np.array([3, 12, 7]), np.array([5, 6, 7])
    together = draws.choices(sizes, 2, 0, keys)
    for i in range(3):
        np.testing.assert_array_equal(draws.choices(sizes[i : i + 1], 2, 0, keys[i : i + 1]), together[i : i + 1])


def test_choices_are_even() -> None:
    drawn = draws.choices(np.full(6000, 6), 2, 0, np.arange(6000))
    assert abs(np.bincount(drawn.ravel()) - 2000).max() < 200
