"""What a training step does on one of many GPUs, counted without any: kernels, bytes, TFLOP, peak memory, waits.

    uv run tests/benchmarks/bench_gpu_budget.py
    uv run tests/benchmarks/bench_gpu_budget.py --recipes llip_b32_k64 --gpus 128

The step is the real one: packing, both towers under autocast, exchange, loss, backward and AdamW, on tensors without
contents in a process group without other ranks, and with the tiles and forms of an A100. The pair stage is counted
three times: as on the CPU ("eager"), with compiled functions between products, and in Triton's kernels
("fused"). Milliseconds are arithmetic and no measurement: bytes at 1.6 TB/s; products at 70 % of 312 TFLOP/s (the
towers') or 40 % (the pairs'), those of fp32 at 70 % of 19.5. A kernel in Triton takes the longest of its products at
70 %, its tensors once at 1.6 TB/s, and what each program reads and writes, times the programs, at 4 TB/s of the L2
cache (`triton_costs.work`). Elementwise functions of the towers count as they run without a compiler. Below the table:
whole blocks of both towers as AOT autograd and inductor make them for an A100; and what travels, at 45 GB/s a node, in
the exchange, which a step waits for, and for parameters and gradients, which mostly travel beside the backward pass,
with DDP and with FSDP2, whose collectives and copies are those that its hooks start. Peak memory is that of all tensors
of a DDP step that recomputes nothing, with AdamW's state, beside what `cluster/plan.py` expects of that.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh

from cluster import plan
from llip import devices
from llip.config import TrainingConfig
from llip.contrastive import create_model
from llip.model import packing
from llip.model.features import Pooled
from llip.model.towers import Block
from llip.pairs import accumulation, losses
from llip.pairs.losses import loss_of_features
from llip.recipes import recipe
from llip.summary import summarise
from llip.training.optimizer import build_optimizer
from llip.training.parallel import World, _shard

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.fake_gpu import Count, compile_with_gradients

PAPER = {
    "clip_b32": 128,
    "llip_b32_k64": 128,
    "clip_l14": 128,
    "llip_l14_k32": 128,
    "clip_h14": 256,
    "llip_h14_k64": 256,
}
"""Recipes and the GPUs that they are counted on."""
BASELINES = {"llip_b32_k64": "clip_b32", "llip_l14_k32": "clip_l14", "llip_h14_k64": "clip_h14"}
FORMS = {
    "eager": replace(devices.A100, fused=False, compiled=False, triton=False, bandwidth=None),
    "compiled": replace(devices.A100, triton=False),
    "fused": devices.A100,
}
"""The pair stage of the CPU with a GPU's tiles, compiled functions between products, and kernels in Triton."""
CAPTION_TOKENS = 24
BANDWIDTH, PEAK, TOWERS, PAIRS, SINGLE = 1.6e12, 312e12, 0.7, 0.4, 0.7 * 19.5e12
NETWORK = 45e9
"""Bytes a second between nodes of eight, whose ranks share the ring."""


class Part(NamedTuple):
    """What some part of a step does."""

    kernels: int
    elementwise_bytes: int
    product_bytes: int
    flops: float
    single_flops: float
    synchronisations: int
    triton_flops: float = 0.0
    triton_bytes: int = 0
    cache_bytes: int = 0
    triton_seconds: float = 0.0

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
        count.single_flops,
        count.synchronisations.total(),
        count.triton_flops,
        own["triton"],
        own["cache"],
        count.triton_seconds,
    )


class Step(NamedTuple):
    """A step of one rank."""

    towers: Part
    """Forward and backward of towers and projections."""
    pairs: Part
    """Scores, loss and their gradients, the exchange included."""
    update: Part
    exchanged: int
    """Bytes that a rank sends in the exchange, in a ring."""
    synchronised: int
    """And for its parameters and gradients."""
    memory: float
    """Bytes of all tensors where they are most, but for AdamW's state the first time; 0 where nobody asked."""

    @property
    def tower_ms(self) -> float:
        return 1e3 * self.towers.flops / (PEAK * TOWERS) + self.towers.elementwise_ms

    @property
    def pair_ms(self) -> float:
        pairs = self.pairs
        rounded = (pairs.flops - pairs.triton_flops - pairs.single_flops) / (PEAK * PAIRS)
        products = max(rounded + pairs.single_flops / SINGLE, pairs.product_bytes / BANDWIDTH)
        return 1e3 * (products + pairs.triton_seconds) + pairs.elementwise_ms

    @property
    def update_ms(self) -> float:
        return self.update.elementwise_ms

    @property
    def ms(self) -> float:
        """Without the network, launches and waits."""
        return self.tower_ms + self.pair_ms + self.update_ms


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


