"""Every path on a GPU against the CPU, kernels and memory against the count, and the cost of Llip, in five minutes.

    uv run tests/device/run.py --output device.json
    uv run tests/device/run.py --device cpu      # at tiny size, where there is no GPU: the script, not the device

Prints a row a check and writes all of them as JSON; the exit code is 1 where one fails. A check that raises fails with
its error, and the others go on.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

if "cpu" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before a kernel is defined
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "benchmarks")]

import torch
import torch.distributed as dist
from bench_gpu_budget import BASELINES, FORMS, captions, count_step, ranks
from torch import Tensor

from llip import devices
from llip.config import LossName, ModelConfig, ObjectiveConfig, TrainingConfig
from llip.contrastive import ContrastiveModel, create_model
from llip.model.features import ImageFeatures, Mixture, Query, TextFeatures
from llip.pairs import accumulation, losses, scoring
from llip.pairs.losses import LOSSES, ScoreParameters, loss_of_features
from llip.recipes import recipe
from llip.training.optimizer import build_optimizer
from llip.training.parallel import Towers, World, gradient_norm


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a check found."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    """The value is to be at most this; None: it is only reported."""
    error: str = ""

    @property
    def passed(self) -> bool:
        return not self.error and (self.limit is None or self.value <= self.limit)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where checks run, and how large."""

    device: torch.device
    gpu: bool
    dtype: torch.dtype
    """Of features: what the interpreter of Triton's kernels has no products of is left to a GPU."""
    limit: float
    """Relative error of gradients in that precision."""
    recipes: dict[str, int]
    """GPUs for which the step of each recipe is taken."""
    rounds: int

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize(self.device)


def place_of(device: str) -> Place:
    if device == "cpu":
        cpu = torch.device("cpu")
        tiny = {"clip_tiny": 8, "llip_tiny_k8": 8}
        return Place(device=cpu, gpu=False, dtype=torch.float32, limit=1e-4, recipes=tiny, rounds=1)
    full = {"llip_b32_k64": 128, "llip_l14_k32": 128, "llip_h14_k64": 256}
    gpu = torch.device("cuda", torch.cuda.current_device())
    return Place(device=gpu, gpu=True, dtype=torch.bfloat16, limit=3e-2, recipes=full, rounds=5)


