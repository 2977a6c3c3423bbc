"""All metrics of a model on evaluation sets."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from llip.contrastive import ContrastiveModel
from llip.evaluation import bootstrap, context
from llip.evaluation.association import Association
from llip.evaluation.calibration import Calibration
from llip.evaluation.choice import Choice
from llip.evaluation.context import ContextAnalysis
from llip.evaluation.encode import Arrays, InProcess, Runner
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.large_galleries import LargeRetrievalTask
from llip.evaluation.metrics import Metric
from llip.evaluation.retrieval import Retrieval, RetrievalTask
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.evaluation.zero_shot import ZeroShot


@dataclass(frozen=True)
class Outcome:
    """Results on a set: its metrics with their intervals, the scores of single items behind them, and details for a
    report (arrays by image, or the rankings of retrieval)."""

    data: EvaluationSet
    metrics: dict[str, Metric]
    item_scores: dict[str, ItemScores]
    details: Arrays | Retrieval

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of match probabilities, where the set and the model have such."""
        counts = self.details.logit_count_2H if isinstance(self.details, Retrieval) else None
        return None if counts is None else Calibration.of(counts)


def evaluate_model(
    model: ContrastiveModel,
    sets: Sequence[EvaluationSet],
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Metric]:
    """Metrics of a model on sets, named `<set>/<metric>`: see `zero_shot`, `retrieval`, `context`, `choice`
    and `association`.

    The model is moved to `device`. Raises ValueError, naming set and row, for an image or a row that cannot be used.
    """
    run = InProcess(model=model.to(device), batch_size=batch_size, progress=progress)
    return named(evaluate_sets(model, sets, run))


@torch.inference_mode()
def evaluate_sets(
    model: ContrastiveModel, sets: Sequence[EvaluationSet], run: Runner, *, candidates: int | None = None
) -> Iterator[Outcome]:
    """Results of every set as soon as it is evaluated, without sets that do not apply to the model. Only one of
    several ranks yields them.

    Captions are encoded and retrieval is ranked with `model`, on its device; images are encoded by the runner.
    candidates: of every query, where retrieval is in two stages (see `large_galleries`).
    """
    training = model.training
    model.eval()
    try:
        applying = [data for data in sets if data.task != "context" or context.applies(model)]
        analyses = [(data, _analysis(model, data, candidates)) for data in applying]
        results = run([analysis.task for _, analysis in analyses])
        if not results:
            return
        for (data, analysis), arrays in zip(analyses, results, strict=True):
            scores, details = analysis.finish(arrays)
            yield Outcome(data, bootstrap.judge(scores), scores, details)
    finally:
        model.train(training)


def _analysis(
    model: ContrastiveModel, data: EvaluationSet, candidates: int | None
) -> ZeroShot | RetrievalTask | ContextAnalysis | Choice | Association:
    match data.task:
        case "classification":
            return ZeroShot(model, data)
        case "retrieval":
            return RetrievalTask(model, data) if candidates is None else LargeRetrievalTask(model, data, candidates)
        case "context":
            return ContextAnalysis(model, data)
        case "choice":
            return Choice(model, data)
        case "association":
            return Association(model, data)


def named(outcomes: Iterable[Outcome]) -> dict[str, Metric]:
    """Metrics of several sets as one dictionary."""
    return {f"{o.data.name}/{name}": metric for o in outcomes for name, metric in o.metrics.items()}
