"""Schedule and parameter groups."""

import math

import pytest
import torch

import llip
from llip.fields import override
from llip.recipes import recipe
from llip.training.optimizer import build_optimizer, learning_rate, uses_weight_decay

CONFIG = override(recipe("clip_tiny"), {"steps": 12, "learning_rate": 2.0, "optimizer.warmup_steps": 4})


def test_warm_up_is_a_line_that_ends_at_the_full_rate() -> None:
    assert [learning_rate(step, CONFIG) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_cosine_falls_to_zero_after_the_last_update() -> None:
    rates = [learning_rate(step, CONFIG) for step in range(4, 13)]
    assert rates[4] == pytest.approx(1.0)
    assert rates == pytest.approx([1 + math.cos(math.pi * i / 8) for i in range(9)])
    assert rates[-1] == 0


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert learning_rate(0, override(CONFIG, {"optimizer.warmup_steps": 0})) == 2.0


def test_a_warm_up_given_as_a_share_follows_the_length_of_the_run() -> None:
    shared = override(CONFIG, {"optimizer.warmup_share": 0.25, "steps": 80})
    assert (shared.warmup_steps, override(shared, {"steps": 2}).warmup_steps) == (20, 0)
    assert recipe("llip_b16_k64").warmup_steps == 2000


@pytest.mark.parametrize("name", ["clip_tiny", "siglip_tiny", "llip_tiny_k8", "learned_query_tiny_k8"])
def test_only_matrices_decay(name: str) -> None:
    model = llip.create_model(name)
    plain = {n for n, p in model.named_parameters() if not uses_weight_decay(p)}
    assert {"logit_scale", "vision.norm_after.weight", "vision.norm_after.bias"} <= plain
    assert ("vision.tokens" in plain) == (model.config.vision.tokens == 1)  # CLIP's class token is a vector
    assert all(
        n.endswith(("bias", "norm_before.weight", "norm_after.weight", "scale", "tokens")) or "norm" in n for n in plain
    )
    assert not [n for n, p in model.named_parameters() if uses_weight_decay(p) and ("norm" in n or "bias" in n)]


def test_groups_hold_every_parameter_once() -> None:
    model = llip.create_model("llip_tiny_k8")
    optimizer = build_optimizer(model, override(CONFIG, {"optimizer.weight_decay": 0.3}))
    first, second = optimizer.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.3, 0.0)
    assert {id(p) for p in first["params"] + second["params"]} == {id(p) for p in model.parameters()}
    assert len(first["params"]) + len(second["params"]) == len(list(model.parameters()))


def test_a_parameter_that_does_not_decay_keeps_its_value_without_gradient() -> None:
    model = llip.create_model("siglip_tiny")
    optimizer = build_optimizer(model, override(CONFIG, {"learning_rate": 0.1, "optimizer.weight_decay": 0.5}))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    scale, matrix = model.logit_scale.item(), model.text.position.detach().clone()
    optimizer.step()
    assert model.logit_scale.item() == scale
    torch.testing.assert_close(model.text.position.detach(), matrix * (1 - 0.1 * 0.5))
