"""All metrics of a model on evaluation sets."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llip.data.evaluation_set import EvaluationSet
from llip.evaluation import context, retrieval, zero_shot
from llip.evaluation.encode import Arrays, InProcess, Runner
from llip.evaluation.metrics import Metric
from llip.evaluation.retrieval import Retrieval
from llip.model.build import ContrastiveModel


@dataclass(frozen=True)
class Outcome:
    """What a set gave: its metrics, and what a report shows besides (arrays by image, or the rankings of retrieval)."""

    data: EvaluationSet
    metrics: dict[str, Metric]
    details: Arrays | Retrieval


def evaluate_model(
    model: ContrastiveModel,
    sets: Sequence[EvaluationSet],
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Metric]:
    """Metrics of a model on sets, named `<set>/<metric>`: see `zero_shot`, `retrieval` and `context`.

    The model is moved to `device`. Raises ValueError, naming set and row, for a picture or a row that cannot be used.
    """
    run = InProcess(model=model.to(device), batch_size=batch_size, progress=progress)
    return named(evaluate_sets(model, sets, run))


@torch.inference_mode()
def evaluate_sets(model: ContrastiveModel, sets: Sequence[EvaluationSet], run: Runner) -> list[Outcome]:
    """What every set gave. Captions are encoded with `model`, where it lies; images where the runner does."""
    training = model.training
    model.eval()
    outcomes = []
    try:
        for data in sets:
            outcomes.append(_evaluate_set(model, data, run))
    except ValueError as error:
        raise ValueError(f"evaluation set {data.name}: {error}") from error
    finally:
        model.train(training)
    return outcomes


def _evaluate_set(model: ContrastiveModel, data: EvaluationSet, run: Runner) -> Outcome:
    match data.task:
        case "classification":
            return Outcome(data, *zero_shot.evaluate(model, data, run))
        case "retrieval":
            ranked = retrieval.evaluate(model, data, run)
            return Outcome(data, ranked.metrics, ranked)
        case "context":
            return Outcome(data, *context.evaluate(model, data, run))


def named(outcomes: Sequence[Outcome]) -> dict[str, Metric]:
    """Metrics of several sets as one dictionary."""
    return {f"{o.data.name}/{name}": metric for o in outcomes for name, metric in o.metrics.items()}
