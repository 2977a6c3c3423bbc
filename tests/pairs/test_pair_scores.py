"""Pair scores against the literal form: values and gradients, both ways of scoring mixtures, in every precision."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from helpers import literal
from torch import Tensor

from llip import devices
from llip.config import Head, ObjectiveConfig
from llip.model.features import ImageFeatures, Mixture, Pooled, Query, TextFeatures
from llip.pairs import scoring
from llip.pairs.losses import ScoreParameters, loss_of_features
from llip.pairs.mixture_tiles import GramRows, OutputGramRows

FORMS = ("gram", "metric")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    force(request.param, monkeypatch)
    return request.param


def force(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "gram_is_cheaper", lambda **_: form == "gram")


def compare(
    kind: Head,
    images: int,
    texts: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    chunk: int = 1024,
    tile: int | None = None,
    **sizes: Any,
) -> float:
    """Largest error of the scores and of all gradients, in fp64."""
    if tile is not None:
        monkeypatch.setattr(devices, "CPU", replace(devices.CPU, tile=tile))
    image, text, out_proj_DD = literal.features(kind, images, texts, **sizes)
    leaves = [t for t in (*image, *text, out_proj_DD) if t is not None]
    expected = literal.scores(image, text, out_proj_DD=out_proj_DD, temperature=1.7)
    actual = scoring.pair_scores(image, text, out_proj_DD=out_proj_DD, temperature=1.7, chunk=chunk)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    pairs = [torch.autograd.grad(scores, leaves, weight, materialize_grads=True) for scores in (actual, expected)]
    return literal.errors((actual, *pairs[0]), (expected, *pairs[1]))


@pytest.mark.parametrize("heads", [1, 4, 8, 16])
@pytest.mark.parametrize("tokens", [1, 2, 8, 32, 64])
def test_mixtures_equal_the_literal_form(tokens: int, heads: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare("text_query", 3, 7, monkeypatch, chunk=4, tokens=tokens, heads=heads, width=3) < 1e-12


@pytest.mark.parametrize(
    ("images", "texts", "chunk"), [(5, 1, 4), (1, 9, 4), (6, 8, 4), (6, 9, 3), (2, 70, 65), (7, 7, 1)]
)
def test_borders_of_chunks_and_tiles(
    images: int, texts: int, chunk: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tile in (1, 100, 1 << 19):  # one row a tile, a few, all
        assert compare("text_query", images, texts, monkeypatch, chunk=chunk, tile=tile) < 1e-12


def test_mixed_by_images(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare("image_query", 5, 9, monkeypatch, chunk=4, tile=50) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["class_token", "text_query"])
def test_columns_prepared_once_have_the_same_scores(kind: Head, dtype: torch.dtype, form: str) -> None:
    image, text, out_proj_DD = literal.features(kind, 5, 9, dtype=dtype)
    expected = scoring.pair_scores(image, text, out_proj_DD=out_proj_DD, temperature=1.7)
    assert isinstance(text, Pooled | Query)
    message = scoring.message(text, out_proj_DD=out_proj_DD)
    assert message.vector_BW.dtype == dtype
    assert torch.equal(scoring.pair_scores(image, message, out_proj_DD=out_proj_DD, temperature=1.7), expected)


def test_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare("class_token", 5, 9, monkeypatch, chunk=4, tile=8) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 4, 8, 16])
@pytest.mark.parametrize("tokens", [1, 2, 8, 32, 64])
@pytest.mark.parametrize(("images", "texts", "chunk"), [(33, 129, 64), (8, 257, 1024), (65, 65, 17)])
def test_mixtures_equal_the_literal_form_at_size(
    tokens: int, heads: int, images: int, texts: int, chunk: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare("text_query", images, texts, monkeypatch, chunk=chunk, tokens=tokens, heads=heads, width=8) < 1e-12


@pytest.mark.parametrize("gradients", [True, False])
def test_choice_of_the_form(gradients: bool) -> None:
    """The form of the fewer multiply-adds: few columns do not pay for a Gram matrix, nor do many tokens."""

    def gram(tokens: int, dim: int, columns: int) -> bool:
        image, text, out_proj_DD = literal.features("text_query", 1, 1, tokens=tokens, heads=8, width=dim // 8)
        prepared = scoring.prepare(
            image, text, out_proj_DD=out_proj_DD, temperature=1.0, total=columns, gradients=gradients
        )
        assert isinstance(prepared.rows, GramRows | OutputGramRows)
        return isinstance(prepared.rows, GramRows)

    # B/32 and L/14 with 32 tokens and H/14 with 64 at the paper's batch, and zero-shot with 1,000 prompts.
    for columns in (1_000, 32_768):
        assert gram(32, 512, columns) and gram(32, 768, columns) and gram(64, 1024, columns)
    assert not gram(32, 768, 60)
    assert not gram(128, 512, 32_768)
    # As many tokens as a head is wide: a symmetric matrix is cheaper than W_O W_Oᵀ, a whole one is not.
    assert gram(64, 512, 32_768) is not gradients


@pytest.mark.parametrize("gradients", [True, False])
def test_choice_changes_at_some_number_of_captions_and_the_scores_do_not(
    gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = partial(scoring.gram_is_cheaper, tokens=2, heads=2, dim=12, gradients=gradients)
    first = next(columns for columns in range(1, 40) if choose(columns=columns))
    assert first > 1 and choose(columns=40)
    for columns in (first - 1, first):
        assert compare("text_query", 3, columns, monkeypatch, tokens=2, heads=2, width=6) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["class_token", "text_query"])
def test_scores_and_loss_compile_without_a_break(kind: Head, form: str) -> None:
    image, text, out_proj_DD = literal.features(kind, 4, 4)
    own = ScoreParameters(out_proj_DD, 1.7, torch.tensor(1.0).double(), torch.tensor(-2.0).double())

    def stage(image: ImageFeatures, text: TextFeatures) -> Tensor:
        score_BT = scoring.pair_scores(image, text, out_proj_DD=out_proj_DD, temperature=1.7)
        return score_BT.square().sum() + loss_of_features(image, text, own, config=ObjectiveConfig()).loss

    torch.compiler.reset()
    values = [f(image, text) for f in (stage, torch.compile(stage, fullgraph=True, backend="aot_eager"))]
    gradients = [torch.autograd.grad(value, (*image, *text)) for value in values]
    assert literal.errors((values[0], *gradients[0]), (values[1], *gradients[1])) < 1e-12


def test_sides_that_do_not_belong_together() -> None:
    mixture, query, out_proj_DD = literal.features("text_query", 2, 2)
    pooled = Pooled(torch.ones(2, 10))
    for images, texts in ((mixture, pooled), (pooled, query), (mixture, mixture), (query, query)):
        with pytest.raises(ValueError, match="cannot be compared"):
            scoring.pair_scores(images, texts, out_proj_DD=out_proj_DD, temperature=1.0)


def test_scores_stay_within_one(form: str) -> None:
    """A mixture of equal tokens, projected exactly onto its caption, in fp32."""
    target_BD = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    value_BMKE = target_BD.view(64, 4, 1, 8).expand(-1, -1, 6, -1)
    images = Mixture(torch.randn(64, 4, 6, 8), value_BMKE)
    texts = Query(torch.randn(64, 4, 8), target_BD)
    score_BT = scoring.pair_scores(images, texts, out_proj_DD=torch.eye(32), temperature=1.0)
    assert score_BT.abs().max() <= 1
    torch.testing.assert_close(score_BT.diagonal(), torch.ones(64))


def test_autocast_does_not_reach_inside(form: str) -> None:
    image, text, out_proj_DD = literal.features("text_query", 4, 6, dtype=torch.float32)
    assert out_proj_DD is not None
    leaves = (*image, *text, out_proj_DD)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            score_BT = scoring.pair_scores(image, text, out_proj_DD=out_proj_DD, temperature=1.0)
        assert score_BT.dtype == torch.float32
        results.append([score_BT, *torch.autograd.grad(score_BT.square().sum(), leaves)])
    for without, within in zip(*results, strict=True):
        assert torch.equal(without, within)


def test_fp32_is_accurate(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, out_proj_DD = literal.features("text_query", 16, 40, tokens=8, heads=4, width=16, dtype=torch.float32)
    assert out_proj_DD is not None
    wide = [t.detach().double().requires_grad_() for t in (*image, *text, out_proj_DD)]
    actual = scoring.pair_scores(image, text, out_proj_DD=out_proj_DD, temperature=1.0)
    expected = literal.scores(Mixture(*wide[:2]), Query(*wide[2:4]), out_proj_DD=wide[4], temperature=1.0)
    gradients = torch.autograd.grad(actual.square().sum(), (*image, *text, out_proj_DD))
    exact = torch.autograd.grad(expected.square().sum(), wide)
    assert literal.errors((actual, *gradients), (expected, *exact)) < 1e-5


def regime(name: str) -> list[Tensor]:
    """Keys, values, queries and targets in bf16, W_O in fp32, of 32 images and captions."""
    image, text, out_proj_DD = literal.features("text_query", 32, 32, tokens=16, heads=8, width=32)
    key, value, query, target = (t.detach() for t in (*image, *text))
    assert out_proj_DD is not None
    out_proj_DD = out_proj_DD.detach() / 16
    if name == "uniform":  # as at the start of training: every token weighs nearly the same
        key = key / 20
    if name == "shared":  # tokens that are alike
        value = value / 10 + value[:, :, :1]
    if name in ("peaked", "cancelling"):  # one token has all the weight
        key = key * 8
    if name == "cancelling":  # the second half of the heads takes away all but 3% of what the first half gives
        for tensor in (key, query):
            tensor[:, 4:] = tensor[:, :4]
        value[:, 4:] = value[:, :4] + 0.03 * value[:, 4:]
        out_proj_DD[128:] = -out_proj_DD[:128]
    return [t.bfloat16() for t in (key, value, query, target)] + [out_proj_DD.float()]


def gradients(tensors: list[Tensor], score: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    """Of a sigmoid loss, with respect to features and W_O."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    score_BT = score(Mixture(*leaves[:2]), Query(*leaves[2:4]), out_proj_DD=leaves[4], temperature=1.0)
    scale, bias = torch.tensor([2.0, -2.0], dtype=torch.promote_types(score_BT.dtype, torch.float32)).unbind()
    return torch.autograd.grad(literal.loss("sigmoid", score_BT.to(scale.dtype), scale, bias, 1), leaves)


