"""Settings by dotted path: every leaf can be read, set from text, and found again."""

import dataclasses
import typing
from typing import Any

import pytest

from llip.config import TrainingConfig
from llip.fields import convert, find_leaf, flat, leaves, override, value_of
from llip.recipes import recipe

BASE = recipe("llip_tiny_k8")


def test_every_leaf_has_a_path_of_its_own_and_every_short_spelling_one_meaning() -> None:
    found = leaves(TrainingConfig)
    names = [leaf.path for leaf in found] + [leaf.short for leaf in found if leaf.short and leaf.short != leaf.path]
    assert len(names) == len(set(names)) > 70
    assert flat(BASE)["model.head.heads"] == 4


def test_every_leaf_says_what_it_is() -> None:
    plain = {"width", "layers", "heads", "vocabulary", "betas", "eps", "mean", "interpolation"}
    assert {leaf.path.rpartition(".")[2] for leaf in leaves(TrainingConfig) if not leaf.doc} <= plain


@pytest.mark.parametrize(
    ("values", "path", "value"),
    [
        ({"k": 4}, "model.vision.tokens", 4),
        ({"learning-rate": "1e-4"}, "optimizer.learning_rate", 1e-4),
        ({"optimizer.betas": "0.8/0.9"}, "optimizer.betas", (0.8, 0.9)),
        ({"data.weights": [1, 2]}, "data.weights", (1.0, 2.0)),
        ({"compile": "true"}, "compile", True),
        ({"ema_decay": "none"}, "ema_decay", None),
        ({"epochs": 2}, "steps", None),
        ({"optimizer.warmup_share": 0.5}, "optimizer.warmup_steps", None),
        ({"objective.accumulation": 2}, "objective.micro_batch", None),
    ],
)
def test_text_and_short_spellings_are_read_as_the_field_means_them(
    values: dict[str, Any], path: str, value: Any
) -> None:
    assert value_of(override(BASE, values), path) == value


def test_several_values_are_checked_together() -> None:
    """Neither step of the way would be a configuration: 16 tokens on one head of width 96, a batch of 3."""
    config = override(BASE, {"model.embed_dim": 96, "model.head.heads": 12, "batch_size": 12, "data.lanes": 3})
    assert (config.model.embed_dim, config.model.head.heads, config.data.lane_count) == (96, 12, 3)
    assert config.model.vision is BASE.model.vision


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optimizer.weight_dekay": 1},
            "there is no setting 'optimizer.weight_dekay'; did you mean optimizer.weight",
        ),
        ({"tokens": 1}, "did you mean model.vision.tokens, model.text.tokens"),
        ({"steps": "1.5"}, "steps is '1.5'; it has to be a whole number or none"),
        ({"objective.loss": "hinge"}, "objective.loss is 'hinge'; it has to be softmax or sigmoid"),
        ({"optimizer.betas": "0.9"}, "optimizer.betas is '0.9'; it has to be 2 numbers"),
        ({"learning_rate": True}, "optimizer.learning_rate is True; it has to be a number"),
        ({"compile": "yes"}, "compile is 'yes'; it has to be true or false"),
        ({"k": "none"}, "model.vision.tokens is 'none'; it has to be a whole number"),
        ({"heads": 5}, "model.head.heads is 5; it has to be a divisor of embed_dim 64"),
        ({"steps": 10, "epochs": 1}, "steps is 10; it has to be given where epochs are not (they are 1.0)"),
        ({"steps": 10, "optimizer.warmup_steps": 10}, "optimizer.warmup_steps is 10; it has to be below steps 10"),
    ],
)
def test_what_cannot_be_is_named_with_what_would_be_right(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        override(BASE, values)
    assert message in str(error.value)


def test_types_of_all_leaves_can_be_converted() -> None:
    for leaf in leaves(TrainingConfig):
        value = value_of(BASE, leaf.path)
        text = "none" if value is None else "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert convert(leaf.hint, text, leaf.path) == value
    assert find_leaf(TrainingConfig, "k").path == "model.vision.tokens"
    assert typing.get_type_hints(TrainingConfig) and dataclasses.is_dataclass(BASE)
