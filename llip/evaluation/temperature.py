"""Metrics of a trained model under other temperatures of its mixing weights: is the trained one the best?

Dividing the logits by another temperature is multiplying the queries by the ratio of the two. So images are encoded
once, and the texts of a set are scored as texts of their own at each temperature.

Axes: B images of a batch · N images · C classes · U temperatures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import Arrays, ImageTask, Runner, from_arrays, scores
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.retrieval import RetrievalTask, rank
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.evaluation.zero_shot import accuracies, ranks, zero_shot_classifier
from llip.model.features import Query, TextFeatures, concatenate

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1 / 2**0.5, 1.0, 2**0.5, 2.0, 4.0, 8.0)
"""Temperatures that are tried, as multiples of the trained one."""
TASKS = ("classification", "retrieval")
"""Tasks whose sets have a value at every temperature."""
SHOWN = ("top1", "text_to_image_r1", "image_to_text_r1", "text_to_image_map")


@dataclass(frozen=True)
class TemperatureCurve:
    """Values of metrics, named `<set>/<metric>`, at each temperature."""

    trained: float
    temperatures: tuple[float, ...]
    values: dict[str, list[float]]

    def best(self, metric: str) -> float:
        """The temperature with the highest value; of several, that nearest to the trained one."""
        pairs = zip(self.values[metric], self.temperatures, strict=True)
        return max(pairs, key=lambda pair: (pair[0], -abs(np.log(pair[1] / self.trained))))[1]

    def table(self) -> str:
        """Markdown: a row a temperature, the best of each metric in bold."""
        lines = [f"| τ | {' | '.join(self.values)} |", "| ---: " * (1 + len(self.values)) + "|"]
        for place, temperature in enumerate(self.temperatures):
            cells = [
                f"**{of[place]:.3f}**" if temperature == self.best(metric) else f"{of[place]:.3f}"
                for metric, of in self.values.items()
            ]
            mark = " (trained)" if temperature == self.trained else ""
            lines.append(f"| {temperature:.3g}{mark} | {' | '.join(cells)} |")
        return "\n".join(lines)


def sweep(
    model: ContrastiveModel, sets: Sequence[EvaluationSet], temperatures: Sequence[float], run: Runner
) -> TemperatureCurve:
    """Classification and retrieval sets at the given temperatures and at the trained one.

    Raises ValueError, before any work, where no set is one of these, for a model whose queries are not the captions',
    and for a temperature that is not positive.
    """
    if model.config.head.kind != "text_query":
        raise ValueError(f"a {model.config.head.kind} head has no temperature of captions; only text_query has")
    if bad := [t for t in temperatures if not t > 0]:
        raise ValueError(f"temperature {bad[0]} has to be positive")
    if not any(data.task in TASKS for data in sets):
        told = ", ".join(f"{data.name} ({data.task})" for data in sets)
        raise ValueError(f"only {' and '.join(TASKS)} sets have a value at every temperature; these are {told}")
    trained = model.config.mixing_temperature
    temperatures = tuple(sorted({*temperatures, trained}))
    ratios = [trained / temperature for temperature in temperatures]
    kinds: dict[str, type[_Classification] | type[_Retrieval]] = {
        "classification": _Classification,
        "retrieval": _Retrieval,
    }
    sweeps = [kinds[data.task](model, data, ratios) for data in sets if data.task in kinds]
    values = {}
    for of_set, arrays in zip(sweeps, run([of_set.task for of_set in sweeps]), strict=True):
        at_each = of_set.finish(arrays)
        for metric in filter(at_each[0].__contains__, SHOWN):
            values[f"{of_set.task.name}/{metric}"] = [metrics[metric].value for metrics in at_each]
    return TemperatureCurve(trained, temperatures, values)


def _scaled(texts: TextFeatures, ratio: float) -> Query:
    assert isinstance(texts, Query), "captions of a text_query head are queries"
    return Query(texts.query_BME * ratio, texts.target_BD)


@dataclass(frozen=True)
class RankAtEach:
    """The job of a classification set: `above` and `tied` [B, U] of `zero_shot.ranks`."""

    classes: Query
    """Class features at the first temperature, then at the second, and so on."""
    temperatures: int

    def __call__(self, model: ContrastiveModel, pixels_BCHW: Tensor, rows: pa.Table) -> Arrays:
        classes = Query(*(tensor.to(pixels_BCHW.device) for tensor in self.classes))
        score_BUC = scores(model, model.encode_image(pixels_BCHW), classes).unflatten(1, (self.temperatures, -1))
        at_each = [ranks(score_BC, rows) for score_BC in score_BUC.unbind(dim=1)]
        return {name: np.stack([of[name] for of in at_each], axis=1) for name in ("above", "tied")}


class _Classification:
    def __init__(self, model: ContrastiveModel, data: EvaluationSet, ratios: Sequence[float]) -> None:
        self.data = data
        classes = zero_shot_classifier(model, data.classes, data.templates)
        at_each = Query(*(tensor.cpu() for tensor in concatenate([_scaled(classes, ratio) for ratio in ratios])))
        self.task = ImageTask(data.name, data.table.select(["image", "label"]), RankAtEach(at_each, len(ratios)))

    def finish(self, arrays: Arrays) -> list[dict[str, ItemScores]]:
        label_N = self.data.table["label"].to_numpy()
        columns = zip(arrays["above"].T, arrays["tied"].T, strict=True)
        return [accuracies(above_N, tied_N, label_N, len(self.data.classes)) for above_N, tied_N in columns]


class _Retrieval:
    def __init__(self, model: ContrastiveModel, data: EvaluationSet, ratios: Sequence[float]) -> None:
        self.model, self.ratios = model, ratios
        self.trained = RetrievalTask(model, data)
        self.task = self.trained.task

    def finish(self, arrays: Arrays) -> list[dict[str, ItemScores]]:
        texts, captions = self.trained.texts, self.trained.captions
        images = from_arrays(arrays, texts[0].device)
        return [rank(self.model, images, _scaled(texts, ratio), captions).item_scores for ratio in self.ratios]
