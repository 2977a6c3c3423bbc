"""The latency measurement: what it times, and how it takes ratios."""

import numpy as np
import torch

from llip.evaluation import latency
from llip.evaluation.latency import Latency, measure, prompt_features
from llip.model.build import create_model
from llip.model.features import Pooled, Query


def test_ratios_are_taken_within_a_round():
    seconds_MPR = np.array([[[1.0, 10.0, 4.0]], [[2.0, 20.0, 12.0]]])
    found = Latency(("CLIP", "Llip"), (1000,), seconds_MPR)
    assert found.ratio("Llip", "CLIP").tolist() == [[2.0, 2.0, 3.0]]
    assert found.table("CLIP").splitlines()[-1] == "| 1,000 | 4.00000 | 12.00000 | 2.000 (2.000–2.500) |"


def test_prompts_have_the_shapes_of_encoded_ones():
    with torch.inference_mode():
        assert prompt_features(create_model("clip_tiny"), 7).vector_BD.shape == (7, 64)
        query = prompt_features(create_model("llip_tiny_k8"), 7)
    assert isinstance(query, Query) and query.query_BME.shape == (7, 4, 16) and query.target_BD.shape == (7, 64)


def test_every_model_is_timed_with_every_number_of_prompts_in_every_round(monkeypatch):
    timed = []

    def classify(model, texts, batch_size):
        timed.append((type(texts), len(texts[0])))
        return 0.5

    monkeypatch.setattr(latency, "_classify", classify)
    models = {"CLIP": create_model("clip_tiny"), "Llip": create_model("llip_tiny_k8")}
    found = measure(models, (3, 5), batch_size=4, rounds=2)
    turn = [(Pooled, 3), (Query, 3), (Pooled, 5), (Query, 5)]
    assert timed == 3 * turn
    assert (found.seconds_MPR == 0.125).all() and found.seconds_MPR.shape == (2, 2, 2)


def test_the_time_is_real():
    found = measure({"Llip": create_model("llip_tiny_k8")}, (10,), batch_size=2, rounds=1)
    assert 0 < found.seconds_MPR.item() < 60
