"""Several ranks against one process, in float64: the loss and every gradient."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import llip
from llip.config import TrainingConfig
from llip.objective import accumulation
from llip.training.parallel import Towers, World, current_world, gradient_norm, seed_step

Batch = tuple[Tensor, Tensor]


def _batch(config: TrainingConfig) -> Batch:
    """Pixels [B, 3, S, S] and token ids [C, B, L]."""
    random = torch.Generator().manual_seed(1)
    size, batch = config.model.vision.image_size, config.data.batch_size
    pixels = torch.randn(batch, 3, size, size, generator=random, dtype=torch.float64)
    ids = torch.randint(1, 49406, (config.data.captions_per_image, batch, 8), generator=random)
    ids[..., 0], ids[..., -1] = 49406, 49407
    return pixels, ids


def _step(config: TrainingConfig, world: World) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, gradient norm and gradients of one step on this rank's share of the batch."""
    torch.manual_seed(0)
    model = llip.create_model(config).double()
    towers = Towers(model, config, world)
    pixels, ids = _batch(config)
    pixels, ids = pixels.chunk(world.size)[world.rank], ids.chunk(world.size, dim=1)[world.rank]
    pieces = config.objective.accumulation
    output = accumulation.backward(
        model,
        [(p, t.flatten(0, 1)) for p, t in zip(pixels.chunk(pieces), ids.chunk(pieces, dim=1), strict=True)],
        config=config.objective,
        captions_per_image=config.data.captions_per_image,
        group=world.group,
        forward=towers,
    )
    loss, norm = world.mean([output.loss, gradient_norm(model)])
    return loss, norm, {name: p.grad.clone() for name, p in model.named_parameters()}


def _rank(rank: int, size: int, folder: str, configs: list[TrainingConfig]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    results = [_step(config, current_world()) for config in configs]
    torch.save(results, f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def _variants(small: TrainingConfig) -> list[TrainingConfig]:
    in_parts = replace(small, objective=replace(small.objective, accumulation=2))
    recomputing = replace(small, activation_checkpointing=True)
    clip = replace(
        llip.recipe("clip_tiny"), data=small.data, model=replace(llip.recipe("clip_tiny").model, embed_dim=16)
    )
    return [small, in_parts, recomputing, clip]


def test_two_ranks_equal_one_process(small: TrainingConfig, tmp_path: Path) -> None:
    configs = _variants(small)
    mp.spawn(_rank, (2, str(tmp_path), configs), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    for index, config in enumerate(configs):
        expected_loss, expected_norm, expected = _step(config, current_world())
        for loss, norm, gradients in (rank[index] for rank in ranks):
            assert loss == pytest.approx(expected_loss, rel=1e-12)
            assert norm == pytest.approx(expected_norm, rel=1e-9)
            for name, gradient in expected.items():
                torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=f"{index} {name}")


def test_bf16_autocast_keeps_parameters_and_gradients_in_fp32(small: TrainingConfig) -> None:
    torch.manual_seed(0)
    config = replace(small, precision="bf16")
    model = llip.create_model(config)
    pixels, ids = _batch(config)
    images, _ = Towers(model, config, current_world())(pixels.float(), ids.flatten(0, 1))
    assert images.key_BMKE.dtype == torch.bfloat16
    output = accumulation.backward(
        model,
        [(pixels.float(), ids.flatten(0, 1))],
        config=config.objective,
        captions_per_image=2,
        forward=Towers(model, config, current_world()),
    )
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_randomness_of_a_step_is_a_function_of_seed_step_and_rank() -> None:
    def draw(*key: int) -> float:
        seed_step(*key)
        return torch.rand(()).item()

    keys = [(s, t, r) for s in range(3) for t in range(3) for r in range(3)]
    draws = {key: draw(*key) for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert {key: draw(*key) for key in reversed(keys)} == draws
