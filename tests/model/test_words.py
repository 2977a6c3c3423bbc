"""The prediction of words against its formula, word by word."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import literal
from torch import Tensor

from llip import create_model, recipe
from llip.config import ObjectiveConfig
from llip.contrastive import ContrastiveModel
from llip.model.features import Terms
from llip.model.words import WordPrediction
from llip.pairs import accumulation
from llip.pairs.losses import loss_of_features, score_parameters

IMAGES, CAPTIONS, START, END = 5, 2, 49406, 49407


def small_model(kind: str = "clip_tiny", weight: float = 0.3) -> ContrastiveModel:
    torch.manual_seed(0)
    return create_model(replace(recipe(kind).model, word_weight=weight)).double()


def prediction(model: ContrastiveModel) -> WordPrediction:
    assert model.words is not None
    return model.words


def terms(model: ContrastiveModel, pixels: Tensor, ids: Tensor) -> Terms:
    """What the images of a forward pass add to the loss."""
    found = model(pixels, ids)[2]
    assert isinstance(found, Terms)
    return found


def batch() -> tuple[Tensor, Tensor]:
    """Captions repeat words, their own and those of others; one ends after its start, one has the word of padding."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 6, (CAPTIONS * IMAGES, 9), generator=random)
    ids[:, 0] = START
    for row, length in enumerate([1, 8, 3, 4, 5, 2, 8, 7, 3, 4]):
        ids[row, length], ids[row, length + 1 :] = END, 0
    return torch.randn(IMAGES, 3, 48, 48, generator=random, dtype=torch.float64), ids


def words(ids: list[int]) -> set[int]:
    return set(ids[: ids.index(END) + 1])


def literal_loss(
    model: ContrastiveModel, pixels: Tensor, captions: list[list[int]], counted: list[list[int]]
) -> Tensor:
    """Of the images [B], with document frequencies of the captions that were counted."""
    vision = model.config.vision
    patches = model.vision(pixels, vision.tokens + vision.patches)[:, vision.tokens :]
    log_p = prediction(model).linear(patches.mean(dim=1)).log_softmax(dim=1)
    frequency = Counter(word for ids in counted for word in words(ids))
    losses = []
    for image in range(len(pixels)):
        of_captions = []
        for ids in captions[image :: len(pixels)]:
            weight = {v: max(0.0, math.log(len(counted) / (1 + frequency[v]))) for v in words(ids)}
            total = sum(weight.values())
            of_captions.append(-sum(w / total * log_p[image, v] for v, w in weight.items() if total))
        losses.append(torch.as_tensor(sum(of_captions) / len(of_captions), dtype=torch.float64))
    return torch.stack(losses)


@pytest.mark.parametrize("kind", ["clip_tiny", "llip_tiny_k8", "llip_dense_tiny_k8", "image_query_tiny_k8"])
def test_the_loss_and_its_gradients_equal_the_formula(kind: str) -> None:
    model, (pixels, ids) = small_model(kind), batch()
    prediction(model).count([ids[:4], ids[4:]])
    prediction(model).count([ids[:3]])
    counted = ids.tolist() + ids[:3].tolist()
    loss_B = terms(model, pixels, ids).loss_B
    expected = 0.3 * literal_loss(model, pixels, ids.tolist(), counted)
    linear = prediction(model).linear
    used = [linear.weight, linear.bias, model.vision.patch_embedding.weight]
    gradients = [torch.autograd.grad(loss.sum(), used) for loss in (loss_B, expected)]
    assert expected.min() > 0.1
    assert literal.errors([loss_B, *gradients[0]], [expected, *gradients[1]]) < 1e-12


def test_it_is_added_to_the_loss_of_the_pairs_in_parts_too() -> None:
    pixels, ids = batch()
    found = []
    for count in (1, 2):
        model = small_model("llip_tiny_k8")
        ids_CBL = ids.unflatten(0, (CAPTIONS, -1)).tensor_split(count, dim=1)
        parts = [(p, i.flatten(0, 1)) for p, i in zip(pixels.tensor_split(count), ids_CBL, strict=True)]
        output = accumulation.backward(model, parts, config=ObjectiveConfig(), captions_per_image=CAPTIONS)
        found.append([output.loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert literal.errors(found[1], found[0]) < 1e-12
    images, texts, *_ = model(pixels, ids)
    pairs = loss_of_features(
        images, texts, score_parameters(model), config=ObjectiveConfig(), captions_per_image=CAPTIONS
    )
    expected = pairs.loss + 0.3 * literal_loss(model, pixels, ids.tolist(), ids.tolist()).mean()
    torch.testing.assert_close(found[0][0], expected.detach())


def test_features_are_those_of_a_model_without_it_and_evaluation_needs_no_words() -> None:
    with_words, without, (pixels, ids) = small_model("llip_tiny_k8"), small_model("llip_tiny_k8", 0.0), batch()
    without.load_state_dict({k: v for k, v in with_words.state_dict().items() if not k.startswith("words.")})
    for training in (True, False):
        with_words.train(training)
        assert len(with_words(pixels, ids)) == 2 + training
        for features, others in zip(with_words(pixels, ids), without(pixels, ids), strict=False):
            assert literal.errors(features, others) < 1e-12
