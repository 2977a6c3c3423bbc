"""What is measured: entropy of the mixing, tokens, FLOPs utilisation; every one against its literal form."""

import itertools
import math
from contextlib import closing
from dataclasses import replace

import pytest
import torch

import llip
from llip.config import TrainingConfig
from llip.data.loader import LaneLoader, LoaderStats
from llip.model.features import Mixture, Query, mixing_entropy
from llip.summary import summarise
from llip.training.metrics import Rates, Utilisation, Watched, utilisation
from llip.training.parallel import Towers, current_world


def test_entropy_of_mixing_is_1_for_even_and_0_for_single_tokens() -> None:
    key_BMKE = torch.eye(4).expand(3, 2, 4, 4)
    assert mixing_entropy(Mixture(key_BMKE, key_BMKE), torch.zeros(5, 2, 4), 1.0) == pytest.approx(1)
    assert mixing_entropy(Mixture(key_BMKE, key_BMKE), torch.eye(4)[:2, None].expand(2, 2, 4), 0.01) < 1e-6


@pytest.mark.parametrize("kind", ["text_query", "image_query"])
def test_entropy_is_that_of_the_features_that_the_loss_sees(kind: str) -> None:
    config = llip.recipe("llip_tiny_k8" if kind == "text_query" else "image_query_tiny_k8")
    torch.manual_seed(0)
    model = llip.create_model(config)
    watched = Watched(Towers(model, config, current_world()), config.model.head.temperature)
    pixels, ids = torch.randn(10, 3, 48, 48), torch.randint(1, 49406, (20, 6))
    ids[:, -1] = 49407
    images, texts, *_ = watched(pixels, ids)
    mixture, query = (images, texts) if kind == "text_query" else (texts, images)
    assert isinstance(mixture, Mixture) and isinstance(query, Query)
    entropies = [
        torch.distributions.Categorical(
            logits=mixture.key_BMKE[b, m] @ query.query_BME[t, m] / config.model.head.temperature
        ).entropy()
        for b, t, m in itertools.product(range(8), range(8), range(config.model.head.heads))
    ]
    expected = torch.stack(entropies).mean().item() / math.log(8)
    assert watched.mixing() == {"mixing_entropy": pytest.approx(expected, rel=1e-5)}


def test_a_model_without_queries_has_no_mixing() -> None:
    config = llip.recipe("clip_tiny")
    watched = Watched(Towers(llip.create_model(config), config, current_world()), 1.0)
    watched(torch.randn(2, 3, 48, 48), torch.tensor([[49406, 49407], [49406, 49407]]))
    assert watched.mixing() == {}


def test_tokens_are_those_between_start_and_end(small: TrainingConfig, shards: str) -> None:
    with (
        LaneLoader(shards, small.data, image_size=24, context_length=16, seed=0) as loader,
        closing(loader.iter_from(0)) as batches,
    ):
        ids = [next(batches).token_ids for _ in range(3)]
    expected = sum((batch == 49407).nonzero()[:, 1].sum().item() + len(batch) for batch in ids)
    assert loader.stats.tokens == expected == sum(batch.count_nonzero().item() for batch in ids)


def test_utilisation_is_three_forward_passes_over_the_peak(small: TrainingConfig) -> None:
    assert utilisation(small, current_world()) is None or torch.cuda.is_available()
    given = utilisation(replace(small, peak_flops=1e12), replace(current_world(), size=4))
    assert given == Utilisation(small.model, 2, 4e12)
    summary = summarise(small.model, 5)
    expected = 3 * 100 * (summary.image_flops + 2 * summary.caption_flops) / 0.5 / 4e12
    assert given.share(images=100, tokens=1000, seconds=0.5) == pytest.approx(expected)


def test_rates_are_of_all_ranks_since_the_last_lap(small: TrainingConfig) -> None:
    rates, stats = Rates(0, ranks=2, share=0.5, utilisation=Utilisation(small.model, 2, 1e12)), LoaderStats()
    for samples, images, tokens, own, waits in (
        (32, 32, 200, (1.0, 2.0), (0.5, 0.1)),
        (96, 64, 1000, (2.0, 6.0), (1.5, 0.2)),
    ):
        stats.tokens += tokens
        stats.batches += 2
        values = rates.lap(samples, stats, own, waits)
        assert values["tokens_per_second"] == pytest.approx(values["samples_per_second"] * 2 * tokens / images)
        assert values["model_flops_utilisation"] > 0
    assert [values[f"step_seconds{which}"] for which in ("", "_max")] == [1.25, 2.0]  # of (0.5, 2)
    assert values["slowest_rank"] == 1 and values["step_seconds_spread"] == pytest.approx(1.6)
    assert values["data_slowest_rank"] == 0 and values["data_seconds_max"] == 0.5


def test_a_rank_that_stays_behind_is_named_by_its_host() -> None:
    rates, stats, said = Rates(0, ranks=3, share=1 / 3, utilisation=None), LoaderStats(), []
    for lap in range(1, 8):
        stats.batches += 1
        seconds = (lap * 0.1, lap * 0.1, lap * 0.5)
        values = rates.lap(16 * lap, stats, seconds, (0.0, 0.0, lap * 0.4))
        said.append(rates.straggler(values, ["a", "b", "c, process 9"]))
    name = "rank 2 (c, process 9) takes 0.5 s a step before it meets the others, 0.4 s of it for data, 5.0 times"
    assert [bool(line) for line in said] == [False, False, True, False, False, False, False]
    assert said[2] is not None and said[2].startswith(name)
