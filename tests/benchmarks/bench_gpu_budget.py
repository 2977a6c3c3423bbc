"""What a training step does on one of many GPUs, counted without any: kernels, bytes, TFLOP, host synchronisations.

    uv run tests/benchmarks/bench_gpu_budget.py
    uv run tests/benchmarks/bench_gpu_budget.py --recipes llip_b32_k64 --gpus 128

The step is the real one: packing, both towers under autocast, exchange, loss, backward, DDP's buckets and AdamW, on
tensors without contents in a process group without other ranks, and with the tiles and forms of an A100. "before" takes
the pair stage of the CPU with a GPU's tiles. Milliseconds are bytes at 1.6 TB/s and products at 70 % of 312 TFLOP/s
(the towers') or 40 % (the pairs'), arithmetic and no measurement. Elementwise functions of the towers count as they run
without a compiler.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from llip import devices
from llip.contrastive import create_model
from llip.model import packing
from llip.model.features import Pooled
from llip.pairs import accumulation, losses
from llip.pairs.losses import loss_of_features
from llip.recipes import recipe
from llip.training.optimizer import build_optimizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.fake_gpu import Count

PAPER = {
    "clip_b32": 128,
    "llip_b32_k64": 128,
    "clip_l14": 128,
    "llip_l14_k32": 128,
    "llip_h14_k64": 256,
}
"""Recipes and the GPUs that they are counted on."""
BEFORE = replace(devices.A100, fused=False, compiled=False, bandwidth=None)
CAPTION_TOKENS = 24
BANDWIDTH, PEAK, TOWERS, PAIRS = 1.6e12, 312e12, 0.7, 0.4


class Part(NamedTuple):
    """What some part of a step does."""

    kernels: int
    elementwise_bytes: int
    product_bytes: int
    flops: float
    synchronisations: int

    @property
    def elementwise_ms(self) -> float:
        return 1e3 * self.elementwise_bytes / BANDWIDTH


def part(count: Count) -> Part:
    own = count.bytes
    return Part(
        count.kernels.total(),
        own["elementwise"],
        own["product"] + own["attention"],
        count.flops,
        count.synchronisations.total(),
    )


class Step(NamedTuple):
    """A step of one rank."""

    towers: Part
    """Forward and backward of towers and projections."""
    pairs: Part
    """Scores, loss and their gradients, the exchange included."""
    update: Part
    sent: int
    """Bytes that a rank sends in the exchange and for its gradients, in a ring."""

    @property
    def tower_ms(self) -> float:
        return 1e3 * self.towers.flops / (PEAK * TOWERS) + self.towers.elementwise_ms

    @property
    def pair_ms(self) -> float:
        products = max(self.pairs.flops / (PEAK * PAIRS), self.pairs.product_bytes / BANDWIDTH)
        return 1e3 * products + self.pairs.elementwise_ms


@contextmanager
def ranks(size: int) -> Iterator[dist.ProcessGroup]:
    """A process group of which this is the only rank that runs."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def count_step(name: str, gpus: int, *, fused: bool, layers: int | None = None) -> Step:
    """Count a step of a recipe; with `layers`, of towers with as many, for tests."""
    config = recipe(name)
    model_config = config.model
    if layers is not None:
        vision, text = model_config.vision, model_config.text
        model_config = replace(model_config, vision=replace(vision, layers=layers), text=replace(text, layers=layers))
    images = config.data.batch_size // gpus
    token_ids = captions(images, model_config.text.context_length, model_config.text.vocabulary)
    packed = packing.pack(token_ids, latents=0, context_length=model_config.text.context_length)
    towers, pairs, update = Count(), Count(), Count()
    with ranks(gpus) as group, devices.as_on(devices.A100 if fused else BEFORE), FakeTensorMode() as mode:
        model = create_model(model_config)
        optimizer = build_optimizer(model, config)
        pixels = torch.empty(images, 3, model_config.vision.image_size, model_config.vision.image_size)
        inputs = packing.PackedCaptions(*(mode.from_tensor(tensor) for tensor in packed))
        with towers, torch.autocast("cpu", torch.bfloat16):
            features = model(pixels, inputs)
        image_leaves, text_leaves = (accumulation._leaves(side) for side in features)
        parameters = losses.score_parameters(model)
        with (
            pairs,
            mock.patch("llip.pairs.exchange._check_batches"),
            mock.patch("llip.pairs.tiles._wide_product_on_cpu", torch.ops.llip.wide_product),  # what a GPU takes
        ):
            loss_of_features(
                image_leaves,
                text_leaves,
                parameters,
                config=config.objective,
                captions_per_image=1,
                group=group,
            ).loss.backward()
        outputs = [tensor for side in features for tensor in side]
        with towers:
            torch.autograd.backward(outputs, [torch.empty_like(tensor) for tensor in outputs])
        with update:
            optimizer.step()
        gradients = sum(4 * p.numel() for p in model.parameters())
    width = model_config.embed_dim * (1 if isinstance(image_leaves, Pooled) else 2)
    exchanged = config.data.batch_size * width * (2 + 4)
    return Step(part(towers), part(pairs), part(update), exchanged + 2 * gradients)


def captions(count: int, context: int, vocabulary: int) -> torch.Tensor:
    """Token ids of captions whose lengths have the mean of web captions."""
    generator = torch.Generator().manual_seed(0)
    length_T1 = torch.randint(8, 2 * CAPTION_TOKENS - 8, (count, 1), generator=generator)
    ids_TL = torch.randint(1, vocabulary - 1, (count, context), generator=generator)
    ids_TL[torch.arange(context) >= length_T1] = 0
    return ids_TL.scatter(1, length_T1 - 1, vocabulary - 1)


def row(name: str, gpus: int) -> str:
    before, after = (count_step(name, gpus, fused=fused) for fused in (False, True))
    pairs, towers = after.pairs, after.towers
    return (
        f"| {name}, {gpus} | {towers.flops / 1e12:.0f} | {towers.elementwise_bytes / 1e9:,.0f} | {after.tower_ms:,.0f} "
        f"| {before.pairs.kernels:,} → {pairs.kernels:,} "
        f"| {before.pairs.elementwise_bytes / 1e9:,.0f} → {pairs.elementwise_bytes / 1e9:,.0f} "
        f"| {pairs.product_bytes / 1e9:,.0f} | {pairs.flops / 1e12:.2f} | {before.pair_ms:,.0f} → {after.pair_ms:,.0f} "
        f"| {sum(p.synchronisations for p in after[:3])} | {after.sent / 1e9:.2f} |"
    )


HEADING = """\
| recipe, GPUs | towers: TFLOP | elementwise GB | ms | pairs: kernels | elementwise GB | product GB | TFLOP | ms \
| waits of the host | GB sent |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


@pytest.mark.bench
@pytest.mark.parametrize("name", ["llip_l14_k32", "llip_b32_k64"])
def test_the_pair_stage_takes_a_third_of_the_bytes(name: str) -> None:
    before, after = (count_step(name, 128, fused=fused, layers=1) for fused in (False, True))
    assert after.pairs.elementwise_bytes < before.pairs.elementwise_bytes / 3
    assert not after.towers.synchronisations and not after.pairs.synchronisations


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(PAPER))
    parser.add_argument("--gpus", type=int, help="the paper's number of each recipe where not given")
    settings: Any = parser.parse_args(arguments)
    print(HEADING)
    for name in settings.recipes:
        print(row(name, settings.gpus or PAPER.get(name, 128)), flush=True)


if __name__ == "__main__":
    main()
