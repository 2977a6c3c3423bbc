"""The training loop: load, step, log, save, evaluate.

Axes: B images of this rank · C captions an image · H, W pixels · L tokens.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

import llip
from llip import devices
from llip.config import TrainingConfig
from llip.contrastive import ContrastiveModel
from llip.data.loader import Batch, LaneLoader
from llip.data.order import images_by_rank
from llip.data.transforms import normalize
from llip.interop.warm_start import init_from
from llip.pairs import accumulation
from llip.pairs.distillation import Teacher
from llip.progress import bar as progress_bar
from llip.progress import training_line
from llip.runs import run_folder
from llip.runs.goodput import Goodput, Phases
from llip.runs.stopping import NonFiniteError, Stop, StoppedError
from llip.runs.tracking import Tracker
from llip.training import checkpoint, watchdog
from llip.training.checkpoint import AsyncCheckpointer, TrainingState
from llip.training.metrics import Rates, SpikeDetector, Watched, peak_memory, utilisation
from llip.training.optimizer import MovingAverage, build_optimizer, learning_rate, set_learning_rate
from llip.training.parallel import Towers, World, clip_gradient, full_model, gradient_norm, local, seed_step
from llip.training.profiling import trace_steps
from llip.training.weights import origin

logger = logging.getLogger(__name__)

Evaluate = Callable[[int, ContrastiveModel], None]
Progress = Callable[..., Any]
"""Makes a bar, as `tqdm.tqdm(desc=, total=, initial=, unit=)` does."""


def every(step: int, n: int | None) -> bool:
    """Whether an action of every `n` steps is due after `step` updates. Never, for None."""
    return n is not None and step > 0 and step % n == 0


def train(
    config: TrainingConfig,
    *,
    shards: str | Sequence[str],
    folder: str,
    world: World,
    tracker: Tracker,
    evaluate: Evaluate | None = None,
    stop: Stop = lambda: False,
    asked: float | None = None,
    profile: bool = False,
    progress: Progress = progress_bar,
) -> ContrastiveModel:
    """Train to the end from the newest checkpoint in the run's folder, or from the start. Returns the model.

    `evaluate(step, model)` runs on every rank, every `config.evaluate_every` steps and at the end, also where nothing
    was left to train; its model is the average of the weights where `config.ema_decay` asks for one. `profile` leaves
    a trace of a few steps of rank 0 and a page about them: see `profiling`. `asked` is when training was asked for, by
    the clock: see `goodput`.
    Any number of ranks up to `config.data.lane_count` makes the same updates.
    Raises ValueError where a rank has fewer images than micro-batches and, on every rank, NonFiniteError before an
    update where the loss or the gradient is not finite, unless such batches are left out (`config.nonfinite`), and
    StoppedError, with a checkpoint written, once `stop()` on any rank.
    """
    phases = Phases()
    config = run_folder.for_shards(config, shards)
    shares = images_by_rank(config.data, world.size)
    pieces = config.objective.micro_batches(max(shares))
    if pieces > min(shares):
        raise ValueError(
            f"objective.accumulation is {pieces}; it has to be at most {min(shares)}, the images of a batch that the "
            f"smallest of {world.size} ranks has"
        )
    torch.manual_seed(config.seed)
    account = Goodput(folder, phases, asked=asked, enabled=world.rank == 0)
    with phases.inside("restore"):
        newest = checkpoint.latest(folder, world)
    config, source = origin(config, newest)
    model = llip.create_model(config)
    if source is not None:
        begun = init_from(model, source)
        tracker.artifact("init_from.json", begun._asdict())
        if world.rank == 0:
            logger.warning("%s: made of its weights: %s; new: %s", config.init_from, *map(", ".join, begun))
    model.to(world.device)
    towers = Towers(model, config, world)
    watched = Watched(towers, config.model.mixing_temperature, phases)
    optimizer = build_optimizer(model, config)
    average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
    state = TrainingState(model, optimizer, average)
    with phases.inside("restore"):
        start = state.restore(newest, world) if newest else 0
        if world.rank == 0:
            checkpoint.remove_after(folder, start)
        world.barrier()
    tracker.rewind(start)
    account.resume(start)
    tracker.beside(account.save)
    hosts = watchdog.hosts_of(world)
    tracker.artifact("hosts.json", {str(rank): host for rank, host in enumerate(hosts)})
    skipped, stopping, due, steps = 0, False, False, config.total_steps
    saved, between = time.monotonic(), 60 * (config.checkpoint_minutes or math.inf)
    spikes = SpikeDetector()
    rates = Rates(
        start * config.data.batch_size,
        ranks=world.size,
        share=shares[world.rank] / config.data.batch_size,
        utilisation=utilisation(config, world),
    )
    trace = trace_steps(folder, tracker, images=shares[world.rank], device=world.device)

    with (
        watchdog.watched(folder, phases, world, hosts, config.hang_seconds),
        account,
        AsyncCheckpointer(folder, state, config, world, before=tracker.flush) as checkpointer,
        _loader(config, shards, world) as loader,
        contextlib.closing(loader.iter_from(start)) as batches,
        progress(desc="train", total=config.samples, initial=rates.samples, unit="img") as bar,
        trace if profile and world.rank == 0 else contextlib.nullcontext() as tracing,
    ):
        for step in range(start, steps + 1):  # one turn more than updates: the end is saved and evaluated too
            last = step == steps
            with rates.paused():
                with phases.inside("checkpoint"):
                    if step > start and (last or stopping or due or every(step, config.checkpoint_every)):
                        checkpointer.begin(step)
                        saved = time.monotonic()
                        tracker.checkpoint(step, checkpoint.folder_of(folder, step))
                    if last or stopping:
                        checkpointer.finish(required=True)
                if stopping and not last:
                    raise StoppedError(f"stopped after step {step} of {steps}, as asked; run again to go on")
                if evaluate and (last or every(step, config.evaluate_every)):
                    with phases.inside("evaluation"):
                        evaluate(step, full_model(model, average.tensors if average else None))
            if last:
                break

            seed_step(config.seed, step, world.rank)
            set_learning_rate(optimizer, learning_rate(step, config))
            phases.enter("load")
            with record_function("load"):
                batch = next(batches)
                pieces_of_batch = parts(batch, pieces, config, world.device)
                teacher = teacher_of(batch, config.objective.teacher_scale or loader.teacher_scale, world.device)
            output = accumulation.backward(
                model,
                pieces_of_batch,
                config=config.objective,
                captions_per_image=config.data.captions_per_image,
                group=world.group,
                images_by_rank=shares,
                forward=watched,
                teacher=teacher,
            )
            phases.enter("reduce")
            with record_function("reduce"):
                towers.average_replicated()
                waits = loader.stats.wait_seconds
                losses_R, (norm, *_), hits_R, writing_R, asked_R, due_R, own_R, waits_R = world.scalars(
                    [
                        output.loss,
                        gradient_norm(model),
                        output.clamped_pairs,
                        checkpointer.writing,
                        stop(),
                        time.monotonic() - saved > between,
                        waits + watched.seconds(),
                        waits,
                    ]
                )
            loss = sum(losses_R) / world.size
            writing, stopping, due = any(writing_R), any(asked_R), any(due_R)
            if checkpointer.under_way and not writing:
                with rates.paused(), phases.inside("checkpoint"):
                    checkpointer.finish()
            phases.enter("update")
            if math.isfinite(loss + norm):
                with record_function("update"):
                    if config.optimizer.max_gradient_norm is not None:
                        clip_gradient(model, norm, config.optimizer.max_gradient_norm)
                    optimizer.step()
                    model.clamp_logit_scale(config.optimizer.max_logit_scale)
                    if average:
                        average.update()
                if spike := spikes.observe(loss):
                    logger.warning("step %d: %s", step + 1, spike)
            elif config.nonfinite == "stop":
                checkpointer.finish()
                raise NonFiniteError(
                    f"{_diagnosis(step, loss, norm, model)}. The checkpoints before it are intact; "
                    "a lower learning rate or a longer warm-up is the usual cure"
                )
            else:
                logger.warning("%s; going on without this batch", _diagnosis(step, loss, norm, model))
                skipped += 1
            optimizer.zero_grad()

            bar.update(config.data.batch_size)
            if every(step + 1, config.log_every) or step + 1 == steps:
                values = {"loss": loss, "gradient_norm": norm, "clamped_pairs": sum(hits_R), "skipped": skipped}
                values |= {"loss_spikes": spikes.count} | watched.mixing()
                values |= _model_state(model) | {"learning_rate": optimizer.param_groups[0]["lr"]}
                values |= rates.lap((step + 1) * config.data.batch_size, loader.stats, own_R, waits_R)
                values |= {"memory": peak_memory(world.device)} | account.note(step + 1)
                if world.rank == 0 and (slow := rates.straggler(values, hosts)):
                    logger.warning("step %d: %s", step + 1, slow)
                tracker.log(step + 1, values)
                bar.set_postfix_str(training_line(step + 1, steps, values), refresh=False)
            if tracing:
                with rates.paused():
                    tracing.step()
    return model


def parts(batch: Batch, pieces: int, config: TrainingConfig, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """A batch in pieces of nearly one size: pixels [b, 3, H, W] on the device, token ids [C·b, L].

    Captions stay in main memory: the text tower packs them there, and would wait for the device to read them back.
    """
    pixels_BCHW = devices.send(batch.images, device)
    ids_CBL = batch.token_ids.unflatten(0, (config.data.captions_per_image, -1))
    return [
        (normalize(pixels, torch.float32, config.model.preprocessing), ids.flatten(0, 1))
        for pixels, ids in zip(pixels_BCHW.tensor_split(pieces), ids_CBL.tensor_split(pieces, dim=1), strict=True)
    ]


def teacher_of(batch: Batch, scale: float | None, device: torch.device) -> Teacher | None:
    """The teacher's embeddings of a batch on the device, where it has any."""
    if batch.taught is None or scale is None:
        return None
    images, captions = (devices.send(embeddings, device) for embeddings in batch.taught)
    return Teacher(images, captions, scale)


def _model_state(model: ContrastiveModel) -> dict[str, float]:
    """Scale and bias of the scores."""
    state = {"logit_scale": float(model.logit_scale.detach().exp())}
    return state if model.logit_bias is None else state | {"logit_bias": float(model.logit_bias.detach())}


def _diagnosis(step: int, loss: float, norm: float, model: ContrastiveModel) -> str:
    """The message about an update that is not made: the loss, the norm, and the gradients that are not finite."""
    gradients = {name: local(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    where = f"; gradients that are not finite: {len(broken)}, first {broken[0]}" if broken else ""
    return f"update {step} was not made: loss {loss}, gradient norm {norm}{where}"


def _loader(config: TrainingConfig, shards: str | Sequence[str], world: World) -> LaneLoader:
    return LaneLoader(
        shards,
        config.data,
        image_size=config.model.vision.image_size,
        context_length=config.model.text.context_length,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        taught=config.objective.distillation > 0,
    )
