"""Llip's zero-shot protocol against its literal form in float64, for every kind of feature."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import f1_score

from llip.contrastive import ContrastiveModel, create_model
from llip.data.tokenizer import tokenize
from llip.evaluation import encode, zero_shot
from llip.model.features import Mixture, Pooled, Query, TextFeatures

CLASSES = ("cat", "large dog", "red bird of the north", "fish", "owl", "bear", "fox")
TEMPLATES = ("a photo of a {}", "a drawing of a {} on a table", "{}")


def make_model(name: str) -> ContrastiveModel:
    torch.manual_seed(0)
    return create_model(name).eval().double()


@pytest.mark.parametrize("name", ["siglip_tiny", "llip_tiny_k8", "image_query_tiny_k8"])
@torch.inference_mode()
def test_a_zero_shot_classifier_in_chunks_is_the_literal_average(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_shot, "PROMPTS_AT_ONCE", 7)  # two classes of three templates
    model = make_model(name)
    found = zero_shot.zero_shot_classifier(model, CLASSES, TEMPLATES)
    for c, name_of_class in enumerate(CLASSES):
        prompts = [template.format(name_of_class) for template in TEMPLATES]
        features = model.encode_text(tokenize(prompts, model.config.text.context_length))
        for field, tensor in features._asdict().items():
            unit = field in ("target_BD", "vector_BD")
            parts = tensor / tensor.norm(dim=-1, keepdim=True) if unit else tensor
            mean = parts.mean(dim=0)
            expected = mean / mean.norm() if unit else mean
            torch.testing.assert_close(getattr(found, field)[c], expected, rtol=1e-9, atol=1e-12)


@torch.inference_mode()
def test_llip_contextualises_once_for_each_image_and_class() -> None:
    """The score of an image and a class: one mixture by the averaged raw query, written out."""
    model = make_model("llip_tiny_k8")
    images = model.encode_image(torch.randn(5, 3, 48, 48, dtype=torch.float64))
    classes = zero_shot.zero_shot_classifier(model, CLASSES, TEMPLATES)
    found = encode.scores(model, images, classes, images_at_once=2)
    tau = model.config.head.temperature
    assert isinstance(images, Mixture) and isinstance(classes, Query) and model.head.out_proj is not None
    for i in range(5):
        for c in range(len(CLASSES)):
            heads = []
            for m in range(model.config.head.heads):
                logits = images.key_BMKE[i, m] @ classes.query_BME[c, m] / tau
                heads.append(torch.softmax(logits, 0) @ images.value_BMKE[i, m])
            feature = torch.cat(heads) @ model.head.out_proj
            expected = feature @ classes.target_BD[c] / feature.norm()
            assert found[i, c].item() == pytest.approx(expected.item(), abs=1e-6)


def test_accuracies_are_the_textbook_ones() -> None:
    rng = np.random.default_rng(0)
    score_NC = rng.normal(size=(400, 12))
    label_N = rng.choice(10, 400) + (rng.random(400) < 0.3)  # the last class has no image
    of_label_N1 = score_NC[np.arange(400), label_N][:, None]
    found = zero_shot.accuracies((score_NC > of_label_N1).sum(1), (score_NC == of_label_N1).sum(1), label_N, classes=12)
    order = np.argsort(-score_NC, axis=1)
    assert found["top1"].value == pytest.approx((order[:, 0] == label_N).mean())
    assert found["top5"].value == pytest.approx((order[:, :5] == label_N[:, None]).any(1).mean())
    recall = [(order[label_N == c, 0] == c).mean() for c in np.unique(label_N)]
    assert found["mean_per_class"].value == pytest.approx(np.mean(recall))
    assert [found[m].chance for m in ("top1", "top5", "mean_per_class")] == [1 / 12, 5 / 12, 1 / 12]


def macro(label_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """As WILDS and DataComp compute it: over the classes that occur among the labels."""
    return float(f1_score(label_N, predicted_N, average="macro", labels=np.unique(label_N)))


def test_macro_f1_is_that_of_scikit_learn_over_the_classes_of_labels() -> None:
    rng = np.random.default_rng(0)
    label_N = rng.choice(8, 200, p=np.arange(1, 9) / 36)
    predicted_N = np.where(rng.random(200) < 0.5, label_N, rng.integers(0, 12, 200))  # 8 to 11 are of no label
    found = zero_shot.macro_f1(label_N, predicted_N, classes=12)
    assert found.value == pytest.approx(macro(label_N, predicted_N), abs=1e-12)
    assert found.value != pytest.approx(f1_score(label_N, predicted_N, average="macro"), abs=1e-3)
    times_BN = rng.integers(0, 4, (20, 200)) * (label_N != 3)
    expected = [macro(np.repeat(label_N, times), np.repeat(predicted_N, times)) for times in times_BN]
    np.testing.assert_allclose(found.means(times_BN.astype(np.float32)), expected, atol=1e-6)
    assert np.isnan(found.means(np.zeros((1, 200)))[0]) and found.over == "200 images"


@pytest.mark.parametrize("label", [[0, 0, 1, 2], [0, 0, 0, 0], [3, 1, 1, 3]])
def test_the_chance_of_macro_f1_is_the_mean_over_all_predictions(label: list[int]) -> None:
    label_N = np.array(label)
    every = itertools.product(range(4), repeat=len(label))
    expected = np.mean([zero_shot.macro_f1(label_N, np.array(predicted), 4).value for predicted in every])
    assert zero_shot.drawn_f1(label_N, 4) == pytest.approx(expected, abs=1e-12)


class ConstantScorer:
    def encode_image(self, pixels: torch.Tensor) -> Pooled:
        return Pooled(pixels)

    def pair_scores(self, images: Pooled, texts: Pooled) -> torch.Tensor:
        return torch.zeros(len(images[0]), len(texts[0]))


def test_a_constant_scorer_gets_chance() -> None:
    labels = pa.table({"label": [0, 3, 3, 2, 1, 0]})
    job = zero_shot.Classify(Pooled(torch.zeros(9, 4)))
    model: Any = ConstantScorer()
    outcome = job(model, torch.zeros(6, 4), labels)
    for metric in zero_shot.accuracies(outcome["above"], outcome["tied"], labels["label"].to_numpy(), 9).values():
        assert metric.value == pytest.approx(metric.chance, abs=1e-12)


@pytest.mark.parametrize("kind", [Pooled, Mixture, Query])
def test_features_travel_as_arrays(kind: type[Pooled | Mixture | Query]) -> None:
    features = kind(*(torch.randn(4, 3) for _ in kind._fields))
    back = encode.from_arrays(encode.to_arrays(features), torch.device("cpu"))
    assert type(back) is kind and all(torch.equal(a, b) for a, b in zip(back, features, strict=True))


@torch.inference_mode()
def test_captions_encoded_by_length_come_back_in_order() -> None:
    model = make_model("siglip_tiny").float()
    texts = ["a long caption of many words about a dog", "cat", "a red fish", "cat", "b"]
    found = encode.encode_texts(model, texts, batch_size=2)
    assert isinstance(found, Pooled)
    for i, text in enumerate(texts):
        alone = model.encode_text(tokenize([text], model.config.text.context_length))
        assert isinstance(alone, Pooled)
        torch.testing.assert_close(found.vector_BD[i], alone.vector_BD[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_no_more_prompts_are_encoded_at_once_than_memory_is_meant_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = make_model("llip_tiny_k8").float(), list[int]()
    classes = [f"thing {i}" for i in range(2000)]
    one_pass = zero_shot.zero_shot_classifier(model, classes, TEMPLATES)

    def encode_texts(model: ContrastiveModel, texts: Sequence[str]) -> TextFeatures:
        asked.append(len(texts))
        return encode.encode_texts(model, texts)

    monkeypatch.setattr(zero_shot, "PROMPTS_AT_ONCE", 500)
    monkeypatch.setattr(zero_shot, "encode_texts", encode_texts)
    found = zero_shot.zero_shot_classifier(model, classes, TEMPLATES)
    assert max(asked) <= 500 and sum(asked) == 6000
    for chunked, whole in zip(found, one_pass, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)
