"""Stretched positions: what stays, what is new, and which captions gain by it."""

import pytest
import torch
from helpers.evaluation_samples import make_sets

from llip import create_model
from llip.contrastive import ContrastiveModel
from llip.data.tokenizer import tokenize
from llip.evaluation import evaluate_model
from llip.evaluation.long_captions import KEPT, stretch_context, stretched

LONG = 70


def model_of(recipe: str) -> ContrastiveModel:
    torch.manual_seed(0)
    return create_model(recipe).eval()


def test_the_first_positions_stay_and_the_others_are_on_the_line_between_their_ends() -> None:
    position_LW = torch.randn(32, 8)
    found = stretched(position_LW, 56)
    assert found.shape == (56, 8) and torch.equal(found[:KEPT], position_LW[:KEPT])
    for place in range(KEPT, 56):
        at = (place - KEPT) * (32 - KEPT - 1) / (56 - KEPT - 1)
        low = min(int(at), 32 - KEPT - 2)
        expected = position_LW[KEPT + low] * (low + 1 - at) + position_LW[KEPT + low + 1] * (at - low)
        torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["llip_tiny_k8", "siglip_tiny", "image_query_tiny_k8"])
@torch.inference_mode()
def test_short_captions_have_their_features_and_long_ones_end_later(recipe: str) -> None:
    short = ["a cat", "three things at the top left"]
    long = ["a cat " * 20 + "and a dog", "a cat " * 20 + "and a tree"]  # apart only beyond the trained context
    model = model_of(recipe)
    trained = model.config.text.context_length
    before = [model.encode_text(tokenize(texts, trained)) for texts in (short, long)]
    stretch_context(model, LONG)
    after = [model.encode_text(tokenize(texts, model.config.text.context_length)) for texts in (short, long)]
    for first, second in zip(before[0], after[0], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(features[0], features[1]) for features in before[1]), "cut off, they were the same"
    assert any((features[0] - features[1]).abs().max() > 1e-4 for features in after[1])
    assert len(evaluate_model(model, make_sets(), progress=False)) > 10


def test_a_length_that_is_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="--context-length 32: this model was trained with 32 tokens; take more"):
        stretch_context(model_of("siglip_tiny"), 32)