def error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative error of any tensor, by norms."""
    found = [
        ((a.detach().cpu().double() - e.double()).norm() / e.double().norm().clamp(min=1e-30)).item()
        for a, e in zip(actual, expected, strict=True)
    ]
    return max(found)


SMALL = "llip_tiny_k8"


def inputs(config: ModelConfig, images: int) -> tuple[Tensor, Tensor]:
    size = config.vision.image_size
    pixels = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(1))
    return pixels, captions(images, config.text.context_length, config.text.vocabulary)


def settings(place: Place, **changes: Any) -> TrainingConfig:
    usual: dict[str, Any] = {"precision": "fp32", "compile": False}
    return replace(recipe(SMALL), **(usual | changes))


def world_of(place: Place, group: dist.ProcessGroup | None = None) -> World:
    return World(rank=0, size=1, device=place.device, group=group)


def gradients_of_step(model: ContrastiveModel, config: TrainingConfig, world: World) -> list[Tensor]:
    """Loss and gradient norm of a step on the same batch everywhere."""
    towers = Towers(model, config, world)
    pixels, ids = inputs(config.model, 8)
    output = accumulation.backward(
        model,
        [(pixels.to(world.device), ids)],
        config=config.objective,
        captions_per_image=1,
        group=world.group,
        forward=towers,
    )
    towers.average_replicated()
    return [output.loss, gradient_norm(model)]


def check_towers(place: Place) -> Iterator[Row]:
    """A whole step of a small model, in each precision, compiled and sharded over one rank."""
    torch.manual_seed(0)
    config = settings(place)
    model = create_model(config.model)
    weights = model.state_dict()
    with devices.as_on(devices.CPU):
        expected = gradients_of_step(model, config, World(rank=0, size=1, device=torch.device("cpu"), group=None))
    ways: dict[str, tuple[dict[str, Any], float]] = {
        "fp32": ({}, 1e-3),
        "bf16": ({"precision": "bf16"}, 5e-2),
        "recomputing": ({"activation_checkpointing": True}, 1e-3),
        "FSDP2 on one rank": ({"parallel": "fsdp"}, 1e-3),
        "FSDP2 on one rank, bf16": ({"parallel": "fsdp", "precision": "bf16", "shard_precision": "bf16"}, 5e-2),
    }
    if place.gpu:  # inductor's compiler for a CPU takes longer than all of this
        ways["compiled, bf16"] = ({"compile": True, "precision": "bf16"}, 5e-2)
        ways["compiled, FSDP2, bf16"] = ({"compile": True, "parallel": "fsdp", "precision": "bf16"}, 5e-2)
    with one_rank(place) as group:
        for name, (changes, limit) in ways.items():
            copy = create_model(config.model).to(place.device)
            copy.load_state_dict(weights)
            sharded = group if changes.get("parallel") else None
            actual = gradients_of_step(copy, settings(place, **changes), world_of(place, sharded))
            yield Row(name=f"step, {name}", value=error(actual, expected), unit="relative error", limit=limit)


@contextlib.contextmanager
def one_rank(place: Place) -> Iterator[dist.ProcessGroup]:
    backend = "nccl" if place.gpu else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def features(place: Place) -> tuple[ImageFeatures, TextFeatures, Tensor]:
    random = torch.Generator().manual_seed(2)
    heads, tokens, width, images = (8, 32, 64, 192) if place.gpu else (2, 3, 8, 5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(place.dtype)

    image = Mixture(draw(images, heads, tokens, width) / 4, draw(images, heads, tokens, width))
    text = Query(draw(images, heads, width) / 4, draw(images, heads * width))
    return image, text, draw(heads * width, heads * width).float() / width


def gradients_of_pairs(
    sides: tuple[ImageFeatures, TextFeatures, Tensor], loss: LossName, device: torch.device, dtype: torch.dtype | None
) -> list[Tensor]:
    """The loss, and its gradients with respect to features and W_O."""
    image, text, out_proj_DD = sides
    leaves = [t.to(device=device, dtype=dtype or t.dtype).requires_grad_() for t in (*image, *text, out_proj_DD)]
    scale, bias = torch.tensor([2.0, -5.0], device=device, dtype=leaves[4].dtype).unbind()
    parameters = ScoreParameters(leaves[4], 5.0, scale, bias)
    config = ObjectiveConfig(loss=loss)
    value = loss_of_features(Mixture(*leaves[:2]), Query(*leaves[2:4]), parameters, config=config).loss
    return [value, *torch.autograd.grad(value, leaves)]


def check_pairs(place: Place) -> Iterator[Row]:
    """Every form and loss against the CPU's in float64."""
    sides = features(place)
    cpu = torch.device("cpu")
    for loss in LOSSES:
        with devices.as_on(devices.CPU):
            expected = gradients_of_pairs(sides, loss, cpu, torch.float64)
        for gram in (True, False):
            for name, form in FORMS.items():
                if name == "fused" and not gram:
                    continue  # is as compiled
                form = form if place.gpu else replace(form, compiled=False)
                with (
                    devices.as_on(form),
                    mock.patch.object(scoring, "gram_is_cheaper", lambda *, gram=gram, **_: gram),
                ):
                    actual = gradients_of_pairs(sides, loss, place.device, None)
                name = f"pairs, {loss}, {name}, {'Gram' if gram else 'output Gram'}"
                yield Row(name=name, value=error(actual, expected), unit="relative error", limit=place.limit)


def seconds(function: Callable[[], object], place: Place) -> float:
    """Median, after a round to warm up."""
    found = []
    for _ in range(place.rounds + 1):
        place.wait()
        start = time.perf_counter()
        function()
        place.wait()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def kernels_of(function: Callable[[], object], place: Place) -> int:
    """Kernels that a GPU ran; 0 on a CPU."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA] if place.gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        function()
        place.wait()
    return sum(event.device_type.name == "CUDA" for event in found.events())


def check_stage(place: Place) -> Iterator[Row]:
    """The pair stage of one rank at the paper's sizes: what came of the other ranks is arbitrary, its time is not."""
    for name, gpus in place.recipes.items():
        counted = count_step(name, gpus, "fused", layers=1)
        config = recipe(name)
        model = create_model(replace(config.model, vision=replace(config.model.vision, layers=1)))
        parameters = losses.score_parameters(model.to(place.device))
        images = config.data.batch_size // gpus
        pixels, ids = inputs(config.model, images)
        with torch.autocast(place.device.type, torch.bfloat16, enabled=place.gpu), torch.no_grad():
            found = model(pixels.to(place.device), model.pack(ids))
        image, text = (accumulation._leaves(side) for side in found)
        with ranks(gpus) as group, mock.patch("llip.pairs.exchange._check_batches"):

            def stage() -> None:
                loss_of_features(image, text, parameters, config=config.objective, group=group)  # noqa: B023

            took = seconds(stage, place)
            yield Row(name=f"{name}, pair stage", value=1e3 * took, unit="ms")
            yield Row(name=f"{name}, counted", value=counted.pair_ms, unit="ms, arithmetic for an A100")
            yield Row(name=f"{name}, kernels", value=kernels_of(stage, place), unit="in the pair stage")
            yield Row(name=f"{name}, kernels counted", value=counted.pairs.kernels, unit="in the pair stage")
            if place.gpu:
                torch.cuda.reset_peak_memory_stats(place.device)
                before = torch.cuda.memory_allocated(place.device)
                stage()
                peak = torch.cuda.max_memory_allocated(place.device) - before
                yield Row(name=f"{name}, memory", value=peak / 2**30, unit="GiB of the pair stage", limit=8.0)


