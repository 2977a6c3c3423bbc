"""Two-stage retrieval against the exact scores of all pairs."""

from typing import Literal

import pytest
import torch

from llip import create_model
from llip.contrastive import ContrastiveModel
from llip.evaluation import two_stage
from llip.evaluation.encode import scores
from llip.model.features import Mixture, Query, batch_slice

IMAGES, TEXTS = 50, 70

Gallery = tuple[ContrastiveModel, Mixture, Query, torch.Tensor]


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    torch.manual_seed(0)
    model = create_model("llip_tiny_k8").eval().requires_grad_(False)
    images = Mixture(torch.randn(IMAGES, 4, 8, 16), torch.randn(IMAGES, 4, 8, 16))
    texts = Query(3 * torch.randn(TEXTS, 4, 16), torch.randn(TEXTS, 64))
    return model, images, texts, scores(model, images, texts)


@pytest.mark.parametrize("at_work", [1, 100, 1 << 13])
def test_listed_pairs_have_their_exact_scores(gallery: Gallery, at_work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_stage, "BLOCK_PAIRS", at_work)
    model, images, texts, score_NT = gallery
    image_P = torch.cat([torch.randint(0, IMAGES, (300,)), torch.full((60,), 7)])
    text_P = torch.randint(0, TEXTS, (360,))
    found = two_stage.pair_list_scores(model, images, texts, image_P, text_P)
    torch.testing.assert_close(found, score_NT[image_P, text_P], rtol=1e-4, atol=1e-5)


@pytest.fixture
def index(gallery: Gallery) -> two_stage.AnchorIndex:
    model, images, texts, _ = gallery
    return two_stage.AnchorIndex(model, images, batch_slice(texts, slice(0, 20)))


@pytest.mark.parametrize(("direction", "items"), [("text_to_image", IMAGES), ("image_to_text", TEXTS)])
def test_with_all_as_candidates_it_is_exact(
    gallery: Gallery,
    index: two_stage.AnchorIndex,
    direction: Literal["text_to_image", "image_to_text"],
    items: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(two_stage, "BLOCK_SCORES", 3 * items)
    model, images, texts, score_NT = gallery
    found, score = two_stage.search(model, images, texts, index, candidates=1000, direction=direction)
    exact = score_NT.T if direction == "text_to_image" else score_NT
    assert found.shape == exact.shape
    torch.testing.assert_close(score, exact.sort(dim=1, descending=True).values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exact.gather(1, found), score, rtol=1e-4, atol=1e-5)


def test_candidates_are_the_nearest_by_the_index(gallery: Gallery, index: two_stage.AnchorIndex) -> None:
    model, images, texts, _ = gallery
    expected = (index.caption_vectors(texts) @ index.vector_NA.T).topk(9, dim=1).indices
    found, score = two_stage.search(model, images, texts, index, candidates=9)
    assert torch.equal(found.sort(dim=1).values, expected.sort(dim=1).values)
    assert (score.diff(dim=1) <= 0).all()


def test_anchors_as_many_as_directions_of_the_scores_give_exact_candidates(gallery: Gallery) -> None:
    """Images that are mixtures of one token have scores of rank D: 64 anchor captions determine them."""
    model, images, texts, _ = gallery
    alike = Mixture(*(tensor[:, :, :1].expand(-1, -1, 8, -1) for tensor in images))
    index = two_stage.AnchorIndex(model, alike, batch_slice(texts, slice(0, 64)))
    torch.testing.assert_close(
        index.vector_NA @ index.caption_vectors(texts).T, scores(model, alike, texts), rtol=0, atol=0.02
    )
