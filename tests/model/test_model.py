"""Every kind of model against the paper's formulae, written out sample by sample, in float64."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import plain_model

import llip
from llip.config import QUERIED_HEADS, Head, HeadConfig, ModelConfig, TextConfig, VisionConfig
from llip.contrastive import ContrastiveModel, create_model
from llip.model.features import Mixture, Pooled, Query

END = 30
CAPTIONS = [[28, 4, END], [28, 4, 9, 2, 2, 7, END], [28, END], [28, 7, 7, 1, END], [28, 4, 9, 3, END]]
PIXELS = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def token_ids(captions: list[list[int]]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(words) for words in captions], batch_first=True)


def config(kind: Head, **head: Any) -> ModelConfig:
    tokens = 1 if kind == "class_token" else 3
    return ModelConfig(
        embed_dim=12,
        vision=VisionConfig(
            image_size=8, patch_size=4, width=16, layers=2, head_width=8, tokens=1 if kind == "image_query" else tokens
        ),
        text=TextConfig(
            context_length=8, vocabulary=31, width=8, heads=2, layers=2, tokens=tokens if kind == "image_query" else 1
        ),
        head=HeadConfig(kind=kind, **(head | ({"heads": 2, "temperature": 2.0} if kind in QUERIED_HEADS else {}))),
        init_logit_bias=-10.0,
    )


CONFIGS = {
    kind: config(kind) for kind in ("class_token", "register", "mean", "learned_query", "text_query", "image_query")
}
CONFIGS |= {f"{kind}_norm": config(kind, norm=True) for kind in ("mean", "learned_query", "text_query", "image_query")}
CONFIGS |= {f"{kind}_patches": config(kind, patch_tokens=True) for kind in ("mean", "learned_query", "text_query")}
SHARED: tuple[tuple[Head, bool, bool], ...] = (
    ("mean", False, False),
    ("learned_query", True, False),
    ("text_query", False, False),
    ("text_query", True, True),
    ("image_query", False, False),
)
CONFIGS |= {
    f"{kind}_shared{'_norm' * norm}": config(kind, shared_projections=True, norm=norm, patch_tokens=patch_tokens)
    for kind, norm, patch_tokens in SHARED
}


def random_model(model_config: ModelConfig, seed: int = 1) -> ContrastiveModel:
    """Weights without special values: biases and norms too are random."""
    torch.manual_seed(seed)
    model = create_model(model_config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5) if parameter.ndim else None
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_features_and_gradients_are_those_of_the_paper(name: str) -> None:
    model = random_model(CONFIGS[name])
    images, texts = model(PIXELS, token_ids(CAPTIONS))
    feature_BTD = model.contextual_features(images, texts)
    if isinstance(texts, Mixture):
        target_BTD = images.target_BD[:, None].expand(-1, len(CAPTIONS), -1)
    else:
        target_BTD = (texts.target_BD if isinstance(texts, Query) else texts.vector_BD).expand(len(PIXELS), -1, -1)
    plain = [plain_model.contextual_feature(model, pixels, words) for pixels in PIXELS for words in CAPTIONS]
    plain_feature_BTD = F.normalize(torch.stack([feature for feature, _ in plain]), dim=-1).view_as(feature_BTD)
    plain_target_BTD = torch.stack([target for _, target in plain]).view_as(target_BTD)
    torch.testing.assert_close(feature_BTD, plain_feature_BTD, rtol=0, atol=1e-12)
    torch.testing.assert_close(target_BTD, plain_target_BTD, rtol=1e-12, atol=1e-12)

    used = [(name, p) for name, p in model.named_parameters() if not name.startswith("logit")]
    weight = torch.randn_like(feature_BTD)
    gradients = [
        torch.autograd.grad((weight * (f + t.sigmoid())).sum(), [p for _, p in used])
        for f, t in ((feature_BTD, target_BTD), (plain_feature_BTD, plain_target_BTD))
    ]
    for (parameter_name, _), lean, literal in zip(used, *gradients, strict=True):
        torch.testing.assert_close(lean, literal, rtol=1e-9, atol=1e-12, msg=partial("{}: {}".format, parameter_name))
        assert literal.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", CONFIGS)
def test_pair_scores_are_the_cosines_of_the_contextual_features(name: str) -> None:
    model = random_model(CONFIGS[name])
    images, texts = model(PIXELS, token_ids(CAPTIONS))
    feature_BTD = model.contextual_features(images, texts)
    target_D = images.target_BD[1] if isinstance(texts, Mixture) else texts[-1][2]
    scores_BT = model.pair_scores(images, texts)
    assert scores_BT.shape == (3, 5)
    torch.testing.assert_close(scores_BT[1, 2], feature_BTD[1, 2] @ F.normalize(target_D, dim=0), rtol=0, atol=1e-12)
    assert torch.equal(model.pair_scores(images, model.prepare_texts(texts)), scores_BT)


def test_feature_types_follow_the_head() -> None:
    sides = {
        kind: tuple(map(type, create_model(CONFIGS[kind])(PIXELS.float(), token_ids(CAPTIONS)))) for kind in CONFIGS
    }
    assert sides["class_token"] == sides["register"] == sides["mean"] == sides["learned_query"] == (Pooled, Pooled)
    assert sides["text_query"] == sides["text_query_patches"] == (Mixture, Query)
    assert sides["image_query"] == (Query, Mixture)


def test_shapes_of_llip() -> None:
    images, texts = create_model(config("text_query", patch_tokens=True))(PIXELS.float(), token_ids(CAPTIONS))
    assert images.key_BMKE.shape == images.value_BMKE.shape == (3, 2, 3 + 4, 6)
    assert texts.query_BME.shape == (5, 2, 6) and texts.target_BD.shape == (5, 12)


def test_shared_projections_are_two_matrices_for_tokens_and_patches() -> None:
    shared = create_model(config("text_query", patch_tokens=True, shared_projections=True))
    assert shared.head.image.key_proj.shape == shared.head.image.value_proj.shape == (16, 12)
    own = create_model(config("text_query", patch_tokens=True))
    own.load_state_dict(
        {
            name: tensor.expand_as(own.state_dict()[name]) if name.startswith("head.image") else tensor
            for name, tensor in shared.state_dict().items()
        }
    )
    scores = [model.pair_scores(*model(PIXELS.float(), token_ids(CAPTIONS))) for model in (shared, own)]
    torch.testing.assert_close(*scores)
    wide = replace(config("text_query", shared_projections=True), embed_dim=512)
    torch.manual_seed(0)
    weights = dict(create_model(wide).named_parameters())
    assert weights["head.image.value_proj"].std().item() == pytest.approx(16**-0.5, rel=0.06)


def test_initial_values_follow_the_paper() -> None:
    torch.manual_seed(0)
    recipe = llip.recipe("llip_tiny_k16")
    model = create_model(recipe)
    width, text_width, dim = recipe.model.vision.width, recipe.model.text.width, recipe.model.embed_dim
    expected = {
        "vision.tokens": width**-0.5,
        "vision.position": recipe.model.vision.position_std or width**-0.5,
        "head.image.key_proj": width**-0.5,
        "head.image.value_proj": width**-0.5,
        "head.text.query_proj": text_width**-0.5,
        "head.text.target_proj": text_width**-0.5,
        "head.out_proj": dim**-0.5,
        "text.token_embedding.weight": 0.02,
        "text.position": 0.01,
        "text.transformer.blocks.0.attention.out.weight": text_width**-0.5 * 2**-0.5,
        "text.transformer.blocks.0.mlp_up.weight": (2 * text_width) ** -0.5,
    }
    parameters = dict(model.named_parameters())
    for name, std in expected.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.06), name
    assert model.logit_scale.item() == pytest.approx(math.log(recipe.model.init_logit_scale))
    assert model.logit_bias is not None and model.logit_bias.item() == recipe.model.init_logit_bias


def test_clip_has_no_bias_and_its_scale_is_clamped() -> None:
    model = create_model(replace(CONFIGS["class_token"], init_logit_bias=None))
    assert model.logit_bias is None
    for start, end in ((9.0, 100.0), (-1.0, 1.0), (3.0, 20.085536923)):
        torch.nn.init.constant_(model.logit_scale, start)
        model.clamp_logit_scale(100.0)
        assert model.logit_scale.exp().item() == pytest.approx(end)


def test_wrong_input_is_refused_by_shape() -> None:
    model = create_model(CONFIGS["text_query"])
    with pytest.raises(ValueError, match=r"\[1, 3, 9, 8\]; this model takes \[B, 3, 8, 8\]"):
        model.encode_image(torch.zeros(1, 3, 9, 8))
    with pytest.raises(ValueError, match="captions have 9 tokens; this model takes at most 8"):
        model.encode_text(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="Mixture and Pooled do not belong to one model"):
        model.contextual_features(model.encode_image(PIXELS.float()), Pooled(torch.zeros(1, 12)))


def test_public_names_are_exported() -> None:
    assert llip.create_model is create_model
    assert llip.recipe("clip_b32").model.embed_dim == 512
    with pytest.raises(ValueError, match="no recipe 'clip_b33'; did you mean clip_b32"):
        llip.create_model("clip_b33")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llip.nothing  # noqa: B018