def step_of(name: str, gpus: int, place: Place) -> Callable[[], None]:
    """A step of one of many ranks, without the network."""
    config = recipe(name)
    model = create_model(config.model).to(place.device)
    images = config.data.batch_size // gpus
    pixels, ids = inputs(config.model, images)
    pixels = pixels.to(place.device)
    towers = Towers(model, config if place.gpu else replace(config, precision="fp32"), world_of(place))
    optimizer = build_optimizer(model, config)

    def step() -> None:
        accumulation.backward(
            model,
            [(pixels, ids)],
            config=config.objective,
            captions_per_image=1,
            group=dist.group.WORLD,
            forward=towers,
        )
        optimizer.step()
        optimizer.zero_grad()

    return step


def check_overhead(place: Place) -> Iterator[Row]:
    """Llip over CLIP, and over a model of as many tokens that mixes none."""
    mixed, gpus = ("llip_b32_k64", 128) if place.gpu else ("llip_tiny_k8", 8)
    plain, equal = BASELINES.get(mixed, "clip_tiny"), mixed.replace("llip", "register")
    with ranks(gpus), mock.patch("llip.pairs.exchange._check_batches"):
        times = {name: seconds(step_of(name, gpus, place), place) for name in (mixed, plain, equal)}
    for name, took in times.items():
        yield Row(name=f"{name}, step without network", value=1e3 * took, unit="ms")
    for other in (plain, equal):
        yield Row(name=f"{mixed} over {other}", value=times[mixed] / times[other], unit="times the time")


def check_training(place: Place) -> Iterator[Row]:
    """A few dozen steps on one batch: the loss falls."""
    torch.manual_seed(0)
    config = settings(place, precision="bf16" if place.gpu else "fp32")
    model = create_model(config.model).to(place.device)
    towers, optimizer = Towers(model, config, world_of(place)), torch.optim.AdamW(model.parameters(), lr=1e-3)
    pixels, ids = inputs(config.model, 16)
    found = []
    for _ in range(40 if place.gpu else 8):
        output = accumulation.backward(
            model, [(pixels.to(place.device), ids)], config=config.objective, captions_per_image=1, forward=towers
        )
        optimizer.step()
        optimizer.zero_grad()
        found.append(output.loss.item())
    yield Row(name="loss after training on one batch", value=found[-1] / found[0], unit="of the first", limit=0.9)


CHECKS = (check_towers, check_pairs, check_training, check_stage, check_overhead)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--output", type=Path, help="JSON of all rows")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu runs the script at tiny size")
    place = place_of(options.device)
    rows: list[Row] = []
    print("| check | | | limit | |\n| --- | ---: | --- | ---: | --- |")
    for check in CHECKS:
        started, name = time.monotonic(), check.__name__.removeprefix("check_")
        try:
            for row in check(place):
                rows.append(row)
                show(row)
        except Exception as failure:  # the others still say something
            traceback.print_exc()
            rows.append(Row(name=name, value=0.0, unit="", error=f"{type(failure).__name__}: {failure}"))
            show(rows[-1])
        rows.append(Row(name=f"{name}, in all", value=time.monotonic() - started, unit="s"))
        show(rows[-1])
    if options.output:
        found = {"device": torch.cuda.get_device_name() if place.gpu else "cpu", "torch": torch.__version__}
        options.output.write_text(json.dumps(found | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if failed := [row.name for row in rows if not row.passed]:
        sys.exit(f"failed: {', '.join(failed)}")


def show(row: Row) -> None:
    limit = "" if row.limit is None else f"{row.limit:g}"
    said = row.error or ("" if row.limit is None else "passed" if row.passed else "FAILED")
    print(f"| {row.name} | {row.value:.4g} | {row.unit} | {limit} | {said} |", flush=True)


if __name__ == "__main__":
    main()
