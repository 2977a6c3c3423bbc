"""Time and memory of all pair scores with their loss and gradients: the literal form against the library, on one core.

    uv run tests/benchmarks/bench_pair_stage.py
    uv run tests/benchmarks/bench_pair_stage.py --plot pair_stage.png

Features are given; from them on everything is measured, W_O's gradient included. CPU seconds of interleaved
repetitions; peak memory beyond the features, each in a process of its own (Linux).
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F


from llip.config import ObjectiveConfig
from llip.model.features import Mixture, Query
from llip.pairs import scoring
from llip.pairs.losses import Layout, loss_over_pairs

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import literal

ROUNDS = 3


class Shape(NamedTuple):
    """`images` of one rank against `captions` of all ranks."""

    images: int
    captions: int
    tokens: int
    dim: int
    heads: int

    def __str__(self) -> str:
        return f"{self.images:,} x {self.captions:,}, K={self.tokens}, d={self.dim}, M={self.heads}"


class Bar(NamedTuple):
    """What the library has to reach against the literal form."""

    shape: Shape
    faster: float
    smaller: float


BARS = (
    Bar(Shape(32, 4096, tokens=32, dim=768, heads=8), faster=5, smaller=8),
    Bar(Shape(1024, 1024, tokens=8, dim=256, heads=4), faster=12, smaller=25),
)
TEMPERATURE = 5.0


def leaves(shape: Shape) -> list[Tensor]:
    """Features of both sides, W_O, scale and bias."""
    torch.manual_seed(0)
    width = shape.dim // shape.heads
    tensors = [
        torch.randn(shape.images, shape.heads, shape.tokens, width),
        torch.randn(shape.images, shape.heads, shape.tokens, width),
        torch.randn(shape.captions, shape.heads, width),
        torch.randn(shape.captions, shape.dim),
        torch.randn(shape.dim, shape.dim) * shape.dim**-0.5,
        torch.tensor(10.0),
        torch.tensor(-10.0),
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def literal_form(
    key: Tensor, value: Tensor, query: Tensor, target: Tensor, out_proj: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    score = literal.scores(Mixture(key, value), Query(query, target), out_proj_DD=out_proj, temperature=TEMPERATURE)
    sign = -torch.ones_like(score)
    sign.diagonal().fill_(1)
    return -F.logsigmoid(sign * (scale * score + bias)).sum() / len(query)


def library(
    key: Tensor, value: Tensor, query: Tensor, target: Tensor, out_proj: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    prepared = scoring.prepare(
        Mixture(key, value),
        Query(query, target),
        out_proj_DD=out_proj,
        temperature=TEMPERATURE,
        total=len(query),
        gradients=True,
    )
    layout = Layout(ObjectiveConfig(chunk=1024), (1, 1), None, [len(query)])
    return loss_over_pairs(prepared, layout, scale, bias).loss


FORMS: dict[str, Callable[..., Tensor]] = {"literal": literal_form, "library": library}


def step(form: str, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The loss and all gradients."""
    loss = FORMS[form](*tensors)
    return loss.detach(), *torch.autograd.grad(loss, tensors)


def seconds(shape: Shape, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each form in each round, after a check that they agree."""
    tensors = leaves(shape)
    results = [step(form, tensors) for form in FORMS]
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm(), "the forms disagree"
    del results
    taken: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(rounds):
        for form in FORMS:
            started = time.process_time()
            step(form, tensors)
            taken[form].append(time.process_time() - started)
    return taken


def peak_memory(form: str, shape: Shape) -> float:
    """MiB that a step takes beyond what is there before it."""
    command = [sys.executable, __file__, "--peak-memory-of", form, *map(str, shape)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_peak_memory(form: str, shape: Shape) -> float:
    """The same in this process, which should be new."""
    step(form, leaves(Shape(2, 2, tokens=2, dim=8, heads=2)))  # what libraries allocate once
    tensors = leaves(shape)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    before = status("VmRSS")
    step(form, tensors)
    return (status("VmHWM") - before) / 1024


def status(field: str) -> int:
    """KiB, by the kernel's account."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


class Outcome(NamedTuple):
    faster: list[float]
    """Ratios of the rounds, ascending."""
    smaller: float


def measure(bar: Bar, rounds: int = ROUNDS) -> Outcome:
    """Measure one shape and print its row of the table."""
    memory = {form: peak_memory(form, bar.shape) for form in FORMS}
    taken = seconds(bar.shape, rounds)
    faster = sorted(slow / fast for slow, fast in zip(taken["literal"], taken["library"], strict=True))
    smaller = memory["literal"] / memory["library"]
    for form in FORMS:
        median, low, high = statistics.median(taken[form]), min(taken[form]), max(taken[form])
        print(f"{bar.shape}  {form:8} {median:7.2f} s ({low:.2f} to {high:.2f})  {memory[form]:7,.0f} MiB")
    print(
        f"    {statistics.median(faster):.1f} times as fast ({faster[0]:.1f} to {faster[-1]:.1f}; bar {bar.faster:g}), "
        f"1/{smaller:.0f} of the memory (bar 1/{bar.smaller:g})"
    )
    return Outcome(faster, smaller)


@pytest.mark.bench
@pytest.mark.parametrize("bar", BARS, ids=lambda bar: str(bar.shape))
def test_pair_stage(bar: Bar) -> None:
    torch.set_num_threads(1)
    outcome = measure(bar, rounds=2)  # the bars are far off
    assert statistics.median(outcome.faster) >= bar.faster
    assert outcome.smaller >= bar.smaller


def plot(path: str) -> None:
    """CPU seconds of a step against the batch and against K, both forms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = {
        "images = captions (K=16, d=256, M=4)": [
            (batch, Shape(batch, batch, tokens=16, dim=256, heads=4)) for batch in (64, 128, 256, 512, 1024)
        ],
        "K (256 x 256, d=256, M=4)": [
            (tokens, Shape(256, 256, tokens=tokens, dim=256, heads=4)) for tokens in (1, 4, 16, 32, 64, 128)
        ],
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, (name, points) in zip(axes, series.items(), strict=True):
        taken = [seconds(shape, ROUNDS) for _, shape in points]
        for form in FORMS:
            axis.loglog([x for x, _ in points], [min(t[form]) for t in taken], marker="o", base=2, label=form)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("CPU seconds, forward and backward")
    axes[0].legend()
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PNG", help="also draw cost against batch and K into this file")
    parser.add_argument("--peak-memory-of", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak_memory_of:
        form, *sizes = arguments.peak_memory_of
        print(measure_peak_memory(form, Shape(*map(int, sizes))))
        return
    for bar in BARS:
        measure(bar)
    if arguments.plot:
        plot(arguments.plot)


if __name__ == "__main__":
    main()
