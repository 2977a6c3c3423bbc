"""Online balancing: captions are thinned out anew at every place of every epoch, by the probabilities that curation
stored (Xu et al., arXiv 2309.16671, section 3.3), where curation itself would have drawn them once and for all.

Each place is filled by rejection sampling in its row group. The place's own row is proposed first, then rows of the
group at random. A row is taken, with the captions that are kept, once any of its captions is. So a row comes as often
as its probability says, beside the others of its row group, and batches stay as large. Proposals are not made one by
one: after a first rejection the row is drawn by the probabilities of the rows, and its captions are independent draws
of which one succeeded.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class KeepProbabilities:
    """Probabilities that captions of a row group are kept: list<double>, one list a row, each number in (0, 1]."""

    def __init__(self, lists: pa.ListArray) -> None:
        with np.errstate(divide="ignore"):
            self._miss = np.log1p(-lists.values.to_numpy())
        self._bounds = lists.offsets.to_numpy()
        self.of_row: NDArray[np.float64] = -np.expm1(np.add.reduceat(self._miss, self._bounds[:-1]))
        """Probability that any caption of a row is kept."""
        self._cumulative = np.cumsum(self.of_row)

    def row(self, proposed: int, first: float, second: float) -> int:
        """The row taken at the place of `proposed`; first, second: uniform in [0, 1)."""
        if first < self.of_row[proposed]:
            return proposed
        return int(np.searchsorted(self._cumulative, second * self._cumulative[-1], side="right"))

    def captions(self, row: int, numbers: NDArray[np.float64]) -> list[int]:
        """The captions that are kept of a row that is taken; numbers: uniform in [0, 1), one for each caption."""
        miss = self._miss[self._bounds[row] : self._bounds[row + 1]]
        keep = -np.expm1(miss)
        still = -np.expm1(np.cumsum(miss[::-1])[::-1])  # that it or a later one is kept
        kept: list[int] = []
        for i in range(len(keep)):
            if numbers[i] < (keep[i] if kept else keep[i] / still[i]):
                kept.append(i)
        return kept or [len(keep) - 1]  # rounding
