"""The training loop: load, step, log, save, evaluate.

Axes: B images of this rank · C captions an image · H, W pixels · L tokens.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import llip
from llip.config import TrainingConfig
from llip.data.loader import Batch, LaneLoader
from llip.data.transforms import normalize
from llip.model.build import ContrastiveModel
from llip.objective import accumulation
from llip.training import checkpoint
from llip.training.metrics import Rates, peak_memory
from llip.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from llip.training.parallel import Towers, World, gradient_norm, seed_step
from llip.training.tracking import Tracker

Evaluate = Callable[[int, ContrastiveModel], None]
Progress = Callable[..., Any]
"""Makes a bar, as `tqdm.tqdm(desc=, total=, initial=, unit=)` does."""


class NonFiniteError(RuntimeError):
    """The loss or a gradient is not finite. No rank has made the update."""


def every(step: int, n: int | None) -> bool:
    """Whether what happens every `n` steps is due after `step` updates. Never, for None."""
    return n is not None and step > 0 and step % n == 0


def train(
    config: TrainingConfig,
    *,
    shards: str,
    folder: str,
    world: World,
    tracker: Tracker,
    evaluate: Evaluate | None = None,
    progress: Progress = tqdm,
) -> ContrastiveModel:
    """Train to `config.steps` from the newest checkpoint in the run's folder, or from the start. Returns the model.

    `evaluate(step, model)` runs on every rank, every `config.evaluate_every` steps and at the end, also where nothing
    was left to train.
    Raises NonFiniteError, on every rank and before the update, where the loss or the gradient is not finite.
    """
    torch.manual_seed(config.seed)
    model = llip.create_model(config).to(world.device)
    optimizer = build_optimizer(model, config.optimizer)
    newest = checkpoint.latest(folder)
    start = checkpoint.restore(newest, model, optimizer) if newest else 0
    tracker.rewind(start)
    towers = Towers(model, config, world)
    rates = Rates(start * config.data.batch_size)

    with (
        _loader(config, shards, world) as loader,
        contextlib.closing(loader.iter_from(start)) as batches,
        progress(desc="train", total=config.samples, initial=rates.samples, unit="img") as bar,
    ):
        for step in range(start, config.steps + 1):  # one turn more than updates: the end is saved and evaluated too
            last = step == config.steps
            with rates.paused():
                if step > start and (last or every(step, config.checkpoint_every)):
                    tracker.flush()
                    if world.rank == 0:
                        checkpoint.save(folder, step, model, optimizer, config)
                if evaluate and (last or every(step, config.evaluate_every)):
                    evaluate(step, model)
            if last:
                break

            seed_step(config.seed, step, world.rank)
            set_learning_rate(optimizer, learning_rate(step, config.steps, config.optimizer))
            output = accumulation.backward(
                model,
                parts(next(batches), config, world.device),
                config=config.objective,
                captions_per_image=config.data.captions_per_image,
                group=world.group,
                forward=towers,
            )
            loss, norm, hits = world.mean([output.loss, gradient_norm(model), output.guard_hits])
            if not math.isfinite(loss + norm):
                raise NonFiniteError(_diagnosis(step, loss, norm, model))
            optimizer.step()
            optimizer.zero_grad()
            model.clamp_logit_scale(config.optimizer.max_logit_scale)

            bar.update(config.data.batch_size)
            if every(step + 1, config.log_every) or step + 1 == config.steps:
                values = {"loss": loss, "gradient_norm": norm, "guard_hits": hits * world.size}
                values |= _model_state(model) | {"learning_rate": optimizer.param_groups[0]["lr"]}
                values |= rates.lap((step + 1) * config.data.batch_size, loader.stats) | {
                    "memory": peak_memory(world.device)
                }
                tracker.log(step + 1, values)
    return model


def parts(batch: Batch, config: TrainingConfig, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """A batch in `accumulation` parts: pixels [b, 3, H, W] on the device and caption-major token ids [C·b, L].

    Captions stay in main memory: the text tower packs them there, and would wait for the device to read them back.
    """
    pixels_BCHW = batch.images.to(device, non_blocking=True)
    ids_CBL = batch.token_ids.unflatten(0, (config.data.captions_per_image, -1))
    pieces = config.objective.accumulation
    return [
        (normalize(pixels, torch.float32), ids.flatten(0, 1))
        for pixels, ids in zip(pixels_BCHW.chunk(pieces), ids_CBL.chunk(pieces, dim=1), strict=True)
    ]


def _model_state(model: ContrastiveModel) -> dict[str, float]:
    """Scale and bias of the scores."""
    state = {"logit_scale": float(model.logit_scale.detach().exp())}
    return state if model.logit_bias is None else state | {"logit_bias": float(model.logit_bias.detach())}


def _diagnosis(step: int, loss: float, norm: float, model: ContrastiveModel) -> str:
    """What was not finite, for the error of an update that is not made."""
    broken = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    where = f"; gradients that are not finite: {len(broken)}, first {broken[0]}" if broken else ""
    return (
        f"update {step} was not made: loss {loss}, gradient norm {norm}{where}. The checkpoints before it are intact; "
        "a lower learning rate or a longer warm-up is the usual cure"
    )


def _loader(config: TrainingConfig, shards: str, world: World) -> LaneLoader:
    return LaneLoader(
        shards,
        config.data,
        image_size=config.model.vision.image_size,
        context_length=config.model.text.context_length,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
    )
