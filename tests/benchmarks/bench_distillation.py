"""A training step on the CPU with distillation against the same step without it.

    uv run python tests/benchmarks/bench_distillation.py --rounds 9

Forward, loss, backward and AdamW, on the same images and captions in float32, as in `bench_training_step.py`: the two
take turns, and time is that of the processor. Half of the loss follows a teacher's embeddings of width 768, which are
in memory: reading them from shards is not in it. Resolution, context and captions an image are the recipe's. The tiny
recipes have their batch of 64 images with four captions each, so pairs weigh more in their step than in a large one's.
The first line is the pair stage alone, 1,024 images with a caption each, of one vector of width 512.
"""

from pathlib import Path
import sys
from dataclasses import dataclass, replace

import pytest
import torch
import tyro
from bench_training_step import Step, batch, compare, report, step_here
from torch import Tensor

from llip import recipe
from llip.model.features import Pooled
from llip.pairs.distillation import Teacher
from llip.pairs.losses import ScoreParameters, loss_of_features

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.bars import holds

WIDTH = 768
TIMED = {"clip_tiny": 64, "llip_tiny_k8": 64, "llip_dense_tiny_k8": 64, "clip_b32": 16}
"""Recipes, and images of a batch."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, and how long."""

    recipes: tuple[str, ...] = tuple(TIMED)
    rounds: int = 9
    threads: int = 1


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def teacher_of(images: int, captions: int) -> Teacher:
    return Teacher(random(images, WIDTH, seed=1), random(captions, WIDTH, seed=2), logit_scale=100.0)


def steps(name: str, images: int, settings: Settings) -> tuple[list[float], list[float]]:
    config = recipe(name)
    data = batch(
        images, config.data.captions_per_image, config.model.vision.image_size, config.model.text.context_length
    )
    taught = step_here(name, *data, teacher=teacher_of(images, len(data[1])))
    return compare(taught, step_here(name, *data), settings.rounds)


def pair_stages(pairs: int, settings: Settings) -> tuple[list[float], list[float]]:
    def stage(share: float) -> Step:
        images, texts = (Pooled(random(pairs, 512, seed=seed).requires_grad_()) for seed in (3, 4))
        scale = torch.tensor(2.3, requires_grad=True)
        objective = replace(recipe("clip_b32").objective, distillation=share)
        teacher = teacher_of(pairs, pairs) if share else None

        def run() -> None:
            parameters = ScoreParameters(out_proj_DD=None, temperature=1.0, logit_scale=scale, logit_bias=None)
            output = loss_of_features(
                images, texts, parameters, config=objective, captions_per_image=1, teacher=teacher
            )
            output.loss.backward()

        return run

    return compare(stage(0.5), stage(0.0), settings.rounds)


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    print(f"{settings.rounds} rounds, {settings.threads} threads, torch {torch.__version__}")
    print(f"{'step with distillation / without':<44}{'with':>8}  {'without':>8}     {'min':>6}{'median':>8}{'max':>8}")
    report("pair stage alone, 1,024 x 1,024", pair_stages(1024, settings))
    for name in settings.recipes:
        report(f"{name}, {TIMED[name]} images", steps(name, TIMED[name], settings))


@pytest.mark.bench
def test_a_step_with_distillation_costs_little_more() -> None:
    torch.set_num_threads(1)
    assert holds(report("llip_tiny_k8, 64 images", steps("llip_tiny_k8", 64, Settings(rounds=15))), at_most=1.15)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
