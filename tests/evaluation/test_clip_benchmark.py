"""Parity with CLIP_benchmark's own evaluation, on the same models, images and captions."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from helpers.evaluation_samples import picture
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch.utils.data import DataLoader, Dataset

from llip import create_model
from llip.contrastive import ContrastiveModel
from llip.data.tokenizer import tokenize
from llip.data.transforms import normalize
from llip.evaluation import evaluate_model
from llip.evaluation.encode import decode
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.model.features import ImageFeatures, Mixture, Pooled, Query

CLASSES = tuple(f"{size} {thing}" for size in ("small", "large") for thing in ("cat", "dog", "owl", "fox", "bear"))
TEMPLATES = ("a photo of a {}", "{} on a table")
IMAGES = 60


class Pictures(Dataset[tuple[torch.Tensor, Any]]):
    """Pixels with labels or captions, as CLIP_benchmark's loaders give them."""

    classes = CLASSES

    def __init__(self, data: EvaluationSet, column: str) -> None:
        pixels = torch.stack([decode(blob, 48, "here") for blob in data.table["image"].to_pylist()])
        self.rows = list(zip(normalize(pixels), data.table[column].to_pylist(), strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        return self.rows[index]


def vectors(features: ImageFeatures) -> torch.Tensor:
    assert isinstance(features, Pooled)
    return features.vector_BD


class OpenClipInterface:
    """A model of one vector an image, with open_clip's methods."""

    def __init__(self, model: ContrastiveModel) -> None:
        self.model = model

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return vectors(self.model.encode_text(tokens))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return vectors(self.model.encode_image(pixels))

    def tokenizer(self, texts: list[str]) -> torch.Tensor:
        return tokenize(texts, self.model.config.text.context_length)


@pytest.fixture(autouse=True)
def arrays_of_one_element_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were for NumPy when CLIP_benchmark was written."""
    monkeypatch.setattr(zeroshot_classification, "float", lambda array: np.asarray(array).item(), raising=False)


def model_of(name: str) -> ContrastiveModel:
    torch.manual_seed(0)
    return create_model(name).eval()


@pytest.fixture(scope="module")
def labelled() -> EvaluationSet:
    label = np.random.default_rng(0).integers(0, len(CLASSES), IMAGES)
    table = pa.table({"image": [picture(i) for i in range(IMAGES)], "label": pa.array(label, pa.int32())})
    return EvaluationSet(name="things", task="classification", table=table, classes=CLASSES, templates=TEMPLATES)


@pytest.fixture(scope="module")
def captioned() -> EvaluationSet:
    images = pa.array([picture(i) for i in range(IMAGES)])
    captions = [
        [f"thing {i} of {IMAGES}", f"a number, {i}", f"{i} and {IMAGES - i}"][: 1 + i % 3] for i in range(IMAGES)
    ]
    return EvaluationSet.of_captions("numbers", images, captions)


def test_classification_of_clip_is_clip_benchmarks(labelled: EvaluationSet) -> None:
    model = model_of("siglip_tiny")
    theirs = OpenClipInterface(model)
    expected = zeroshot_classification.evaluate(
        theirs,
        DataLoader(Pictures(labelled, "label"), batch_size=16),
        theirs.tokenizer,
        list(CLASSES),
        [template.replace("{}", "{c}") for template in TEMPLATES],
        "cpu",
        amp=False,
    )
    found = evaluate_model(model, [labelled], progress=False)
    names = {"top1": "acc1", "top5": "acc5", "mean_per_class": "mean_per_class_recall"}
    for ours, name in names.items():
        assert found[f"things/{ours}"].value == pytest.approx(expected[name], abs=1e-9), ours


def test_retrieval_of_clip_is_clip_benchmarks(captioned: EvaluationSet) -> None:
    model = model_of("siglip_tiny")
    theirs = OpenClipInterface(model)

    def collate(rows: list[tuple[torch.Tensor, list[str]]]) -> tuple[torch.Tensor, list[list[str]]]:
        return torch.stack([pixels for pixels, _ in rows]), [captions for _, captions in rows]

    loader = DataLoader(Pictures(captioned, "captions"), batch_size=16, collate_fn=collate)
    expected = zeroshot_retrieval.evaluate(theirs, loader, theirs.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    found = evaluate_model(model, [captioned], progress=False)
    for k in (1, 5, 10):
        assert found[f"numbers/text_to_image_r{k}"].value == pytest.approx(expected[f"image_retrieval_recall@{k}"])
        assert found[f"numbers/image_to_text_r{k}"].value == pytest.approx(expected[f"text_retrieval_recall@{k}"])


@torch.inference_mode()
def literal_scores(data: EvaluationSet, texts: list[list[str]]) -> torch.Tensor:
    """Llip's cosines written out in float64, `[N, T]`: texts are given by their prompts."""
    model = model_of("llip_tiny_k8").double()
    pixels = torch.stack([decode(blob, 48, "here") for blob in data.table["image"].to_pylist()])
    images = model.encode_image(normalize(pixels, torch.float64))
    assert isinstance(images, Mixture) and model.head.out_proj is not None
    score_NT = torch.empty(len(pixels), len(texts), dtype=torch.float64)
    for t, prompts in enumerate(texts):
        features = model.encode_text(tokenize(prompts, model.config.text.context_length))
        assert isinstance(features, Query)
        query_ME = features.query_BME.mean(dim=0)
        target_D = torch.nn.functional.normalize(features.target_BD, dim=-1).mean(dim=0)
        logits_NMK = torch.einsum("nmke,me->nmk", images.key_BMKE, query_ME) / model.config.head.temperature
        context_ND = torch.einsum("nmk,nmke->nme", logits_NMK.softmax(-1), images.value_BMKE).flatten(1)
        score_NT[:, t] = torch.cosine_similarity(context_ND @ model.head.out_proj, target_D[None], dim=-1)
    return score_NT


def test_classification_of_llip_is_clip_benchmarks_on_literal_scores(labelled: EvaluationSet) -> None:
    model = model_of("llip_tiny_k8")
    score_NC = literal_scores(labelled, [[t.replace("{}", name) for t in TEMPLATES] for name in CLASSES])
    label = torch.tensor(labelled.table["label"].to_pylist())
    found = evaluate_model(model, [labelled], progress=False)
    top1, top5 = zeroshot_classification.accuracy(score_NC, label, topk=(1, 5))
    per_class = balanced_accuracy_score(label, score_NC.argmax(dim=1))
    f1 = f1_score(label, score_NC.argmax(dim=1), average="macro", labels=label.unique())  # as WILDS and DataComp
    names = ("top1", "top5", "mean_per_class", "macro_f1")
    assert [found[f"things/{n}"].value for n in names] == pytest.approx([top1, top5, per_class, f1])


def test_retrieval_of_llip_is_clip_benchmarks_on_literal_scores(captioned: EvaluationSet) -> None:
    model = model_of("llip_tiny_k8")
    listed = captioned.table["captions"].to_pylist()
    score_NT = literal_scores(captioned, [[caption] for captions in listed for caption in captions])
    true_NT = torch.block_diag(*(torch.ones(1, len(captions)) for captions in listed)).bool()
    found = evaluate_model(model, [captioned], progress=False)
    for k in (1, 5, 10):
        for name, scores, true in (("image_to_text", score_NT, true_NT), ("text_to_image", score_NT.T, true_NT.T)):
            hit = zeroshot_retrieval.recall_at_k(scores, true, k) > 0
            assert found[f"numbers/{name}_r{k}"].value == pytest.approx(hit.double().mean().item()), (name, k)
