"""FLAIR against its formulas: patches and an empty token mixed by captions, and a global loss beside them."""

import torch
from helpers import literal

from llip.config import ObjectiveConfig
from llip.contrastive import ContrastiveModel, create_model
from llip.fields import override
from llip.model.features import Mixture, MixtureProjection, Pooled, Query
from llip.pairs import accumulation
from llip.recipes import recipe

IMAGES, CAPTIONS = 5, 2


def small_model() -> ContrastiveModel:
    torch.manual_seed(0)
    return create_model(override(recipe("flair_tiny"), {"model.head.global_weight": 0.25})).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 49406, (CAPTIONS * IMAGES, 6), generator=random)
    ids[:, -1] = 49407
    return torch.randn(IMAGES, 3, 48, 48, generator=random, dtype=torch.float64), ids


def literal_loss(model: ContrastiveModel) -> torch.Tensor:
    """A quarter of the global loss and three of that of patches, zeros and captions, as written."""
    pixels, ids = batch()
    head, states = model.head, model.vision(pixels)
    assert isinstance(head.image, MixtureProjection) and head.global_image is not None
    assert states.shape[1] == 1 + 16 and model.config.mixing_temperature == 4.0  # the root of 64 / 4
    sides = []
    for matrix in (head.image.key_proj, head.image.value_proj):
        tokens = torch.cat([states[:, 1:] @ matrix, torch.zeros(IMAGES, 1, 64, dtype=torch.float64)], dim=1)
        sides.append(tokens.unflatten(2, (4, 16)).transpose(1, 2))
    texts = model.encode_text(ids)
    assert isinstance(texts, Query)
    mixed = literal.scores(Mixture(*sides), texts, out_proj_DD=head.out_proj, temperature=4.0)
    pooled = Pooled(states[:, 0] @ head.global_image.proj), Pooled(texts.target_BD)
    alone = literal.scores(*pooled, out_proj_DD=None, temperature=1.0)
    losses = [literal.loss("sigmoid", s, model.logit_scale, model.logit_bias, CAPTIONS) for s in (mixed, alone)]
    return 0.75 * losses[0] + 0.25 * losses[1]


def test_the_loss_and_its_gradients_equal_the_formulas_in_parts_too() -> None:
    pixels, ids = batch()
    model = small_model()
    expected = literal_loss(model)
    expected_gradients = torch.autograd.grad(expected, list(model.parameters()))
    for count in (1, 2):
        model.zero_grad()
        ids_CBL = ids.unflatten(0, (CAPTIONS, -1)).tensor_split(count, dim=1)
        parts = [(p, i.flatten(0, 1)) for p, i in zip(pixels.tensor_split(count), ids_CBL, strict=True)]
        output = accumulation.backward(model, parts, config=ObjectiveConfig(), captions_per_image=CAPTIONS)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert literal.errors([output.loss, *gradients], [expected.detach(), *expected_gradients]) < 1e-12


def test_scores_are_those_of_the_mixture_alone() -> None:
    model, (pixels, ids) = small_model().eval(), batch()
    images, texts, *_ = model(pixels, ids)
    assert isinstance(images, Mixture)
    expected = literal.scores(images, texts, out_proj_DD=model.head.out_proj, temperature=4.0)
    torch.testing.assert_close(model.pair_scores(images, texts), expected)
    assert images.key_BMKE.shape[2] == 17 and not images.value_BMKE[:, :, -1].any()
