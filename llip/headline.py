"""The few metrics that stand for an evaluation, wherever there is room for few."""

from collections.abc import Iterable

HEADLINES = (
    *("text_to_image_map_over_types", "text_to_image_map", "text_to_image_r1", "top1"),
    *("context_accuracy", "group_score", "choice_accuracy", "jaccard"),
)
"""The metric that stands for an evaluation set: the first of these that it has. Sets are listed in this order too."""
FIRST = "scenes_in_style"
"""The set of the built-in corpus that stands before all others: new scenes in the styles of training."""


def headline(metrics: Iterable[str]) -> list[str]:
    """The metric `<set>/<metric>` that stands for each set, the most telling first."""
    rank = {name: place for place, name in enumerate(HEADLINES)}
    best: dict[str, str] = {}
    for metric in metrics:
        data, _, name = metric.partition("/")
        if name in rank and rank[name] < rank.get(best.get(data, ""), len(rank)):
            best[data] = name
    ordered = sorted(best, key=lambda data: (data != FIRST, rank[best[data]]))
    return [f"{data}/{best[data]}" for data in ordered]
