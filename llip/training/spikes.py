"""Loss spikes: steps whose loss lies far above those before it."""

import statistics
from collections import deque

WINDOW, FEWEST, DEVIATIONS, SHARE = 100, 20, 6.0, 0.01
"""Losses looked back at, how many there have to be, and how far above them a spike lies: so many robust standard
deviations and this share of their median, which on a plateau is the more."""

_OF_NORMAL = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


class SpikeDetector:
    """Compares each loss with the median of the window before it, in units of its median absolute deviation.

    Both withstand the spikes in the window, so a second one is found as the first was. Whatever level the loss stays
    at is normal once it fills half of the window.
    """

    def __init__(self) -> None:
        self.count = 0
        """Spikes so far; the steps of one that lasts count as one."""
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._inside = False

    def observe(self, loss: float) -> str | None:
        """Take the loss of one more step. Returns what is to be said where a spike begins."""
        before, self._inside = self._inside, False
        message = None
        if len(self._losses) >= FEWEST:
            median = statistics.median(self._losses)
            deviation = _OF_NORMAL * statistics.median(abs(value - median) for value in self._losses)
            self._inside = loss > median + max(DEVIATIONS * deviation, SHARE * abs(median))
            if self._inside and not before:
                self.count += 1
                message = (
                    f"loss spike: {loss:.4g}, where the last {len(self._losses)} steps have a median of {median:.4g} "
                    f"and a deviation of {deviation:.2g}"
                )
        self._losses.append(loss)
        return message