def count_step(
    name: str,
    gpus: int,
    form: str,
    *,
    parallel: Literal["ddp", "fsdp"] = "ddp",
    layers: int | None = None,
    memory: bool = False,
) -> Step:
    """Count a step of a recipe, its memory where asked for; with `layers`, of towers with as many, for tests."""
    config = configured(name, parallel, layers)
    model_config = config.model
    images = config.data.batch_size // gpus
    token_ids = captions(images, model_config.text.context_length, model_config.text.vocabulary)
    packed = packing.pack(token_ids, latents=0, context_length=model_config.text.context_length)
    towers, pairs, update = Count(), Count(), Count()
    with ranks(gpus) as group, devices.as_on(FORMS[form]), contextlib.ExitStack() as stack:
        mesh = init_device_mesh("cpu", (gpus,))  # it reads tensors, which have contents until here
        stack.enter_context(mock.patch("llip.training.parallel._mesh", lambda *_: mesh))
        mode = stack.enter_context(FakeTensorMode())
        model = create_model(model_config)
        synchronised = 2 * sum(4 * p.numel() for p in model.parameters())  # a ring's sum passes everything on twice
        if parallel == "fsdp":
            world = World(rank=0, size=gpus, device=torch.device("cpu"), group=group)
            replicated = _shard(model, config, world)
            synchronised = 2 * sum(4 * p.numel() for p in replicated)
        optimizer = build_optimizer(model, config)
        pixels = torch.empty(images, 3, model_config.vision.image_size, model_config.vision.image_size)
        inputs = packing.PackedCaptions(*(mode.from_tensor(tensor) for tensor in packed))
        tracker = MemTracker()
        if memory:
            tracker.track_external(model, pixels)
            stack.enter_context(tracker)
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
        peak = sum(of_device["Total"] for of_device in tracker.get_tracker_snapshot("peak").values()) if memory else 0
        with update:
            optimizer.step()
    synchronised += towers.bytes["collective"]
    width = model_config.embed_dim * (1 if isinstance(image_leaves, Pooled) else 2)
    exchanged = config.data.batch_size * width * (2 + 4)
    return Step(part(towers), part(pairs), part(update), exchanged, synchronised, peak)


def configured(name: str, parallel: Literal["ddp", "fsdp"] = "ddp", layers: int | None = None) -> TrainingConfig:
    config = replace(recipe(name), parallel=parallel, activation_checkpointing=False)
    if layers is None:
        return config
    vision, text = replace(config.model.vision, layers=layers), replace(config.model.text, layers=layers)
    return replace(config, model=replace(config.model, vision=vision, text=text))


