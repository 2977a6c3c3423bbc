"""When a measured ratio misses its bar, on machines whose speed wanders by a tenth within a minute.

A bar close to the ratio's own value cannot be asserted of a median of a few rounds: it would fail by chance. It is
missed where the rounds say so: more of them on the wrong side than a fair coin would give in one of a hundred tries.
What a table claims is the median and the spread beside it.
"""

from collections.abc import Iterable
from math import comb

CHANCE = 0.01
"""Of a ratio exactly at its bar being called a miss."""


def refuted(wrong: int, rounds: int) -> bool:
    """Whether so many rounds on the wrong side are too many for a ratio whose median is at the bar (sign test)."""
    return sum(comb(rounds, count) for count in range(wrong, rounds + 1)) <= CHANCE * 2**rounds


def holds(ratios: Iterable[float], *, at_most: float) -> bool:
    """Whether the ratios of seven rounds or more leave it possible that their median is at most the bar.

    Raises ValueError for fewer rounds, which could refute nothing.
    """
    values = list(ratios)
    if not refuted(len(values), len(values)):
        raise ValueError(f"{len(values)} rounds cannot miss a bar even if all of them do: 7 or more can")
    return not refuted(sum(value > at_most for value in values), len(values))
