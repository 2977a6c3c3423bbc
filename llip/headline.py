"""The few metrics that stand for an evaluation, wherever there is room for few."""

from collections.abc import Iterable

HEADLINES = ("top1", "text_to_image_map", "text_to_image_r1", "context_accuracy", "group_score", "choice_accuracy")
"""The metric that stands for an evaluation set: the first of these that it has."""


def headline(metrics: Iterable[str]) -> list[str]:
    """Of metrics `<set>/<metric>`, the one that stands for each set, in their order."""
    names = list(metrics)
    sets = dict.fromkeys(name.split("/")[0] for name in names)
    firsts = (next((f"{data}/{m}" for m in HEADLINES if f"{data}/{m}" in names), None) for data in sets)
    return [name for name in firsts if name]
