"""Chunked retrieval against brute force over the whole score matrix."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import average_precision_score

from llip.evaluation import retrieval
from llip.evaluation.retrieval import CANDIDATES, Captions, OneOfMany
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.model.features import Pooled

TYPES = ("object", "ground")


class InnerProduct:
    """Stands for a model: the score is the inner product of two given vectors."""

    def pair_scores(self, images: Pooled, texts: Pooled) -> torch.Tensor:
        return images.vector_BD @ texts.vector_BD.T


def make_set(images: int = 60, seed: int = 0) -> EvaluationSet:
    """Images with two or three captions out of 40 objects and 25 grounds, many of them shared."""
    rng = np.random.default_rng(seed)
    captions, types = [], []
    for _ in range(images):
        objects = rng.choice(40, rng.integers(1, 3), replace=False)
        captions.append([f"object {o}" for o in objects] + [f"ground {rng.integers(25)}"])
        types.append(["object"] * len(objects) + ["ground"])
    table = pa.table({"image": [b""] * images, "captions": captions, "caption_types": types})
    return EvaluationSet(name="scenes", task="retrieval", table=table)


def rank(score_TN: np.ndarray, captions: Captions) -> retrieval.Retrieval:
    model: Any = InnerProduct()
    texts, images = Pooled(torch.as_tensor(score_TN, dtype=torch.float32)), Pooled(torch.eye(score_TN.shape[1]))
    return retrieval.rank(model, images, texts, captions)


def truth(captions: Captions, images: int) -> np.ndarray:
    true_TN = np.zeros((len(captions.texts), images), dtype=bool)
    true_TN[captions.text_J, captions.image_J] = True
    return true_TN


@pytest.fixture(params=[1 << 24, 60 * 7], ids=["one block", "blocks of 7 captions"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK_SCORES", request.param)


def test_captions_know_their_images_and_types() -> None:
    table = pa.table(
        {"image": [b"", b""], "captions": [["a cat", "red"], ["red", "red"]], "caption_types": [["o", "g"], ["g", "o"]]}
    )
    captions = Captions.of(EvaluationSet(name="x", task="retrieval", table=table))
    assert captions.texts == ["a cat", "red"]
    assert captions.positives(0).tolist() == [0] and captions.positives(1).tolist() == [0, 1]
    assert {k: v.tolist() for k, v in captions.by_type.items()} == {"g": [1], "o": [0, 1]}


def test_both_directions_and_map_equal_brute_force(block: None) -> None:
    captions = Captions.of(make_set())
    true_TN = truth(captions, 60)
    score_TN = np.random.default_rng(1).normal(size=true_TN.shape).astype(np.float32) + 0.8 * true_TN
    found = rank(score_TN, captions).item_scores
    for k in (1, 5, 10):
        by_image = np.argsort(-score_TN, axis=1)[:, :k]
        by_text = np.argsort(-score_TN, axis=0)[:k]
        assert found[f"text_to_image_r{k}"].value == pytest.approx(
            np.take_along_axis(true_TN, by_image, 1).any(1).mean(), abs=1e-12
        )
        assert found[f"image_to_text_r{k}"].value == pytest.approx(
            np.take_along_axis(true_TN, by_text, 0).any(0).mean(), abs=1e-12
        )
    precision = np.array([average_precision_score(t, s) for t, s in zip(true_TN, score_TN, strict=True)])
    assert found["text_to_image_map"].value == pytest.approx(precision.mean(), abs=1e-12)
    for kind in TYPES:
        of_kind = np.array([text.startswith(kind) for text in captions.texts])
        assert found[f"text_to_image_map/{kind}"].value == pytest.approx(precision[of_kind].mean(), abs=1e-12)
    mean = np.mean([found[f"text_to_image_map/{kind}"].value for kind in TYPES])
    assert found["text_to_image_map_over_types"].value == pytest.approx(mean, abs=1e-12)


def test_a_constant_scorer_gets_chance_in_every_metric(block: None) -> None:
    captions = Captions.of(make_set())
    found = rank(np.zeros((len(captions.texts), 60)), captions).item_scores
    assert len(found) == 3 + 3 + 2 + 2 + 2
    for name, metric in found.items():
        assert metric.value == pytest.approx(metric.chance, abs=1e-12), name


def test_random_scores_get_chance_on_average(block: None) -> None:
    captions = Captions.of(make_set())
    rng = np.random.default_rng(5)
    runs = [rank(rng.normal(size=(len(captions.texts), 60)), captions).item_scores for _ in range(60)]
    for name, metric in runs[0].items():
        values = np.array([run[name].value for run in runs])
        assert values.mean() == pytest.approx(metric.chance, abs=4 * values.std() / np.sqrt(60)), name


def test_coarse_scores_get_the_mean_over_tie_breaks(block: None) -> None:
    captions = Captions.of(make_set(seed=3))
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 3, size=(len(captions.texts), 60)).astype(np.float32)
    fair = rank(coarse, captions).item_scores
    broken = [rank(coarse + 1e-3 * rng.random(coarse.shape), captions).item_scores for _ in range(80)]
    for name, metric in fair.items():
        values = np.array([run[name].value for run in broken])
        assert values.mean() == pytest.approx(metric.value, abs=4 * values.std() / np.sqrt(80) + 1e-9), name


def test_distractors_are_false_of_the_image_of_the_same_type_distinct_and_drawn_by_seed() -> None:
    captions = Captions.of(make_set())
    true_TN = truth(captions, 60)
    choices = OneOfMany(captions, 60, seed=0)
    assert choices.candidate_DX.shape == (len(captions.decisions), CANDIDATES)
    for kind, image, (text, *distractors) in zip(
        choices.type, choices.image_D1[:, 0], choices.candidate_DX.tolist(), strict=True
    ):
        drawn = [d for d in distractors if d >= 0]
        assert true_TN[text, image] and not true_TN[drawn, image].any()
        assert len(set(drawn)) == len(drawn) == 19
        assert set(drawn) <= set(captions.by_type[kind].tolist())
    assert (OneOfMany(captions, 60, seed=0).candidate_DX == choices.candidate_DX).all()
    assert (OneOfMany(captions, 60, seed=1).candidate_DX != choices.candidate_DX).any()


def test_few_false_captions_of_a_type_raise_the_chance_level_and_none_drops_the_type() -> None:
    table = pa.table(
        {
            "image": [b""] * 3,
            "captions": [["one", "x"], ["two", "x"], ["three", "x"]],
            "caption_types": [["count", "all"]] * 3,
        }
    )
    captions = Captions.of(EvaluationSet(name="few", task="retrieval", table=table))
    found = rank(np.eye(4, 3)[[0, 3, 1, 2]], captions).item_scores
    assert found["one_of_20/count"].chance == pytest.approx(1 / 3)
    assert found["one_of_20/count"].value == 1
    assert "one_of_20/all" not in found


def test_an_image_without_captions_is_refused_by_row() -> None:
    table = pa.table({"image": [b"", b""], "captions": [["a"], []], "caption_types": [["o"], []]})
    with pytest.raises(ValueError, match="row 1: 0 captions"):
        Captions.of(EvaluationSet(name="bad", task="retrieval", table=table))


def test_scores_that_are_not_numbers_are_refused() -> None:
    captions = Captions.of(make_set())
    score_TN = np.zeros((len(captions.texts), 60))
    score_TN[3, 5] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        rank(score_TN, captions)
