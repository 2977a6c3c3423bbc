"""The latency measurement: what it times, and how it takes ratios."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers import latency
from helpers.latency import Latency, measure, prompt_features

from llip.contrastive import ContrastiveModel, create_model
from llip.model.features import Message, Mixture


def test_ratios_are_taken_within_a_round() -> None:
    seconds_MPR = np.array([[[1.0, 10.0, 4.0]], [[2.0, 20.0, 12.0]]])
    found = Latency(("CLIP", "Llip"), (1000,), seconds_MPR)
    assert found.ratio("Llip", "CLIP").tolist() == [[2.0, 2.0, 3.0]]
    assert found.table("CLIP").splitlines()[-1] == "| 1,000 | 4.00000 | 12.00000 | 2.000 (2.000 – 3.000) |"


def test_growth_is_relative_to_the_fewest_prompts() -> None:
    seconds_MPR = np.array([[[3.0, 10.0], [2.0, 5.0]]])
    assert Latency(("Llip",), (100, 10), seconds_MPR).growth("Llip").tolist() == [[1.5, 2.0], [1.0, 1.0]]


def test_prompts_have_the_shapes_of_prepared_ones() -> None:
    with torch.inference_mode():
        widths = {"clip_tiny": 64, "llip_tiny_k8": 128}  # a unit vector; a query and a projected target
        for name, width in widths.items():
            message = prompt_features(create_model(name), 7)
            assert isinstance(message, Message) and message.vector_BW.shape == (7, width)
        mixture = prompt_features(create_model("image_query_tiny_k8"), 7)
    assert isinstance(mixture, Mixture) and mixture.key_BMKE.shape == (7, 4, 8, 16)


def test_every_model_is_timed_with_every_number_of_prompts_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def classify(model: ContrastiveModel, texts: Sequence[Message | Mixture], batch_size: int) -> list[float]:
        timed.append((model, [len(prompts[0]) for prompts in texts]))
        return [0.5, 1.0]

    monkeypatch.setattr(latency, "_classify", classify)
    models = {"CLIP": create_model("clip_tiny"), "Llip": create_model("llip_tiny_k8")}
    found = measure(models, (3, 5), batch_size=4, rounds=2)
    assert timed == 3 * [(model, [3, 5]) for model in models.values()]
    assert found.seconds_MPR.tolist() == [[[0.125] * 2, [0.25] * 2]] * 2


def test_the_time_is_real() -> None:
    found = measure({"Llip": create_model("llip_tiny_k8")}, (10,), batch_size=2, rounds=1)
    assert 0 < found.seconds_MPR.item() < 60
