"""Seconds per image of zero-shot classification against the number of prompts, their features made once.

    uv run tests/benchmarks/bench_zero_shot.py                      # B/32, minutes of a CPU core
    uv run tests/benchmarks/bench_zero_shot.py --size l14 --device cuda --batch-size 64

CLIP, CLIP with as many tokens as Llip (of which it keeps one), and Llip. The paper, L/14 K=32 with 1,000 prompts on an
A100: 0.009 s for CLIP and 0.011 s for Llip, 1.22 times; 10 prompts .0107, 100 .0109, 1,000 .0111, 10,000 .0118.
"""

import dataclasses
from dataclasses import dataclass

import torch
import tyro

from llip import create_model, recipes
from llip.evaluation.latency import measure


@dataclass(frozen=True, kw_only=True)
class Settings:
    size: str = "b32"
    """Towers: tiny, b32, b16, l14, h14 or g14."""
    tokens: int = 32
    """K."""
    prompts: tuple[int, ...] = (10, 100, 1_000, 10_000)
    batch_size: int = 8
    rounds: int = 5
    device: str = "cpu"
    threads: int = 1
    """CPU threads."""


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    clip = recipes.clip(settings.size).model
    configurations = {
        "CLIP": clip,
        "CLIP, equal tokens": dataclasses.replace(
            clip,
            vision=dataclasses.replace(clip.vision, tokens=settings.tokens),
            head=dataclasses.replace(clip.head, kind="register"),
        ),
        "Llip": recipes.llip(settings.size, settings.tokens).model,
    }
    models = {name: create_model(config).to(settings.device) for name, config in configurations.items()}
    latency = measure(models, settings.prompts, batch_size=settings.batch_size, rounds=settings.rounds)
    print(f"{settings.size}, K={settings.tokens}, batch {settings.batch_size}, {settings.device}, seconds per image\n")
    print(latency.table("CLIP"))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
