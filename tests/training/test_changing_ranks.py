"""Five ranks, four on two nodes, and five again: one run, held against one process; shards inside nodes (HSDP)."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from helpers import forkserver
from helpers.on_ranks import go_on, train
from helpers.short_runs import newest

import llip
from llip.config import HeadConfig, TrainingConfig
from llip.runs.tracking import read_metrics
from llip.training.parallel import current_world, single_process

PHASES: tuple[tuple[int, Literal["ddp", "fsdp", "hsdp"]], ...] = ((5, "fsdp"), (4, "hsdp"), (5, "ddp"))
"""Ranks, and what they hold."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
]  # five processes on two cores


@dataclass(frozen=True)
class Work:
    """What five processes do, which take seconds to start; the last one rests while four train."""

    small: TrainingConfig
    variants: list[TrainingConfig]
    travels: list[TrainingConfig]
    shards: str
    folder: str

    def __call__(self, rank: int) -> None:
        torch.set_num_threads(1)
        results: dict[str, Any] = {"samples": [], "steps": [], "losses": []}
        for phase, (size, parallel) in enumerate(PHASES):
            if rank >= size:
                results["samples"].append({})
                continue
            store = f"file://{self.folder}/store-{phase}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
            with pytest.MonkeyPatch.context() as patch:
                if parallel == "hsdp":
                    patch.setenv("LOCAL_WORLD_SIZE", "2")
                config = replace(self.small, parallel=parallel)
                results["samples"].append(
                    go_on(config, self.shards, f"{self.folder}/run", 2 if phase < 2 else -1, patch)
                )
                if parallel == "hsdp":
                    world = current_world()
                    eager = partial(torch.compile, backend="eager")  # that it can be compiled, not how fast it is
                    patch.setattr(torch, "compile", eager)
                    results["steps"] = [train(variant, world) for variant in self.variants]
                    results["losses"] = [train(travel, world, torch.float32)[0] for travel in self.travels]
            dist.barrier()
            dist.destroy_process_group()
        torch.save(results, f"{self.folder}/rank-{rank}.pt")


@pytest.fixture(scope="module")
def work(small: TrainingConfig, shards: str, tmp_path_factory: pytest.TempPathFactory) -> Work:
    # AdamW divides by eps what rounding leaves of a gradient that is zero: that of a key's bias.
    optimizer = replace(small.optimizer, eps=1e-2)
    small = replace(small, optimizer=optimizer, data=replace(small.data, lanes=8), ema_decay=0.9)
    # Five ranks divide the width, which shards of the three tokens' projections are cut along.
    small = replace(small, model=replace(small.model, vision=replace(small.model.vision, width=40)))
    hsdp = replace(small, ema_decay=None, parallel="hsdp")
    clipped = replace(hsdp, optimizer=replace(optimizer, max_gradient_norm=0.5))
    in_parts = replace(hsdp, objective=replace(hsdp.objective, accumulation=2), activation_checkpointing=True)
    bf16 = replace(hsdp, precision="bf16")
    travels = [replace(bf16, parallel="ddp"), bf16, replace(bf16, shard_precision="bf16")]
    head = HeadConfig(kind="mean", shared_projections=True)
    compiled = replace(hsdp, model=replace(hsdp.model, head=head), compile=True)
    return Work(small, [clipped, in_parts, compiled], travels, shards, str(tmp_path_factory.mktemp("ranks")))


@pytest.fixture(scope="module")
def ranks(work: Work) -> list[dict[str, Any]]:
    """What the ranks found."""
    forkserver.start(work, 5)
    return [torch.load(f"{work.folder}/rank-{rank}.pt", weights_only=True) for rank in range(5)]


def test_shards_inside_nodes_equal_one_process(work: Work, ranks: list[dict[str, Any]]) -> None:
    """Loss, gradients and weights of two updates in float64 on two nodes of two ranks: whole, in parts, compiled."""
    for index, config in enumerate(work.variants):
        expected_numbers, expected = train(replace(config, compile=False), single_process())
        for numbers, tensors in (rank["steps"][index] for rank in ranks[:4]):
            assert numbers == pytest.approx(expected_numbers, rel=1e-9)
            for name, tensor in expected.items():
                torch.testing.assert_close(tensors[name], tensor, rtol=1e-9, atol=1e-12, msg=f"{index} {name}")


def test_parameters_that_travel_in_bf16_change_the_loss_by_less_than_bf16_itself(
    work: Work, ranks: list[dict[str, Any]], record_property: Any
) -> None:
    """Autocast rounds matrices to bf16 anyway. Losses and norms of two updates: DDP, HSDP, HSDP in bf16."""
    exact, _ = train(replace(work.travels[0], precision="fp32"), single_process(), torch.float32)
    ddp, hsdp, travelling = ranks[0]["losses"]
    assert hsdp == pytest.approx(ddp, rel=1e-4)
    rounding, travel = (
        max(abs(a / b - 1) for a, b in zip(x, y, strict=True)) for x, y in ((ddp, exact), (travelling, hsdp))
    )
    record_property("relative change of losses and gradient norms", (rounding, travel))
    assert 0 < travel < 2 * rounding


def test_a_run_goes_from_five_ranks_to_four_and_back(
    work: Work, ranks: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_samples = go_on(work.small, work.shards, str(tmp_path), -1, monkeypatch)
    samples: dict[int, list[str]] = {}
    for phase, (size, _) in enumerate(PHASES):
        shares = [rank["samples"][phase] for rank in ranks]
        assert sum(map(bool, shares)) == size
        samples |= {step: sorted(i for s in shares for i in s.get(step, ())) for step in shares[0]}
    assert samples == {step: sorted(ids) for step, ids in expected_samples.items()} and len(samples) == work.small.steps
    losses, expected = ([line["loss"] for line in read_metrics(f)] for f in (f"{work.folder}/run", str(tmp_path)))
    assert losses == pytest.approx(expected, rel=1e-5)
    models = [llip.load_model(newest(folder)) for folder in (f"{work.folder}/run", str(tmp_path))]
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


def test_replicas_of_shards_write_nothing(work: Work, ranks: list[dict[str, Any]]) -> None:
    parts = sorted(file.name for file in Path(work.folder, "run", "checkpoints", "step-00000004").glob("model-*"))
    assert parts == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
