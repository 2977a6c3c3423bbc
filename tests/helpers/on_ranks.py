"""What a rank does in tests of several: updates of a fresh model on its share of a batch, or of a run in a folder."""

import contextlib
import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from tqdm import tqdm

import llip
from llip.config import TrainingConfig
from llip.data import loader
from llip.pairs import accumulation
from llip.runs.stopping import StoppedError
from llip.runs.tracking import Tracker
from llip.training import loop
from llip.training.optimizer import build_optimizer
from llip.training.parallel import Towers, World, clip_gradient, current_world, full, gradient_norm


def batch(config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """Pixels [B, 3, S, S] and token ids [C, B, L]."""
    random = torch.Generator().manual_seed(1)
    size, batch = config.model.vision.image_size, config.data.batch_size
    pixels = torch.randn(batch, 3, size, size, generator=random, dtype=torch.float64)
    ids = torch.randint(1, 49406, (config.data.captions_per_image, batch, 8), generator=random)
    ids[..., 0], ids[..., -1] = 49406, 49407
    return pixels, ids


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def train(
    config: TrainingConfig, world: World, dtype: torch.dtype = torch.float64
) -> tuple[list[float], dict[str, Tensor]]:
    """Loss and gradient norm of two updates on this rank's share of the batch; gradients and parameters after them."""
    torch.manual_seed(0)
    model = llip.create_model(config).to(dtype)
    towers = Towers(model, config, world)
    optimizer = build_optimizer(model, config)
    pixels, ids = batch(config)
    pixels = pixels.to(dtype)
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
    learned = {name: p for name, p in named.items() if p.requires_grad}
    gradients = {f"gradient of {name}": full(gradient_of(p)).clone() for name, p in learned.items()}
    return numbers, gradients | {name: full(p.detach()).clone() for name, p in named.items()}


def go_on(
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
