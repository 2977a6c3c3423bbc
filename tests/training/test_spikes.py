"""Loss spikes: found where they are, and nowhere else."""

import numpy as np
import pytest

from llip.training.metrics import FEWEST, SpikeDetector


def _found(losses: np.ndarray) -> list[int]:
    detector = SpikeDetector()
    found = [step for step, loss in enumerate(losses.tolist()) if detector.observe(loss)]
    assert detector.count == len(found)
    return found


def _curve(seed: int, steps: int = 1000) -> np.ndarray:
    """A loss that falls, with noise."""
    falling = 3 + 3 * np.exp(-np.arange(steps) / 100)
    return falling + 0.1 * np.random.default_rng(seed).standard_normal(steps)


@pytest.mark.parametrize("seed", range(20))
def test_a_falling_and_noisy_loss_has_no_spike(seed: int) -> None:
    assert _found(_curve(seed)) == []


def test_spikes_are_found_where_they_begin_though_others_are_in_the_window() -> None:
    losses = _curve(0)
    losses[[300, 340, 341, 342, 380]] += 2
    losses[700:760] += np.linspace(3, 0, 60)  # one that takes its time to go
    assert _found(losses) == [300, 340, 380, 700]


def test_a_level_that_stays_becomes_normal() -> None:
    losses = _curve(1, 600)
    losses[300:] += 3
    assert _found(losses) == [300]
    losses[500] += 3
    assert _found(losses) == [300, 500]


def test_a_fall_is_no_spike_and_a_constant_loss_has_none_but_where_it_rises() -> None:
    losses = np.full(200, 2.0)
    losses[100] = 0.1
    losses[150] = 2.1
    assert _found(losses) == [150]


def test_on_a_plateau_a_ripple_is_no_spike() -> None:
    losses = 5 + 0.002 * np.random.default_rng(2).standard_normal(300)
    losses[150] += 0.04
    losses[200] += 0.2
    assert _found(losses) == [200]


def test_nothing_is_said_before_there_is_something_to_compare_with() -> None:
    losses = np.full(FEWEST + 1, 2.0)
    losses[FEWEST - 1] = 50
    assert _found(losses) == []
    losses[FEWEST] = 50
    assert _found(losses) == [FEWEST]


def test_the_message_has_the_numbers() -> None:
    detector = SpikeDetector()
    for value in [1.0, 1.1, 0.9] * 10:
        assert detector.observe(value) is None
    message = "loss spike: 7, where the last 30 steps have a median of 1 and a deviation of 0.15"
    assert detector.observe(7.0) == message
