"""Metrics of trials, with intervals over their seeds and over the items that they were evaluated on."""

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING

from llip import storage
from llip.headline import headline

if TYPE_CHECKING:
    from llip.evaluation.item_scores import ItemScores
    from llip.evaluation.paired import Difference, Estimate, Replicates
    from tune.results import TrialResult


def columns(metric: str, results: "Sequence[TrialResult]") -> list[str]:
    """The metrics of a table: the compared one, then those of its set by caption type and over all, then one for each
    other set that all trials have."""
    data, names = metric.split("/")[0], set.intersection(*(set(r.metrics) for r in results))
    by_kind = sorted(n for n in names if n.startswith(f"{data}/text_to_image_map/"))
    whole = [n for n in (f"{data}/text_to_image_map", f"{data}/image_to_text_r1") if n in names]
    others = [n for n in headline(sorted(names)) if not n.startswith(f"{data}/")]
    return list(dict.fromkeys([metric, *by_kind, *whole, *others]))


class Judged:
    """Finished trials of one table. Metrics are resampled once for all of them, when they are first asked for."""

    def __init__(self, results: "Sequence[TrialResult]", folders: Mapping[str, str]) -> None:
        """`folders`: the run folder of every trial, by its name."""
        self._trials = list(dict.fromkeys(r.name for r in results))
        self._folders = folders
        self._replicates: dict[str, Replicates] = {}

    def level(self, metric: str, group: "Sequence[TrialResult]") -> "Estimate":
        """The mean of a metric over trials of one model."""
        return self._of(metric).level(self._places(group))

    def difference(self, metric: str, first: "Sequence[TrialResult]", second: "Sequence[TrialResult]") -> "Difference":
        """The mean of the second model less that of the first one."""
        return self._of(metric).difference(self._places(first), self._places(second))

    def cell(self, metric: str, group: "Sequence[TrialResult]") -> str:
        """For a table: `0.848 (0.836–0.861)`."""
        found = self.level(metric, group)
        return f"{found.value:.3f} ({found.low:.3f}–{found.high:.3f})"

    def over(self, metric: str) -> str:
        """The units that were resampled beside seeds: `600 images × 24 captions`."""
        return self._of(metric).over

    def _places(self, group: "Sequence[TrialResult]") -> list[int]:
        return [self._trials.index(result.name) for result in group]

    def _of(self, metric: str) -> "Replicates":
        from llip.evaluation.paired import Replicates

        if metric not in self._replicates:
            data, _, name = metric.partition("/")
            self._replicates[metric] = Replicates([item[data][name] for item in self._items])
        return self._replicates[metric]

    @cached_property
    def _items(self) -> list[dict[str, dict[str, "ItemScores"]]]:
        return [read_items(self._folders[name]) for name in self._trials]


@cache
def read_items(folder: str) -> "dict[str, dict[str, ItemScores]]":
    """Scores of single items of a finished trial's last evaluation, by set and metric."""
    from pipelines.evaluation_cache import SCORES, scores_of

    return scores_of(storage.read_bytes(storage.join(folder, SCORES)))
