"""Several ranks against one process: loss, gradients and weights in float64, runs that change hands, evaluation."""

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers.evaluation_samples import make_sets
from helpers.short_runs import newest
from torch import Tensor
from tqdm import tqdm

import llip
from llip.config import HeadConfig, TrainingConfig
from llip.contrastive import ContrastiveModel
from llip.data import loader
from llip.evaluation.encode import InProcess, Runner
from llip.evaluation.evaluate import evaluate_sets, named
from llip.evaluation.ranks import OverRanks
from llip.model.features import Mixture
from llip.pairs import accumulation
from llip.training import checkpoint, loop
from llip.training.optimizer import build_optimizer
from llip.training.parallel import Towers, World, clip_gradient, current_world, full, gradient_norm, seed_step
from llip.training.stopping import StoppedError
from llip.training.tracking import Tracker, read_metrics

Batch = tuple[Tensor, Tensor]
RANKS, SLOW = 3, 1.0
"""Processes, and the seconds that the second of them takes longer for a step."""

pytestmark = pytest.mark.timeout(900)  # three processes that import torch share two cores with other tests


def _batch(config: TrainingConfig) -> Batch:
    """Pixels [B, 3, S, S] and token ids [C, B, L]."""
    random = torch.Generator().manual_seed(1)
    size, batch = config.model.vision.image_size, config.data.batch_size
    pixels = torch.randn(batch, 3, size, size, generator=random, dtype=torch.float64)
    ids = torch.randint(1, 49406, (config.data.captions_per_image, batch, 8), generator=random)
    ids[..., 0], ids[..., -1] = 49406, 49407
    return pixels, ids


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _train(config: TrainingConfig, world: World) -> tuple[list[float], dict[str, Tensor]]:
    """Loss and gradient norm of two updates on this rank's share of the batch; gradients and parameters after them."""
    torch.manual_seed(0)
    model = llip.create_model(config).double()
    towers = Towers(model, config, world)
    optimizer = build_optimizer(model, config)
    pixels, ids = _batch(config)
    shares = [len(share) for share in pixels.tensor_split(world.size)]
    pixels, ids = pixels.tensor_split(world.size)[world.rank], ids.tensor_split(world.size, dim=1)[world.rank]
    pieces = config.objective.micro_batches(max(shares))
    of_parts = zip(pixels.tensor_split(pieces), ids.tensor_split(pieces, dim=1), strict=True)
    parts = [(p, t.flatten(0, 1)) for p, t in of_parts]
    numbers = []
    for _ in range(2):
        optimizer.zero_grad()
        output = accumulation.backward(
            model,
            parts,
            config=config.objective,
            captions_per_image=config.data.captions_per_image,
            group=world.group,
            images_by_rank=shares,
            forward=towers,
        )
        towers.average_replicated()
        losses, (norm, *_) = world.scalars([output.loss, gradient_norm(model)])
        numbers += [sum(losses) / world.size, norm]
        if config.optimizer.max_gradient_norm is not None:
            clip_gradient(model, norm, config.optimizer.max_gradient_norm)
            assert gradient_norm(model).item() == pytest.approx(min(norm, config.optimizer.max_gradient_norm))
        optimizer.step()
    named = dict(model.named_parameters())
    gradients = {f"gradient of {name}": full(_gradient(p)).clone() for name, p in named.items()}
    return numbers, gradients | {name: full(p.detach()).clone() for name, p in named.items()}


def _go_on(
    config: TrainingConfig, shards: str, folder: str, updates: int, monkeypatch: pytest.MonkeyPatch
) -> dict[int, list[str]]:
    """Train the run in a folder for some more updates, or to its end. Returns the samples of this rank by step."""
    seen: dict[int, list[str]] = {}
    parts, world, answers = loop.parts, current_world(), itertools.count(1)

    def noted(batch: loader.Batch, *rest: Any) -> Any:
        seen[batch.step] = batch.sample_ids
        return parts(batch, *rest)

    with monkeypatch.context() as patch, Tracker(None, folder, enabled=world.rank == 0) as tracker:
        patch.setattr(loop, "parts", noted)
        with contextlib.suppress(StoppedError):
            loop.train(
                config,
                shards=shards,
                folder=folder,
                world=world,
                tracker=tracker,
                stop=lambda: next(answers) == updates,
                progress=partial(tqdm, disable=True),
            )
    return seen


