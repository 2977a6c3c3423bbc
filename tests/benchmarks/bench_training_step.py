"""A training step on the CPU: CLIP here against open_clip's model and loss, Llip against CLIP with as many tokens.

    uv run python tests/benchmarks/bench_training_step.py --batch-size 32 --rounds 7

Forward, loss, backward and AdamW, on the same images and captions in float32. Captions have the lengths of web
captions (20 tokens on average) and lie 0-padded in the context of 77, as open_clip takes them. The two of a comparison
take turns; the table gives the ratio of their times, round by round. Time is that of the processor, which other
processes of a busy machine do not add to. The last line is the text tower alone, forward and backward: a row for each
caption, cut at the longest, against packed rows.
"""

from pathlib import Path
import sys
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
import tyro
from torch import Tensor

from llip import create_model, recipe
from llip.model.packing import PackedCaptions, pack
from llip.pairs import accumulation
from llip.pairs.distillation import Teacher

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.bars import holds

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long to measure."""

    batch_size: int = 32
    rounds: int = 7
    threads: int = 1


def batch(size: int, captions: int = 1, side: int = 224, context: int = 77) -> tuple[Tensor, Tensor]:
    rng, count = np.random.default_rng(0), captions * size
    lengths = rng.lognormal(np.log(17.7), 0.5, count).round().clip(4, context).astype(int)
    token_ids_TL = torch.from_numpy(rng.integers(1, 49406, (count, context)))
    token_ids_TL[torch.arange(context) >= torch.from_numpy(lengths)[:, None]] = 0
    token_ids_TL[:, 0] = 49406
    token_ids_TL[torch.arange(count), torch.from_numpy(lengths) - 1] = 49407
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(0)), token_ids_TL


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.2, fused=True)


def step_here(name: str, pixels_BCHW: Tensor, token_ids_TL: Tensor, teacher: Teacher | None = None) -> Step:
    """Half of the loss follows the teacher, where there is one."""
    config, model = recipe(name), create_model(name)
    optimizer, captions = adamw(model), len(token_ids_TL) // len(pixels_BCHW)
    objective = config.objective if teacher is None else replace(config.objective, distillation=0.5)

    def step() -> None:
        optimizer.zero_grad()
        accumulation.backward(
            model, [(pixels_BCHW, token_ids_TL)], config=objective, captions_per_image=captions, teacher=teacher
        )
        optimizer.step()
        model.clamp_logit_scale(100)

    return step


def step_of_open_clip(name: str, pixels_BCHW: Tensor, token_ids_TL: Tensor) -> Step:
    model, loss = open_clip.create_model(name), open_clip.ClipLoss()
    optimizer = adamw(model.train())

    def step() -> None:
        optimizer.zero_grad()
        loss(*model(pixels_BCHW, token_ids_TL)[:3]).backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))

    return step


def seconds(step: Step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def compare(one: Step, other: Step, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both, alternating, the first of a round in turn; one round to warm up is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            times[which].append(seconds((one, other)[which]))
    return times[0][1:], times[1][1:]


def against_open_clip(size: str, settings: Settings) -> tuple[list[float], list[float]]:
    data = batch(settings.batch_size)
    theirs = step_of_open_clip(f"ViT-{size}-quickgelu", *data)
    return compare(theirs, step_here(f"clip_{size.replace('-', '').lower()}", *data), settings.rounds)


def against_registers(size: str, tokens: int, settings: Settings) -> tuple[list[float], list[float]]:
    data = batch(settings.batch_size)
    registers = step_here(f"register_{size}_k{tokens}", *data)
    return compare(step_here(f"llip_{size}_k{tokens}", *data), registers, settings.rounds)


def against_packing(settings: Settings) -> tuple[list[float], list[float]]:
    _, token_ids_TL = batch(settings.batch_size)
    model = create_model("clip_b32")
    longest = token_ids_TL[:, : int(token_ids_TL.argmax(dim=1).max()) + 1]
    single = torch.arange(settings.batch_size)[:, None]
    unpacked = PackedCaptions(
        token_RN=longest,
        position_RN=torch.arange(longest.shape[1]).expand_as(longest),
        caption_RN=single.expand_as(longest),
        kept_RS=longest.argmax(dim=1, keepdim=True),
        state_TK=single,
    )

    def step(lay_out: Callable[[], PackedCaptions]) -> None:
        model.zero_grad()
        model.text(*lay_out()).sum().backward()

    return compare(
        partial(step, lambda: unpacked),
        partial(step, lambda: pack(token_ids_TL, latents=0, context_length=77)),
        settings.rounds,
    )


def report(title: str, times: tuple[list[float], list[float]]) -> list[float]:
    """Print one line; the ratios of the rounds."""
    ratios = [a / b for a, b in zip(*times, strict=True)]
    first, second = (statistics.median(t) for t in times)
    print(
        f"{title:<44}{first:>8.2f} s{second:>8.2f} s   "
        f"{min(ratios):>6.2f}{statistics.median(ratios):>8.2f}{max(ratios):>8.2f}",
        flush=True,
    )
    return ratios


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    print(
        f"{settings.batch_size} pairs, {settings.rounds} rounds, {settings.threads} threads, torch {torch.__version__}"
    )
    print(f"{'step of A / step of B':<44}{'A':>8}  {'B':>8}     {'min':>6}{'median':>8}{'max':>8}")
    for size in ("B-32", "B-16"):
        report(f"open_clip CLIP {size} / CLIP here", against_open_clip(size, settings))
    for size in ("b32", "b16"):
        report(f"Llip {size} K=32 / registers, K=32", against_registers(size, 32, settings))
    report("captions cut at the longest / packed", against_packing(settings))


@pytest.mark.bench
def test_clip_is_faster_than_open_clip() -> None:
    ratios = report("open_clip / here", against_open_clip("B-32", Settings(batch_size=16, rounds=3)))
    assert statistics.median(ratios) >= 1.3


@pytest.mark.bench
def test_llip_costs_little_more_than_its_tokens() -> None:
    ratios = report("Llip / registers", against_registers("b32", 32, Settings(batch_size=8, rounds=7)))
    assert holds(ratios, at_most=1.06)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
