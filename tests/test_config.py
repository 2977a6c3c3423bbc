"""Configurations: checked when made, and the same after a trip through JSON."""

import dataclasses
import json
from typing import Any

import pytest

from llip.config import (
    DataConfig,
    HeadConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TextConfig,
    TrainingConfig,
    VisionConfig,
)
from llip.contrastive import create_model
from llip.fields import differences, from_dict, override, to_dict
from llip.recipes import recipe

CLIP = recipe("clip_b32")
LLIP = recipe("llip_b32_k64")


@pytest.mark.parametrize("name", ["clip_tiny", "llip_g14_k64", "image_query_b16_k32"])
def test_json_brings_back_an_equal_configuration(name: str) -> None:
    config = recipe(name)
    assert from_dict(TrainingConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_unknown_fields_are_named_with_their_place() -> None:
    values = to_dict(CLIP)
    values["model"]["vision"]["qkv_bias"] = 12
    with pytest.raises(
        ValueError, match=r"there is no setting model\.vision\.qkv_bias; model\.vision has head_width, im"
    ):
        from_dict(TrainingConfig, values)


def test_differences_name_fields_and_both_values() -> None:
    changed = dataclasses.replace(CLIP, steps=5000, optimizer=dataclasses.replace(CLIP.optimizer, betas=(0.9, 0.95)))
    assert differences(CLIP, changed) == ["optimizer.betas: None → (0.9, 0.95)", "steps: 390624 → 5000"]
    assert differences(CLIP, json.loads(json.dumps(to_dict(CLIP)))) == []


def test_configurations_are_frozen_and_have_no_positional_fields() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CLIP.steps = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        HeadConfig("text_query")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            VisionConfig,
            {"image_size": 225},
            r"model\.vision\.image_size is 225; it has to be a multiple of patch_size",
        ),
        (VisionConfig, {"width": 100}, r"model\.vision\.width is 100; it has to be a multiple of head_width 64"),
        (VisionConfig, {"layers": 0}, r"model\.vision\.layers is 0; it has to be at least 1"),
        (VisionConfig, {"tokens": 0}, r"model\.vision\.tokens is 0; it has to be at least 1"),
        (VisionConfig, {"patch_dropout": 1.0}, r"model\.vision\.patch_dropout is 1\.0; it has to be in \[0, 1\)"),
        (TextConfig, {"context_length": 2}, r"model\.text\.context_length is 2; it has to be at least 3"),
        (TextConfig, {"width": 100}, r"model\.text\.width is 100; it has to be a multiple of heads 8"),
        (TextConfig, {"tokens": 0}, r"model\.text\.tokens is 0; it has to be at least 1"),
        (HeadConfig, {"kind": "cls"}, r"model\.head\.kind is 'cls'; it has to be one of class_token, register, mean"),
        (HeadConfig, {"heads": 0}, r"model\.head\.heads is 0; it has to be at least 1"),
        (HeadConfig, {"temperature": 0.0}, r"model\.head\.temperature is 0\.0; it has to be positive"),
        (ObjectiveConfig, {"loss": "triplet"}, r"objective\.loss is 'triplet'; it has to be softmax or sigmoid"),
        (ObjectiveConfig, {"exchange": "tree"}, r"objective\.exchange is 'tree'; it has to be gather or ring"),
        (ObjectiveConfig, {"chunk": 0}, r"objective\.chunk is 0; it has to be at least 1"),
        (ObjectiveConfig, {"accumulation": 0}, r"objective\.accumulation is 0; it has to be at least 1"),
        (OptimizerConfig, {"learning_rate": 0.0}, r"optimizer\.learning_rate is 0\.0; it has to be positive"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, r"optimizer\.betas is \(0\.9, 1\.0\); it has to be two numbers"),
        (OptimizerConfig, {"weight_decay": -1.0}, r"optimizer\.weight_decay is -1\.0; it has to be at least 0"),
        (OptimizerConfig, {"max_logit_scale": 0.5}, r"optimizer\.max_logit_scale is 0\.5; it has to be at least 1"),
        (DataConfig, {"lanes": 12}, r"data\.lanes is 12; it has to be a divisor of data\.batch_size 32768"),
        (DataConfig, {"batch_size": 0}, r"data\.batch_size is 0; it has to be at least 1"),
        (HeadConfig, {"kind": "mean", "heads": 4}, r"head\.heads is 4; it has to be left at 8: no query mixes"),
        (
            HeadConfig,
            {"kind": "mean", "relative_temperature": True},
            r"relative_temperature is True; it has to be False",
        ),
        (HeadConfig, {"global_weight": 0.5}, r"global_weight is 0\.5; it has to be 0 where captions do not mix patch"),
        (HeadConfig, {"kind": "class_token", "temperature": 1.0}, r"temperature is 1\.0; it has to be left at 5\.0"),
        (ObjectiveConfig, {"accumulation": 2, "micro_batch": 8}, r"accumulation is 2; it has to be left out where ob"),
        (DataConfig, {"crop_scale": (1.0, 0.5)}, r"data\.crop_scale is \(1\.0, 0\.5\); it has to be two increasing"),
        (DataConfig, {"threads": 0}, r"data\.threads is 0; it has to be at least 1"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(kind: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)


def model(*, tokens: int = 4, text_tokens: int = 1, embed_dim: int = 512, **head: Any) -> ModelConfig:
    return ModelConfig(
        embed_dim=embed_dim,
        vision=VisionConfig(tokens=tokens),
        text=TextConfig(tokens=text_tokens),
        head=HeadConfig(**head),
        init_logit_bias=-10.0,
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"embed_dim": 500}, r"model\.head\.heads is 8; it has to be a divisor of embed_dim 500"),
        ({"kind": "class_token"}, r"model\.vision\.tokens is 4; it has to be 1 for a class_token head"),
        ({"kind": "image_query"}, r"model\.vision\.tokens is 4; it has to be 1 for a image_query head"),
        ({"text_tokens": 4}, r"model\.text\.tokens is 4; it has to be 1 for a text_query head"),
        (
            {"kind": "register", "patch_tokens": True},
            r"model\.head\.patch_tokens is True; it has to be False for",
        ),
    ],
)
def test_a_head_that_does_not_fit_the_towers_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**values)


