"""The order of samples: pure, resumable anywhere, the same for every number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llip.data.order import SampleOrder


def _places(order: SampleOrder, step: int, lanes: int, rank: int = 0, world_size: int = 1) -> list[tuple[int, int]]:
    samples = order.samples(step, np.arange(rank, lanes, world_size))
    return list(zip(samples.group.tolist(), samples.row.tolist(), strict=True))


@settings(max_examples=60)
@given(
    group_rows=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    log_lanes=st.integers(0, 6),
    per_lane=st.integers(1, 5),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 3),
)
def test_an_epoch_holds_every_sample_at_most_once_and_misses_less_than_a_batch(
    group_rows: list[int], log_lanes: int, per_lane: int, seed: int, epoch: int
) -> None:
    lanes, rows = 2**log_lanes, np.array(group_rows)
    batch_size = lanes * per_lane
    if rows.sum() < batch_size:
        with pytest.raises(ValueError, match="batch_size"):
            SampleOrder(rows, batch_size=batch_size, lanes=lanes, seed=seed)
        return
    order = SampleOrder(rows, batch_size=batch_size, lanes=lanes, seed=seed)
    first = epoch * order.steps_per_epoch
    seen = [p for step in range(first, first + order.steps_per_epoch) for p in _places(order, step, lanes)]
    assert len(set(seen)) == len(seen)
    assert rows.sum() - batch_size < len(seen) <= rows.sum()
    assert all(0 <= row < rows[group] for group, row in seen)


def test_any_step_is_reached_without_those_before() -> None:
    rows = np.array([100] * 20 + [37])
    walked = SampleOrder(rows, batch_size=64, lanes=8, seed=3)
    steps = [_places(walked, step, 8) for step in range(100)]
    for step in (0, 1, 30, 31, 32, 99):
        assert _places(SampleOrder(rows, batch_size=64, lanes=8, seed=3), step, 8) == steps[step]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7, 8])
def test_ranks_share_the_lanes_of_a_batch(world_size: int) -> None:
    rows = np.array([50] * 12)
    order = SampleOrder(rows, batch_size=64, lanes=8, seed=0)
    lane_batches = np.array(_places(order, 7, 8)).reshape(8, 8, 2)
    for rank in range(world_size):
        local = np.array(_places(order, 7, 8, rank, world_size)).reshape(-1, 8, 2)
        np.testing.assert_array_equal(local, lane_batches[rank::world_size])


def test_epochs_and_seeds_give_other_orders() -> None:
    rows = np.array([100] * 10)
    order = SampleOrder(rows, batch_size=100, lanes=4, seed=0)
    other = SampleOrder(rows, batch_size=100, lanes=4, seed=1)
    first = _places(order, 0, 4)
    assert first != _places(order, order.steps_per_epoch, 4)
    assert first != _places(other, 0, 4)


def test_which_samples_an_epoch_leaves_out_changes() -> None:
    rows = np.array([10] * 11)
    order = SampleOrder(rows, batch_size=100, lanes=4, seed=0)
    epochs = [set(_places(order, epoch, 4)) for epoch in range(40)]
    assert len(set().union(*epochs)) == 110


def test_an_order_does_not_change_between_versions() -> None:
    """Runs are resumed by later versions of this program and of numpy: these numbers stay."""
    order = SampleOrder(np.array([5, 5, 5, 3]), batch_size=4, lanes=2, seed=11)
    assert _places(order, 0, 2) + _places(order, 5, 2) == [
        (0, 1),
        (0, 2),
        (2, 4),
        (2, 0),
        (2, 3),
        (2, 4),
        (3, 0),
        (3, 1),
    ]


def test_positions_are_shuffled_evenly() -> None:
    """Over many epochs every sample comes first in its lane about equally often."""
    rows = np.array([10] * 4)
    order = SampleOrder(rows, batch_size=4, lanes=4, seed=5)
    first = [p for epoch in range(500) for p in _places(order, epoch * order.steps_per_epoch, 4)]
    counts = np.unique([10 * group + row for group, row in first], return_counts=True)[1]
    assert len(counts) == 40
    assert abs(counts - 50).max() < 35  # five standard deviations
