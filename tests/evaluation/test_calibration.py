"""Calibration against literal probabilities of all pairs."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from llip import create_model
from llip.evaluation import retrieval
from llip.evaluation.calibration import BINS, Calibration, LogitCounts
from llip.evaluation.encode import InProcess
from llip.evaluation.evaluate import evaluate_sets
from llip.evaluation.retrieval import Captions
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.model.features import Pooled


def literal_error(probability: np.ndarray, true: np.ndarray) -> float:
    """Expected calibration error, pair by pair."""
    of_bins: dict[int, list[tuple[float, bool]]] = {}
    for p, t in zip(probability.ravel().tolist(), true.ravel().tolist(), strict=True):
        of_bins.setdefault(min(int(p * BINS), BINS - 1), []).append((p, t))
    gaps = [abs(np.mean([p for p, _ in of]) - np.mean([t for _, t in of])) * len(of) for of in of_bins.values()]
    return float(sum(gaps) / probability.size)


@pytest.mark.parametrize("bias", [-3.0, 0.5])
def test_errors_are_those_of_a_literal_loop(bias: float) -> None:
    rng = np.random.default_rng(0)
    cosine = rng.uniform(-1, 1, (30, 40))
    true = rng.random((30, 40)) < 1 / (1 + np.exp(-(4 * cosine - 2)))
    counts = LogitCounts(5.0, bias)
    for start in range(0, 30, 7):
        counts.add(torch.from_numpy(cosine[start : start + 7]), torch.from_numpy(true[start : start + 7]))
    found = Calibration.of(counts.count_2H)
    probability = 1 / (1 + np.exp(-(5 * cosine + bias)))
    assert found.pairs == 1200 and found.prevalence == pytest.approx(true.mean())
    assert found.mean == pytest.approx(probability.mean(), abs=1e-3)
    assert found.error == pytest.approx(literal_error(probability, true), abs=0.02)
    shifted = 1 / (1 + np.exp(-(5 * cosine + bias + found.shift)))
    assert shifted.mean() == pytest.approx(true.mean(), abs=1e-3)
    assert found.error_shifted == pytest.approx(literal_error(shifted, true), abs=0.02)
    assert found.error_shifted < found.error


def test_probabilities_that_are_right_have_no_error() -> None:
    rng = np.random.default_rng(1)
    logit = rng.normal(-3, 2, (1000, 300))
    true = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    counts = LogitCounts(1.0, 0.0)
    counts.add(torch.from_numpy(logit), torch.from_numpy(true))
    found = Calibration.of(counts.count_2H)
    assert found.error < 0.003 and abs(found.shift) < 0.05
    counts.bias = 2.0
    counts.count_2H[:] = 0
    counts.add(torch.from_numpy(logit), torch.from_numpy(true))
    wrong = Calibration.of(counts.count_2H)
    assert wrong.error > 0.1 and wrong.shift == pytest.approx(-2, abs=0.05) and wrong.error_shifted < 0.003


def test_logits_beyond_the_limit_are_counted() -> None:
    counts = LogitCounts(1000.0, 0.0)
    counts.add(torch.tensor([[1.0, -1.0]]), torch.tensor([[True, False]]))
    found = Calibration.of(counts.count_2H)
    assert found.pairs == 2 and found.error == pytest.approx(0, abs=1e-9)


def test_pairs_of_retrieval_are_counted_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    listed = [[f"c{c}" for c in rng.choice(25, 3, replace=False)] for _ in range(20)]
    data = EvaluationSet.of_captions("x", pa.array([b""] * 20, pa.binary()), listed)
    captions = Captions.of(data)
    score_TN = torch.from_numpy(rng.uniform(-1, 1, (len(captions.texts), 20))).float()

    class Model:
        logit_scale, logit_bias = torch.tensor(2.0), torch.tensor(-3.0)

        def pair_scores(self, images: Pooled, texts: Pooled) -> torch.Tensor:
            return images.vector_BD @ texts.vector_BD.T

    found = []
    for scores in (1 << 24, 20 * 4):
        monkeypatch.setattr(retrieval, "BLOCK_SCORES", scores)
        ranked = retrieval.rank(Model(), Pooled(torch.eye(20)), Pooled(score_TN), captions)  # type: ignore[arg-type]
        found.append(ranked.logit_count_2H)
    assert found[0] is not None and found[1] is not None and np.array_equal(found[0], found[1])
    assert found[0].sum(axis=1).tolist() == [20 * len(captions.texts), len(captions.image_J)]


@pytest.mark.parametrize(("recipe", "has"), [("siglip_tiny", True), ("clip_tiny", False)])
def test_only_a_sigmoid_gives_probabilities(recipe: str, has: bool) -> None:
    from helpers.evaluation_samples import make_sets

    model = create_model(recipe)
    outcomes = {o.data.name: o for o in evaluate_sets(model, make_sets(), InProcess(model=model, progress=False))}
    assert (outcomes["scenes"].calibration is not None) == has and outcomes["things"].calibration is None