def _evaluate(
    config: TrainingConfig, runner: Callable[[ContrastiveModel], Runner], broken: int | None
) -> dict[str, float] | str:
    """Metrics of a fresh model, or what is said of a picture that cannot be read."""
    torch.manual_seed(0)
    model = llip.create_model(config)
    sets = make_sets(images=10)
    if broken is not None:
        rows = sets[0].table.to_pylist()
        rows[broken]["image"] = b"no picture"
        sets[0] = replace(sets[0], table=pa.Table.from_pylist(rows))
    try:
        return {name: metric.value for name, metric in named(evaluate_sets(model, sets, runner(model))).items()}
    except ValueError as error:
        return str(error)


@dataclass(frozen=True)
class Work:
    """What three processes do, which take seconds to start; their shares of a batch are of unequal size."""

    configs: list[TrainingConfig]
    small: TrainingConfig
    shards: str
    folder: str

    def __call__(self, rank: int, size: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{self.folder}/store", rank=rank, world_size=size)
        world, patch = current_world(), pytest.MonkeyPatch()
        over_ranks = partial(OverRanks, ranks=world, batch_size=3)
        results: dict[str, object] = {
            "metrics": [_evaluate(self.small, lambda m: over_ranks(model=m), broken) for broken in (None, 4)],
        }
        with pytest.MonkeyPatch.context() as slow:
            forward, read, reads = Towers.__call__, checkpoint._read, list[str]()

            def forward_slowly(*inputs: Any) -> Any:
                features = forward(*inputs)
                time.sleep(SLOW * (rank == 1))
                return features

            def read_noted(uri: str) -> Any:
                reads.append(uri)
                return read(uri)

            slow.setattr(Towers, "__call__", forward_slowly)
            slow.setattr(checkpoint, "_read", read_noted)
            results["samples"] = [
                _go_on(replace(self.small, parallel=parallel), self.shards, f"{self.folder}/run", 2, patch)
                for parallel in ("fsdp", "ddp")
            ]
        results["reads"] = len(reads)
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # that it can be, not how fast it is
        results["steps"] = [_train(config, world) for config in self.configs]
        torch.save(results, f"{self.folder}/rank-{rank}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def work(small: TrainingConfig, shards: str, tmp_path_factory: pytest.TempPathFactory) -> Work:
    # AdamW divides by eps what rounding leaves of a gradient that is zero: that of a key's bias.
    small = replace(small, optimizer=replace(small.optimizer, eps=1e-2))
    return Work(_variants(small), replace(small, ema_decay=0.9), shards, str(tmp_path_factory.mktemp("ranks")))


@pytest.fixture(scope="module")
def alone_first(work: Work) -> dict[int, list[str]]:
    """Samples of the run's first update, made by one process."""
    return _go_on(work.small, work.shards, f"{work.folder}/run", 1, pytest.MonkeyPatch())


@pytest.fixture(scope="module")
def ranks(work: Work, alone_first: dict[int, list[str]]) -> list[dict[str, Any]]:
    """What the ranks found."""
    mp.spawn(work, (RANKS,), nprocs=RANKS)
    return [torch.load(f"{work.folder}/rank-{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _variants(small: TrainingConfig) -> list[TrainingConfig]:
    in_parts = replace(small, objective=replace(small.objective, accumulation=2))
    recomputing = replace(small, activation_checkpointing=True)
    mean = replace(small, model=replace(small.model, head=HeadConfig(kind="mean")))
    clip = replace(
        llip.recipe("clip_tiny"), data=small.data, model=replace(llip.recipe("clip_tiny").model, embed_dim=16)
    )
    shared = replace(mean, model=replace(mean.model, head=replace(mean.model.head, shared_projections=True)))
    clipped = replace(small, optimizer=replace(small.optimizer, max_gradient_norm=0.5))
    sharded = [clipped, replace(in_parts, activation_checkpointing=True), replace(shared, compile=True)]
    return [clipped, in_parts, recomputing, clip, *(replace(config, parallel="fsdp") for config in sharded)]


def test_ranks_equal_one_process(work: Work, ranks: list[dict[str, Any]]) -> None:
    """Under DistributedDataParallel and under FSDP2, in one piece, in parts, recomputing and compiled."""
    for index, config in enumerate(work.configs):
        expected_numbers, expected = _train(replace(config, compile=False), current_world())
        for numbers, tensors in (rank["steps"][index] for rank in ranks):
            assert numbers == pytest.approx(expected_numbers, rel=1e-9)
            for name, tensor in expected.items():
                torch.testing.assert_close(tensors[name], tensor, rtol=1e-9, atol=1e-12, msg=f"{index} {name}")


def test_a_run_goes_on_over_other_ranks_with_the_same_samples(
    work: Work,
    alone_first: dict[int, list[str]],
    ranks: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One process, then three under FSDP2, then three under DistributedDataParallel, then one: averages included."""
    last = _go_on(work.small, work.shards, f"{work.folder}/run", -1, monkeypatch)
    expected_samples = _go_on(work.small, work.shards, str(tmp_path), -1, monkeypatch)
    samples = {step: sorted(ids) for step, ids in (alone_first | last).items()}
    for phase in range(2):
        shares = [rank["samples"][phase] for rank in ranks]
        assert {len(ids) for ids in shares[0].values()} == {8} and {len(ids) for ids in shares[1].values()} == {4}
        samples |= {step: sorted(i for share in shares for i in share[step]) for step in shares[0]}
    assert samples == {step: sorted(ids) for step, ids in expected_samples.items()} and len(samples) == work.small.steps

    for line in read_metrics(f"{work.folder}/run")[3:5]:  # under FSDP the others wait for it in their forward pass
        assert line["slowest_rank"] == 1
        assert line["step_seconds_max"] > max(SLOW, line["step_seconds"])
    losses, expected = ([line["loss"] for line in read_metrics(f)] for f in (f"{work.folder}/run", str(tmp_path)))
    assert losses == pytest.approx(expected, rel=1e-5)
    models = [llip.load_model(newest(folder)) for folder in (f"{work.folder}/run", str(tmp_path))]
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


def test_ranks_read_a_checkpoint_once(ranks: list[dict[str, Any]]) -> None:
    """For shards, each rank the whole files of one process, 2; of what all hold, its share of 3 times 2 files."""
    assert [rank["reads"] for rank in ranks] == [4, 4, 4]


def test_ranks_share_an_evaluation(work: Work, ranks: list[dict[str, Any]]) -> None:
    """Every number of one process; and what one rank cannot read is said by rank 0."""
    for index, broken in enumerate((None, 4)):
        expected = _evaluate(work.small, lambda model: InProcess(model=model, batch_size=3, progress=False), broken)
        assert ranks[0]["metrics"][index] == expected
        assert all(rank["metrics"][index] == {} for rank in ranks[1:])
    assert "row 4" in expected


def test_bf16_autocast_keeps_parameters_and_gradients_in_fp32(small: TrainingConfig) -> None:
    torch.manual_seed(0)
    config = replace(small, precision="bf16")
    model = llip.create_model(config)
    pixels, ids = _batch(config)
    images, _ = Towers(model, config, current_world())(pixels.float(), ids.flatten(0, 1))
    assert isinstance(images, Mixture) and images.key_BMKE.dtype == torch.bfloat16
    output = accumulation.backward(
        model,
        [(pixels.float(), ids.flatten(0, 1))],
        config=config.objective,
        captions_per_image=2,
        forward=Towers(model, config, current_world()),
    )
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert {_gradient(p).dtype for p in model.parameters()} == {torch.float32}


def test_randomness_of_a_step_is_a_function_of_seed_step_and_rank() -> None:
    def draw(*key: int) -> float:
        seed_step(*key)
        return torch.rand(()).item()

    keys = [(s, t, r) for s in range(3) for t in range(3) for r in range(3)]
    draws = {key: draw(*key) for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert {key: draw(*key) for key in reversed(keys)} == draws