def memories(name: str, gpus: int, step: Step, layers: int | None = None) -> tuple[float, float]:
    """Bytes that are in use at the peak of a step: counted, and as the planner expects them."""
    config = configured(name, layers=layers)
    parameters = summarise(config.model, CAPTION_TOKENS).parameters
    expected = plan.memory(config, parameters, config.data.batch_size // gpus, CAPTION_TOKENS)
    return step.memory + expected.optimizer, expected.total


def elementwise_of_blocks(name: str, gpus: int) -> tuple[float, float]:
    """Elementwise bytes of both towers' whole blocks in a step: as they run, and compiled. Without the mask that keeps
    packed captions apart, which is the attention's."""
    config = recipe(name)
    vision, text, images = config.model.vision, config.model.text, config.data.batch_size // gpus
    token_ids = captions(images, text.context_length, text.vocabulary)
    packed = packing.pack(token_ids, latents=0, context_length=text.context_length)
    before = after = 0.0
    for tower, heads, shape in (
        (vision, vision.width // vision.head_width, (images, vision.tokens + vision.patches, vision.width)),
        (text, text.heads, (*packed.token_RN.shape, text.width)),
    ):
        with FakeTensorMode():
            block = Block(tower.width, heads, tower.mlp_width or 4 * tower.width, config.model.activation)
            x_BNW = torch.empty(shape, requires_grad=True)
            with Count() as count:
                with torch.autocast("cpu", torch.bfloat16):
                    out_BNW = block(x_BNW, None)
                out_BNW.backward(torch.empty_like(out_BNW))
        compiled = compile_with_gradients(block, *shape)
        blocks = tower.layers - 1  # the last one computes some positions only
        before += blocks * count.bytes["elementwise"]
        after += blocks * compiled.elementwise
    return before, after


def captions(count: int, context: int, vocabulary: int) -> torch.Tensor:
    """Token ids of captions whose lengths have the mean of web captions."""
    generator = torch.Generator().manual_seed(0)
    length_T1 = torch.randint(8, 2 * CAPTION_TOKENS - 8, (count, 1), generator=generator).clamp(max=context)
    ids_TL = torch.randint(1, vocabulary - 1, (count, context), generator=generator)
    ids_TL[torch.arange(context) >= length_T1] = 0
    return ids_TL.scatter(1, length_T1 - 1, vocabulary - 1)


def sent(size: int) -> str:
    return f"{size / 1e9:.2f} GB, {1e3 * size / NETWORK:.0f} ms"


def row(name: str, gpus: int) -> tuple[str, Step]:
    """A line of the table, and the step with fused pairs."""
    steps = [count_step(name, gpus, form, memory=form == "fused") for form in FORMS]
    last = steps[-1]
    pairs, towers = last.pairs, last.towers
    kernels, milliseconds = (
        " / ".join(f"{value:,.0f}" for value in values)
        for values in ([step.pairs.kernels for step in steps], [step.pair_ms for step in steps])
    )
    return (
        f"| {name}, {gpus} | {towers.flops / 1e12:.0f} | {towers.elementwise_bytes / 1e9:,.0f} | {last.tower_ms:,.0f} "
        f"| {kernels} | {pairs.flops / 1e12:.2f} "
        f"| {(pairs.elementwise_bytes + pairs.product_bytes + pairs.triton_bytes) / 1e9:,.0f} "
        f"| {pairs.cache_bytes / 1e9:,.0f} | {milliseconds} "
        f"| {sum(p.synchronisations for p in last[:3])} | {last.ms:,.0f} |",
        last,
    )


HEADING = """\
| recipe, GPUs | towers: TFLOP | elementwise GB | ms | pairs: kernels, eager / compiled / fused | fused: TFLOP | GB \
| GB of cache | ms, eager / compiled / fused | waits of the host | ms a step |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


@pytest.mark.bench
@pytest.mark.parametrize("name", ["llip_l14_k32", "llip_b32_k64"])
def test_fused_pairs_take_half_the_time_of_compiled_ones(name: str) -> None:
    eager, compiled, fused = (count_step(name, 128, form, layers=1) for form in FORMS)
    assert compiled.pairs.elementwise_bytes < eager.pairs.elementwise_bytes / 3
    assert fused.pair_ms < compiled.pair_ms / 2
    assert not fused.towers.synchronisations and not fused.pairs.synchronisations


@pytest.mark.bench
def test_sharded_parameters_travel_once_more_than_replicated_ones_and_are_updated_once_by_all() -> None:
    """Those of 64 tokens too, though there are more ranks."""
    whole, sharded = (count_step("llip_b32_k64", 128, "fused", parallel=p, layers=2) for p in ("ddp", "fsdp"))
    assert 1.4 < sharded.synchronised / whole.synchronised < 1.6  # twice to all ranks, and back
    assert whole.update.elementwise_bytes > 80 * sharded.update.elementwise_bytes
    assert sharded.towers.flops == whole.towers.flops and not sharded.towers.synchronisations


@pytest.mark.bench
@pytest.mark.parametrize("name", ["clip_l14", "llip_l14_k32"])
def test_memory_is_what_the_planner_expects(name: str) -> None:
    counted, expected = memories(name, 128, count_step(name, 128, "fused", layers=6, memory=True), layers=6)
    assert 0.8 < counted / expected < 1.1


@pytest.mark.bench
def test_compiled_blocks_of_a_tower_move_less() -> None:
    before, after = elementwise_of_blocks("clip_l14", 128)
    assert after < 0.8 * before


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(PAPER))
    parser.add_argument("--gpus", type=int, help="the paper's number of each recipe where not given")
    settings: Any = parser.parse_args(arguments)
    print(HEADING)
    found = {}
    for name in settings.recipes:
        line, found[name] = row(name, settings.gpus or PAPER.get(name, 128))
        print(line, flush=True)
    compiled = {}
    for name, step in found.items():
        before, after = elementwise_of_blocks(name, settings.gpus or PAPER.get(name, 128))
        compiled[name] = step.ms - 1e3 * (before - after) / BANDWIDTH
        print(
            f"{name}: blocks of the towers {before / 1e9:,.0f} GB elementwise, {after / 1e9:,.0f} compiled; "
            f"a step {compiled[name]:,.0f} ms with these compiled"
        )
        counted, expected = memories(name, settings.gpus or PAPER.get(name, 128), step)
        print(f"{name}: {counted / 2**30:.1f} GiB at the peak of a step, {expected / 2**30:.1f} by the planner")
        sharded = count_step(name, settings.gpus or PAPER.get(name, 128), "fused", parallel="fsdp")
        more = sharded.towers.elementwise_bytes - step.towers.elementwise_bytes
        print(
            f"{name}: exchange {sent(step.exchanged)}; DDP {sent(step.synchronised)}; "
            f"FSDP2 {sent(sharded.synchronised)}, {more / 1e9:,.0f} GB of copies more, "
            f"update {step.update_ms:.1f} → {sharded.update_ms:.1f} ms"
        )
    for name, clip in BASELINES.items():
        if {name, clip} <= found.keys():
            ratios = found[name].ms / found[clip].ms, compiled[name] / compiled[clip]
            print(f"{name} over {clip}: {ratios[0]:.2f}, compiled {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
