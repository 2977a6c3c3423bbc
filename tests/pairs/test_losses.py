"""Losses and all their gradients against the literal form and against open_clip, on one process."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import literal
from torch import Tensor

from llip import devices
from llip.config import Head, LossName, ObjectiveConfig
from llip.model.features import Mixture, Pooled, Query
from llip.pairs import scoring
from llip.pairs.losses import LOSSES, ScoreParameters, loss_of_features, score_parameters
from llip.pairs.positives import caption_ids

KINDS: tuple[Head, ...] = ("class_token", "text_query", "image_query")


def parameters(
    out_proj_DD: Tensor | None, scale: float = 1.2, bias: float = -2.0, dtype: torch.dtype = torch.float64
) -> ScoreParameters:
    log_scale, offset = (torch.tensor(value, dtype=dtype).requires_grad_() for value in (scale, bias))
    return ScoreParameters(out_proj_DD, 1.7, log_scale, offset)


def compare(kind: Head, images: int, captions: int, config: ObjectiveConfig, **sizes: Any) -> float:
    """Largest error of the loss and of the gradients of features, W_O, scale and bias."""
    image, text, out_proj_DD = literal.features(kind, images, captions * images, **sizes)
    own = parameters(out_proj_DD)
    leaves = [t for t in (*image, *text, out_proj_DD, own.logit_scale, own.logit_bias) if t is not None]
    score_BT = literal.scores(image, text, out_proj_DD=out_proj_DD, temperature=1.7)
    token_ids_TL = literal.repeated_captions(captions * images) if config.multi_positive else None
    expected = literal.loss(config.loss, score_BT, own.logit_scale, own.logit_bias, captions, token_ids_TL)
    teacher, share = literal.teacher(images, captions), config.distillation
    if share:
        expected = literal.loss_with(teacher, share, expected, score_BT, own.logit_scale, captions)
    actual = loss_of_features(
        image,
        text,
        own,
        config=config,
        captions_per_image=captions,
        caption_ids_T=None if token_ids_TL is None else caption_ids(token_ids_TL),
        teacher=teacher if share else None,
    ).loss
    gradients = [torch.autograd.grad(loss, leaves) for loss in (actual, expected)]
    return literal.errors((actual, *gradients[0]), (expected, *gradients[1]))


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_literal_form(loss: LossName, kind: Head, captions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for chunk in (1, 3, 7, 1024):
        for tile in (1, 40, 1 << 19):
            monkeypatch.setattr(devices, "CPU", replace(devices.CPU, tile=tile))
            assert compare(kind, 7, captions, ObjectiveConfig(loss=loss, chunk=chunk)) < 1e-12


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_equal_captions_as_positives_equal_the_literal_form(
    loss: LossName, kind: Head, captions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "CPU", replace(devices.CPU, tile=40))
    for chunk in (1, 3, 1024):
        assert compare(kind, 7, captions, ObjectiveConfig(loss=loss, chunk=chunk, multi_positive=True)) < 1e-12


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_distillation_equals_the_literal_form(
    share: float, loss: LossName, kind: Head, captions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "CPU", replace(devices.CPU, tile=40))
    for chunk in (1, 3, 1024):
        assert compare(kind, 7, captions, ObjectiveConfig(loss=loss, chunk=chunk, distillation=share)) < 1e-12


def test_a_student_that_scores_as_its_teacher_has_nothing_to_learn() -> None:
    teacher = literal.teacher(5, 2)
    images, texts = Pooled(teacher.image_BD.requires_grad_()), Pooled(teacher.caption_TD)
    own = ScoreParameters(None, 1.0, torch.tensor(teacher.logit_scale, dtype=torch.float64).log(), None)
    config = ObjectiveConfig(loss="softmax", distillation=1.0)
    output = loss_of_features(images, texts, own, config=config, captions_per_image=2, teacher=teacher)
    (gradient,) = torch.autograd.grad(output.loss, images.vector_BD)
    assert output.loss.abs() < 1e-14 and gradient.abs().max() < 1e-14


def test_an_id_is_of_the_words_and_not_of_the_padding() -> None:
    token_ids_TL = literal.repeated_captions(40)
    ids, words = caption_ids(token_ids_TL).tolist(), [tuple(row) for row in token_ids_TL.tolist()]
    assert len(set(ids)) == len(set(words)) == len(set(zip(ids, words, strict=True))) == 5
    padded = torch.nn.functional.pad(token_ids_TL, (0, 9)).int()
    assert caption_ids(padded).tolist() == ids


@pytest.mark.parametrize("form", ["gram", "metric"])
@pytest.mark.parametrize("loss", LOSSES)
def test_both_ways_of_scoring_mixtures(loss: LossName, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "gram_is_cheaper", lambda **_: form == "gram")
    for tokens, heads in ((1, 1), (2, 8), (8, 4), (32, 8)):
        sizes = {"tokens": tokens, "heads": heads, "width": 4}
        assert compare("text_query", 5, 2, ObjectiveConfig(loss=loss, chunk=4), **sizes) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gram", "metric"])
@pytest.mark.parametrize("heads", [1, 4, 8, 16])
@pytest.mark.parametrize("tokens", [1, 2, 8, 32, 64])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_literal_form_at_size(
    loss: LossName, tokens: int, heads: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "gram_is_cheaper", lambda **_: form == "gram")
    for kind in ("text_query", "image_query"):
        for images, captions, chunk in ((33, 2, 32), (65, 1, 64)):
            sizes = {"tokens": tokens, "heads": heads, "width": 8}
            assert compare(kind, images, captions, ObjectiveConfig(loss=loss, chunk=chunk), **sizes) < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_equals_open_clip(loss: LossName) -> None:
    from open_clip.loss import ClipLoss, SigLipLoss

    image, text, _ = literal.features("class_token", 9, 9)
    own = parameters(None)
    assert isinstance(image, Pooled) and isinstance(text, Pooled)
    leaves = [image.vector_BD, text.vector_BD, own.logit_scale]
    unit = [torch.nn.functional.normalize(side, dim=-1) for side in leaves[:2]]
    if loss == "softmax":
        own = own._replace(logit_bias=None)
        expected = ClipLoss()(*unit, own.logit_scale.exp())
    else:
        assert own.logit_bias is not None
        leaves.append(own.logit_bias)
        expected = SigLipLoss()(*unit, own.logit_scale.exp(), own.logit_bias)
    actual = loss_of_features(image, text, own, config=ObjectiveConfig(loss=loss, chunk=4)).loss
    gradients = [torch.autograd.grad(value, leaves) for value in (actual, expected)]
    assert literal.errors((actual, *gradients[0]), (expected, *gradients[1])) < 1e-12


def test_takes_its_parameters_from_the_model() -> None:
    _, _, out_proj_DD = literal.features("text_query", 4, 8)
    own = parameters(out_proj_DD)
    model = SimpleNamespace(
        config=SimpleNamespace(head=SimpleNamespace(kind="text_query"), mixing_temperature=1.7),
        head=SimpleNamespace(out_proj=out_proj_DD),
        logit_scale=own.logit_scale,
        logit_bias=own.logit_bias,
    )
    assert score_parameters(model) == own
    model.config.head.kind = "mean"  # its W_O is applied by the towers already
    images, texts = Pooled(torch.randn(4, 10)), Pooled(torch.randn(8, 10))
    loss_of_features(images, texts, score_parameters(model), config=ObjectiveConfig(), captions_per_image=2)


def test_captions_that_are_not_so_many_an_image() -> None:
    image, text, out_proj_DD = literal.features("text_query", 4, 7)
    with pytest.raises(ValueError, match="7 captions came with 4 images; 2 captions an image make 8"):
        loss_of_features(image, text, parameters(out_proj_DD), config=ObjectiveConfig(), captions_per_image=2)


def test_the_gradient_follows_what_the_loss_is_used_for() -> None:
    image, text, out_proj_DD = literal.features("text_query", 4, 4)
    loss = loss_of_features(image, text, parameters(out_proj_DD), config=ObjectiveConfig()).loss
    once, thrice = (torch.autograd.grad(factor * loss, image[0], retain_graph=True)[0] for factor in (1, 3))
    torch.testing.assert_close(3 * once, thrice)


@pytest.mark.parametrize("loss", LOSSES)
def test_large_logits_in_fp32(loss: LossName) -> None:
    """A scale of 100: exponentials of the logits overflow, and the losses of many pairs underflow."""
    image, text, out_proj_DD = literal.features("text_query", 12, 12, dtype=torch.float32)
    own = parameters(out_proj_DD, scale=4.60517, bias=-10.0, dtype=torch.float32)
    actual = loss_of_features(image, text, own, config=ObjectiveConfig(loss=loss)).loss
    gradients = torch.autograd.grad(actual, (*image, *text, own.logit_scale))
    wide = [t.detach().double().requires_grad_() for t in (*image, *text, own.logit_scale)]
    assert out_proj_DD is not None and own.logit_bias is not None
    score_BT = literal.scores(Mixture(*wide[:2]), Query(*wide[2:4]), out_proj_DD=out_proj_DD.double(), temperature=1.7)
    expected = literal.loss(loss, score_BT, wide[4], own.logit_bias.double(), 1)
    exact = torch.autograd.grad(expected, wide)
    for a, e in zip((actual, *gradients), (expected, *exact), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4 * e.abs().max().item())


def test_a_pair_far_on_the_right_side_keeps_its_small_loss() -> None:
    """`log(1 + exp(-x))` of a positive is not the difference of two large numbers."""
    vector_BD = torch.eye(2, dtype=torch.float32)
    own = parameters(None, scale=torch.tensor(40.0).log().item(), bias=-20.0, dtype=torch.float32)
    loss = loss_of_features(Pooled(vector_BD), Pooled(vector_BD), own, config=ObjectiveConfig()).loss
    torch.testing.assert_close(loss.item(), 2 * torch.tensor(-20.0, dtype=torch.float64).exp().log1p().item())


@pytest.mark.parametrize("kind", ["text_query", "class_token"])
@pytest.mark.parametrize("loss", LOSSES)
def test_keeps_nothing_of_the_number_of_pairs(loss: LossName, kind: Head) -> None:
    """What waits for the backward pass grows with images and captions, not with their product."""

    def kept(images: int) -> int:
        sizes = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        image, text, out_proj_DD = literal.features(kind, images, images)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss_of_features(image, text, parameters(out_proj_DD), config=ObjectiveConfig(loss=loss, chunk=16))
        assert max(sizes) < images**2
        return sum(sizes)

    assert kept(400) < 2.1 * kept(200)


def test_images_are_prepared_once_for_all_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = list[int]()
    make = scoring._gram

    def noted(value: Tensor, metric: Tensor) -> Tensor:
        prepared.append(len(value))
        return make(value, metric)

    monkeypatch.setattr(scoring, "gram_is_cheaper", lambda **_: True)
    monkeypatch.setattr(scoring, "_gram", noted)
    image, text, out_proj_DD = literal.features("text_query", 6, 24)
    for loss in LOSSES:
        prepared.clear()
        config = ObjectiveConfig(loss=loss, chunk=4)
        loss_of_features(image, text, parameters(out_proj_DD), config=config, captions_per_image=4)
        assert prepared == [6]


@pytest.mark.parametrize("loss", LOSSES)
def test_held_pairs_are_counted_and_get_no_gradient(loss: LossName, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gram matrix that is too small breaks Cauchy-Schwarz for every pair."""
    monkeypatch.setattr(scoring, "gram_is_cheaper", lambda **_: True)
    make = scoring._gram
    monkeypatch.setattr(scoring, "_gram", lambda value, metric: 1e-9 * make(value, metric))
    image, text, out_proj_DD = literal.features("text_query", 5, 10)
    own = parameters(out_proj_DD)
    output = loss_of_features(image, text, own, config=ObjectiveConfig(loss=loss, chunk=3), captions_per_image=2)
    assert output.clamped_pairs.item() == 50
    assert out_proj_DD is not None
    for gradient in torch.autograd.grad(output.loss, (*image, *text, out_proj_DD)):
        assert not gradient.any()
