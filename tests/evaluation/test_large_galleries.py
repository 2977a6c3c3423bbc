"""Retrieval in two stages against retrieval from all pairs."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from llip import create_model
from llip.contrastive import ContrastiveModel
from llip.evaluation import large_galleries, retrieval
from llip.evaluation.large_galleries import LargeRetrievalTask
from llip.evaluation.retrieval import Captions, RetrievalTask
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.model.features import Mixture, Query

IMAGES, TEXTS = 60, 40

Gallery = tuple[ContrastiveModel, Mixture, Query, Captions]


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    """Captions listed by one to four images, whose features they resemble; two captions and two images are the same."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = create_model("llip_tiny_k8").eval().requires_grad_(False)
    listed = [sorted({i % TEXTS, *rng.choice(TEXTS, rng.integers(0, 3), replace=False)}) for i in range(IMAGES)]
    table = pa.table(
        {
            "image": [b""] * IMAGES,
            "captions": [[f"caption {t}" for t in of_image] for of_image in listed],
            "caption_types": [["even" if t % 2 == 0 else "odd" for t in of_image] for of_image in listed],
        }
    )
    captions = Captions.of(EvaluationSet(name="scenes", task="retrieval", table=table))
    target = torch.randn(TEXTS, 64)
    target[1] = target[0]
    place = {text: t for t, text in enumerate(captions.texts)}
    value = torch.randn(IMAGES, 4, 8, 16)
    assert model.head.out_proj is not None
    for image, of_image in enumerate(listed):
        features = torch.stack([target[place[f"caption {t}"]] for t in of_image]).mean(dim=0)
        value[image] += 2 * (features @ torch.linalg.pinv(model.head.out_proj)).view(4, 1, 16)
    value[1] = value[0]
    key = torch.randn(IMAGES, 4, 8, 16)
    key[1] = key[0]
    query = torch.randn(TEXTS, 4, 16)
    query[1] = query[0]
    return model, Mixture(key, value), Query(query, target), captions


def test_with_all_as_candidates_metrics_are_the_exact_ones(gallery: Gallery) -> None:
    exact = retrieval.rank(*gallery).item_scores
    found = large_galleries.rank(*gallery, candidates=1000)
    assert {name for name in exact if "map" not in name} == found.item_scores.keys()
    for name, metric in found.item_scores.items():
        assert metric.value == pytest.approx(exact[name].value, abs=0.02), name
        assert metric.chance == pytest.approx(exact[name].chance, abs=1e-12), name
    assert 0.2 < found.item_scores["text_to_image_r1"].value < 1, "there is something to get wrong"


def test_what_is_no_candidate_is_missed(gallery: Gallery) -> None:
    few, many = (large_galleries.rank(*gallery, candidates=c) for c in (10, 30))
    value = {name: (few.item_scores[name].value, many.item_scores[name].value) for name in many.item_scores}
    assert value["image_to_text_r10"][0] <= value["image_to_text_r10"][1]
    assert value["one_of_20/odd"][0] == value["one_of_20/odd"][1], "exact whatever the candidates"
    assert few.best_images_TX.shape == (TEXTS, 5) and (few.average_precision_T <= 1).all()


@pytest.mark.parametrize(
    ("true", "score", "expected"),
    [
        ([0, 1, 0, 1], [4, 3, 2, 1], (1, 1, 0)),
        ([0, 1, 1, 0], [3, 3, 3, 2], (0, 2, 1)),
        ([0, 0, 0, 0], [4, 3, 2, 1], (4, 0, 0)),
    ],
)
def test_where_the_best_true_item_stands(true: list[int], score: list[int], expected: tuple[int, int, int]) -> None:
    found = large_galleries._best(np.array([true], bool), np.array([score], np.float32))
    assert tuple(int(x[0]) for x in found) == expected


def test_average_precision_counts_true_items_that_were_not_found() -> None:
    found = large_galleries._average_precision(np.array([[True, False, True], [False, False, False]]), np.array([4, 1]))
    assert found.tolist() == pytest.approx([(1 + 2 / 3) / 4, 0])


def test_models_without_a_mixture_are_ranked_exactly() -> None:
    torch.manual_seed(0)
    model = create_model("siglip_tiny").eval().requires_grad_(False)
    table = pa.table({"image": [b""] * 30, "captions": [[f"a {i}"] for i in range(30)], "caption_types": [["k"]] * 30})
    data = EvaluationSet(name="x", task="retrieval", table=table)
    arrays = {"vector_BD": np.random.default_rng(0).normal(size=(30, model.config.embed_dim)).astype(np.float32)}
    tasks = RetrievalTask(model, data), LargeRetrievalTask(model, data, candidates=10)
    exact, found = (task.finish(arrays)[0] for task in tasks)
    assert exact.keys() == found.keys()
    assert all(np.array_equal(exact[name].score_I, found[name].score_I) for name in exact)