def literal_under_autocast(*args: Any, **kwargs: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return literal.scores(*args, **kwargs)


@pytest.mark.parametrize("name", ["uniform", "shared", "plain", "peaked", "cancelling"])
def test_bf16_is_no_less_accurate_than_the_literal_form(name: str, form: str) -> None:
    tensors = regime(name)
    exact = gradients([t.double() for t in tensors], literal.scores)
    errors = [
        [((a.double() - e).norm() / e.norm()).item() for a, e in zip(gradients(tensors, score), exact, strict=True)]
        for score in (scoring.pair_scores, literal_under_autocast)
    ]
    for ours, theirs in zip(*errors, strict=True):
        assert ours <= theirs


def test_cancelling_heads_need_the_gram_matrix_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `split_gram` rounding takes cosines beyond ±1; these are counted and get no gradient."""
    force("gram", monkeypatch)
    key, value, query, target, out_proj_DD = regime("cancelling")
    own = ScoreParameters(out_proj_DD, 1.0, torch.tensor(2.0), torch.tensor(-2.0))
    hits = [
        loss_of_features(Mixture(key, value), Query(query, target), own, config=config).clamped_pairs.item()
        for config in (ObjectiveConfig(split_gram=False), ObjectiveConfig())
    ]
    assert hits[0] > 0
    assert hits[1] == 0
