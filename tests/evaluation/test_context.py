"""The context analysis against the literal contextual features, and the whole of `evaluate_model`."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.evaluation_samples import make_sets

from llip.contrastive import ContrastiveModel, create_model
from llip.data.tokenizer import tokenize
from llip.evaluation import context, evaluate_model
from llip.evaluation.encode import ImageTask, InProcess, KeepFeatures, from_arrays
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.model.features import Query, batch_slice


def make_model(name: str) -> ContrastiveModel:
    torch.manual_seed(0)
    return create_model(name)


@torch.inference_mode()
def test_context_cosines_are_those_of_the_literal_contextual_features() -> None:
    data = make_sets()[2]
    model = make_model("llip_tiny_k8").eval()
    analysis = context.ContextAnalysis(model, data)
    kept, outcome = InProcess(model=model, batch_size=4, progress=False)(
        [ImageTask("images", data.table, KeepFeatures()), analysis.task]
    )
    images = from_arrays(kept, torch.device("cpu"))
    right = 0
    for i in range(10):
        captions = [data.table[c][i].as_py() for c in ("caption_a", "caption_b")]
        texts = model.encode_text(tokenize(captions, model.config.text.context_length))
        assert isinstance(texts, Query)
        given_a, given_b = model.contextual_features(batch_slice(images, slice(i, i + 1)), texts)[0]
        target_a, target_b = texts.target_BD / texts.target_BD.norm(dim=-1, keepdim=True)
        expected = [given_a @ target_a, given_b @ target_a, given_b @ target_b, given_a @ target_b]
        for name, value in zip(("a_given_a", "a_given_b", "b_given_b", "b_given_a"), expected, strict=True):
            assert outcome[name][i] == pytest.approx(value.item(), abs=1e-5)
        right += int(expected[0] > expected[1]) + int(expected[2] > expected[3])
    assert context.accuracy(outcome).value == right / 20


def test_a_tie_is_half_right() -> None:
    names = ("a_given_a", "a_given_b", "b_given_b", "b_given_a")
    outcome = dict(zip(names, np.array([[1, 0, 0.5, 0.5], [0, 0, 1, 0.4]]).T, strict=True))
    assert context.accuracy(outcome).value == (1 + 0.5 + 0.5 + 1) / 4


@pytest.mark.parametrize(
    ("recipe", "applies"), [("llip_tiny_k8", True), ("siglip_tiny", False), ("mean_tiny_k8", False)]
)
def test_evaluate_model_names_every_metric_and_restores_the_mode(recipe: str, applies: bool) -> None:
    model = make_model(recipe).train()
    found = evaluate_model(model, make_sets(), batch_size=3, progress=False)
    assert model.training
    expected = {f"things/{m}" for m in ("top1", "top5", "mean_per_class", "macro_f1")}
    expected |= {f"scenes/{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}
    expected |= {f"scenes/text_to_image_map{kind}" for kind in ("", "_over_types", "/object", "/ground")}
    expected |= {f"scenes/one_of_20/{kind}" for kind in ("object", "ground")}
    assert set(found) == expected | ({"pairs/context_accuracy"} if applies else set())
    assert all(0 <= m.value <= 1 and 0 < m.chance <= 1 for m in found.values())


def test_the_batch_size_does_not_matter() -> None:
    model = make_model("llip_tiny_k8")
    one, another = (evaluate_model(model, make_sets(), batch_size=b, progress=False) for b in (1, 10))
    assert {k: pytest.approx(v.value, abs=1e-6) for k, v in one.items()} == {k: v.value for k, v in another.items()}


def test_a_picture_that_does_not_decode_is_refused_by_row() -> None:
    data = make_sets()[0]
    blobs = data.table["image"].to_pylist()
    blobs[7] = b"no image"
    broken = EvaluationSet(
        name="things",
        task="classification",
        table=data.table.set_column(0, "image", pa.array(blobs)),
        classes=data.classes,
    )
    with pytest.raises(ValueError, match="evaluation set things, row 7: the image cannot be used"):
        evaluate_model(make_model("siglip_tiny"), [broken], batch_size=3, progress=False)
