"""Several ranks against one process: loss, gradients and weights in float64, runs that change hands, evaluation."""

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
from helpers import forkserver
from helpers.evaluation_samples import make_sets
from helpers.on_ranks import batch, go_on, gradient_of, train
from helpers.short_runs import newest
from torch.distributed.tensor import Shard

import llip
from llip.config import HeadConfig, TrainingConfig
from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import InProcess, Runner
from llip.evaluation.evaluate import evaluate_sets, named
from llip.evaluation.ranks import OverRanks
from llip.model.features import Mixture
from llip.pairs import accumulation
from llip.runs.tracking import read_metrics
from llip.training import checkpoint
from llip.training.parallel import Towers, _axis, current_world, seed_step

RANKS, SLOW = 3, 0.5
"""Processes, and the seconds that the second of them takes longer for a step."""

pytestmark = pytest.mark.timeout(900)  # three processes that import torch share two cores with other tests


def _evaluate(
    config: TrainingConfig, runner: Callable[[ContrastiveModel], Runner], broken: int | None
) -> dict[str, float] | str:
    """Metrics of a fresh model, or what is said of a picture that cannot be read."""
    torch.manual_seed(0)
    model = llip.create_model(config)
    sets = make_sets(images=10)
    if broken is not None:
        rows = sets[0].table.to_pylist()
        rows[broken]["image"] = b"no image"
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
                go_on(replace(self.small, parallel=parallel), self.shards, f"{self.folder}/run", 2, patch)
                for parallel in ("fsdp", "ddp")
            ]
        results["reads"] = len(reads)
        results["steps"] = [train(config, world) for config in self.configs]
        torch.save(results, f"{self.folder}/rank-{rank}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def work(small: TrainingConfig, shards: str, tmp_path_factory: pytest.TempPathFactory) -> Work:
    # AdamW divides by eps what rounding leaves of a gradient that is zero: that of a key's bias.
    small = replace(small, optimizer=replace(small.optimizer, eps=1e-2))
    # Fewer tokens than ranks, which divide the width: projections of each token are cut along that.
    small = replace(small, model=replace(small.model, vision=replace(small.model.vision, tokens=2, width=24)))
    return Work(_variants(small), replace(small, ema_decay=0.9), shards, str(tmp_path_factory.mktemp("ranks")))


@pytest.fixture(scope="module")
def alone_first(work: Work) -> dict[int, list[str]]:
    """Samples of the run's first update, made by one process."""
    return go_on(work.small, work.shards, f"{work.folder}/run", 1, pytest.MonkeyPatch())


@pytest.fixture(scope="module")
def ranks(work: Work, alone_first: dict[int, list[str]]) -> list[dict[str, Any]]:
    """What the ranks found."""
    forkserver.start(work, RANKS, RANKS)
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
    words = replace(in_parts, model=replace(small.model, word_weight=0.5))
    sharded = [clipped, replace(in_parts, activation_checkpointing=True), shared, words]
    flair = replace(in_parts, model=replace(small.model, vision=replace(small.model.vision, tokens=1)))
    head = replace(small.model.head, patch_tokens=True, empty_token=True, global_weight=0.25)
    flair = replace(flair, model=replace(flair.model, head=head))
    sharded.append(flair)
    return [
        clipped,
        in_parts,
        recomputing,
        clip,
        words,
        flair,
        *(replace(config, parallel="fsdp") for config in sharded),
    ]


def test_ranks_equal_one_process(work: Work, ranks: list[dict[str, Any]]) -> None:
    """Under DistributedDataParallel and under FSDP2, in one piece, in parts and recomputing."""
    for index, config in enumerate(work.configs):
        expected_numbers, expected = train(config, current_world())
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
    last = go_on(work.small, work.shards, f"{work.folder}/run", -1, monkeypatch)
    expected_samples = go_on(work.small, work.shards, str(tmp_path), -1, monkeypatch)
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
    pixels, ids = batch(config)
    images, *_ = Towers(model, config, current_world())(pixels.float(), ids.flatten(0, 1))
    assert isinstance(images, Mixture) and images.key_BMKE.dtype == torch.bfloat16
    output = accumulation.backward(
        model,
        [(pixels.float(), ids.flatten(0, 1))],
        config=config.objective,
        captions_per_image=2,
        forward=Towers(model, config, current_world()),
    )
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert {gradient_of(p).dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("shape", "ranks", "axis"),
    [((32, 1024, 768), 128, 1), ((32, 1024, 768), 32, 0), ((32, 1024, 768), 120, 0), ((32, 640, 768), 256, 2)],
)
def test_a_parameter_of_few_rows_is_cut_along_another_axis(shape: tuple[int, ...], ranks: int, axis: int) -> None:
    assert _axis(torch.nn.Parameter(torch.empty(shape)), ranks) == Shard(axis)
    assert _axis(torch.nn.Parameter(torch.empty(7)), ranks) == Shard(0)


def test_randomness_of_a_step_is_a_function_of_seed_step_and_rank() -> None:
    def draw(*key: int) -> float:
        seed_step(*key)
        return torch.rand(()).item()

    keys = [(s, t, r) for s in range(3) for t in range(3) for r in range(3)]
    draws = {key: draw(*key) for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert {key: draw(*key) for key in reversed(keys)} == draws
