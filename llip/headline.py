"""The few metrics that stand for an evaluation, wherever there is room for few."""

from collections.abc import Iterable

HEADLINES = (
    *("text_to_image_map_over_kinds", "text_to_image_map", "text_to_image_r1", "top1"),
    *("context_accuracy", "group_score", "choice_accuracy"),
)
"""The metric that stands for an evaluation set: the first of these that it has. Sets are listed in this order too."""
FIRST = "scenes_in_style"
"""The set of the built-in corpus that stands before all others: new scenes in the styles of training."""


def headline(metrics: Iterable[str]) -> list[str]:
    """The metric `<set>/<metric>` that stands for each set, the most telling first."""
    names = set(metrics := list(metrics))
    sets = dict.fromkeys(name.split("/")[0] for name in metrics)
    ranked = [(data != FIRST, rank, f"{data}/{m}") for data in sets for rank, m in enumerate(HEADLINES)]
    of_set: dict[str, tuple[bool, int, str]] = {}
    for found in ranked:
        if found[2] in names:
            of_set.setdefault(found[2].split("/")[0], found)
    return [name for _, _, name in sorted(of_set.values(), key=lambda found: found[:2])]
