"""Seconds per image of zero-shot classification against the number of prompts, their features made once.

    uv run tests/benchmarks/bench_zero_shot.py                        # L/14, K=32, a few minutes of a CPU core
    uv run tests/benchmarks/bench_zero_shot.py --recipe llip_b32_k64 --batch-size 8
    uv run tests/benchmarks/bench_zero_shot.py --device cuda --batch-size 64

Llip, CLIP with as many tokens (of which it keeps one), and CLIP, with random weights. The paper, L/14 K=32 with 1,000
prompts on an A100: 0.009 s for CLIP and 0.011 s for Llip, 1.22 times; 10 prompts .0107, 100 .0109, 1,000 .0111,
10,000 .0118: 1.10 times.
"""

from pathlib import Path
import sys
from dataclasses import dataclass, replace

import pytest
import torch
import tyro

from llip import create_model, recipe
from llip.config import HeadConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.bars import holds
from helpers.latency import Latency, measure, spread

LLIP, EQUAL_TOKENS, CLIP = "Llip", "CLIP, equal tokens", "CLIP"
PROMPTS = (10, 100, 1_000, 10_000)


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = "llip_l14_k32"
    """Of a Llip model."""
    batch_size: int = 4
    rounds: int = 5
    device: str = "cpu"
    threads: int = 1
    """CPU threads."""


def latency(settings: Settings, names: tuple[str, ...] = (LLIP, EQUAL_TOKENS, CLIP)) -> Latency:
    torch.manual_seed(0)
    llip = recipe(settings.recipe).model
    configurations = {
        LLIP: llip,
        EQUAL_TOKENS: replace(llip, head=HeadConfig(kind="register", norm=llip.head.norm)),
        CLIP: replace(llip, head=HeadConfig(kind="class_token"), vision=replace(llip.vision, tokens=1)),
    }
    models = {name: create_model(configurations[name]).to(settings.device) for name in names}
    return measure(models, PROMPTS, batch_size=settings.batch_size, rounds=settings.rounds)


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    found = latency(settings)
    print(f"{settings.recipe}, batch {settings.batch_size}, {settings.device}, seconds per image\n")
    print(found.table(EQUAL_TOKENS))
    print(f"\nLlip, 10,000 prompts / 10: {spread(found.growth(LLIP)[-1])}")


@pytest.mark.bench
def test_prompts_cost_next_to_nothing() -> None:
    torch.set_num_threads(1)
    found = latency(Settings(rounds=7), (LLIP, EQUAL_TOKENS))
    assert holds(found.ratio(LLIP, EQUAL_TOKENS)[PROMPTS.index(1_000)], at_most=1.02)
    assert holds(found.growth(LLIP)[-1], at_most=1.05)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
