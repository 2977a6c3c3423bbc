"""Recipes: the paper's numbers, and a name for each."""

import typing

import pytest

from llip.config import Head
from llip.recipes import RECIPES, recipe

SIZES = {
    # d, vision width / layers / head width, text width / heads / layers, context, temperature, norm, learning rate
    "b32": (512, 768, 12, 64, 512, 8, 12, 77, 5.0, False, 5e-4),
    "b16": (512, 768, 12, 64, 512, 8, 12, 77, 5.0, False, 5e-4),
    "l14": (768, 1024, 24, 64, 768, 12, 12, 64, 1.0, False, 4e-4),
    "h14": (1024, 1280, 32, 80, 1024, 16, 24, 77, 5.0, True, 4e-4),
    "g14": (1280, 1664, 48, 104, 1280, 20, 32, 77, 5.0, True, 4e-4),
}


@pytest.mark.parametrize("size", SIZES)
def test_llip_has_the_paper_s_towers_and_head(size: str) -> None:
    run = recipe(f"llip_{size}_k64")
    vision, text, head = run.model.vision, run.model.text, run.model.head
    towers = (run.model.embed_dim, vision.width, vision.layers, vision.head_width, text.width, text.heads, text.layers)
    assert (*towers, text.context_length, head.temperature, head.norm, run.optimizer.learning_rate) == SIZES[size]
    assert (vision.image_size, vision.patch_size, vision.tokens) == (224, int(size[1:]), 64)
    assert vision.mlp_width == (8192 if size == "g14" else None)
    assert (head.kind, head.heads, head.patch_tokens) == ("text_query", 8, False)
    assert run.activation_checkpointing == (size in ("h14", "g14"))


def test_the_schedule_is_the_paper_s() -> None:
    run = recipe("llip_b16_k64")
    assert (run.steps, run.data.batch_size, run.optimizer.warmup_steps) == (390_624, 32_768, 2000)
    assert run.samples == pytest.approx(12.8e9, rel=1e-4)
    assert (run.optimizer.weight_decay, run.optimizer.eps, run.data.crop_scale) == (0.2, 1e-6, (0.9, 1.0))
    assert run.precision == "bf16"


def test_objectives_differ_in_loss_bias_and_beta2_alone() -> None:
    clip, siglip, llip = recipe("clip_b32"), recipe("siglip_b32"), recipe("llip_b32_k32")
    assert (clip.objective.loss, siglip.objective.loss, llip.pairs.loss) == ("softmax", "sigmoid", "sigmoid")
    assert (clip.optimizer.betas, siglip.optimizer.betas, llip.optimizer.betas) == (
        (0.9, 0.98),
        (0.9, 0.95),
        (0.9, 0.95),
    )
    assert (clip.model.init_logit_bias, siglip.model.init_logit_bias, llip.model.init_logit_bias) == (None, -10, -10)
    assert clip.model.vision == siglip.model.vision and clip.model.head == siglip.model.head
    assert clip.model.init_logit_scale == siglip.model.init_logit_scale == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("kind", ["register", "mean", "learned_query", "image_query"])
def test_ablations_differ_from_llip_in_the_head_alone(kind: str) -> None:
    llip, ablation = recipe("llip_b32_k64"), recipe(f"{kind}_b32_k64")
    assert ablation.model.head.kind == kind
    assert (ablation.objective, ablation.optimizer, ablation.data) == (llip.pairs, llip.optimizer, llip.data)
    tokens = (ablation.model.vision.tokens, ablation.model.text.tokens)
    assert tokens == ((1, 64) if kind == "image_query" else (64, 1))


def test_every_name_gives_a_configuration() -> None:
    assert len(RECIPES) == 6 * 2 + 5 * 15 + 10
    for name in RECIPES:
        assert recipe(name).model.embed_dim > 0
    assert {recipe(name).model.head.kind for name in RECIPES} == set(typing.get_args(Head))


def test_an_unknown_name_is_answered_with_those_near_it() -> None:
    with pytest.raises(ValueError, match="there is no recipe 'llip_b32_k46'; did you mean llip_b32_k64"):
        recipe("llip_b32_k46")