def test_dropped_patches_cannot_be_mixed() -> None:
    with pytest.raises(ValueError, match=r"model\.vision\.patch_dropout is 0\.5; it has to be 0 where patches"):
        ModelConfig(
            embed_dim=512,
            vision=VisionConfig(patch_dropout=0.5),
            text=TextConfig(),
            head=HeadConfig(patch_tokens=True),
        )


def test_the_bias_and_beta2_follow_the_loss() -> None:
    softmax = override(LLIP, {"objective.loss": "softmax"})
    assert (LLIP.built_model.init_logit_bias, softmax.built_model.init_logit_bias) == (-10.0, None)
    assert (LLIP.betas, softmax.betas) == ((0.9, 0.95), (0.9, 0.98))
    relative = override(LLIP, {"logit_bias": None, "data.batch_size": 1024})
    assert relative.built_model.init_logit_bias == pytest.approx(-6.931472)
    assert override(softmax, {"optimizer.betas": (0.9, 0.99)}).betas == (0.9, 0.99)
    assert create_model(override(recipe("clip_tiny"), {"objective.loss": "sigmoid"})).logit_bias is not None


def test_a_relative_temperature_is_in_units_of_the_root_of_a_head_s_width() -> None:
    assert model(heads=8, temperature=2.0).mixing_temperature == 2.0
    assert model(heads=8, temperature=2.0, relative_temperature=True).mixing_temperature == 16.0
    assert model(heads=2, temperature=2.0, relative_temperature=True).mixing_temperature == 32.0


@pytest.mark.parametrize(
    ("base", "values", "message"),
    [
        (
            CLIP,
            {"steps": 2000, "optimizer": OptimizerConfig(warmup_steps=2000)},
            r"optimizer\.warmup_steps is 2000; it has to be below steps 2000",
        ),
        (CLIP, {"epochs": 1.0}, r"steps is 390624; it has to be given where epochs are not"),
        (CLIP, {"steps": None}, r"steps is None; it has to be given where epochs are not"),
        (CLIP, {"precision": "fp16"}, r"precision is 'fp16'; it has to be fp32 or bf16"),
        (CLIP, {"log_every": 0}, r"log_every is 0; it has to be at least 1"),
    ],
)
def test_a_contradictory_run_is_refused(base: TrainingConfig, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(base, **values)


def test_mixture_tokens_count_what_is_mixed() -> None:
    assert model().mixture_tokens == 4
    assert model(patch_tokens=True).mixture_tokens == 4 + 196
    assert model(kind="image_query", tokens=1, text_tokens=6).mixture_tokens == 6


@pytest.mark.parametrize(
    ("batch", "lanes"),
    [(64, 8), (32_768, 1024), (4096, 512), (512, 64), (36, 4), (7, 1), (24, 8), (96, 8), (1, 1), (3 * 2**20, 1024)],
)
def test_lanes_follow_from_the_batch(batch: int, lanes: int) -> None:
    assert DataConfig(batch_size=batch).lane_count == lanes
    assert DataConfig(batch_size=3 * batch, lanes=3).lane_count == 3


def test_micro_batches_follow_from_either_setting() -> None:
    assert ObjectiveConfig().micro_batches(10) == 1
    assert ObjectiveConfig(accumulation=5).micro_batches(10) == 5
    assert [ObjectiveConfig(micro_batch=4).micro_batches(n) for n in (1, 4, 5, 9)] == [1, 1, 2, 3]
    with pytest.raises(ValueError, match=r"objective\.accumulation is 12; it has to be at most 10, a rank's images"):
        ObjectiveConfig(accumulation=12).micro_batches(10)
