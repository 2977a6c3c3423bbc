"""Training as a stage: in this process, or on workers of Ray Train, which starts again those that die."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from llip import devices, storage
from llip.config import TrainingConfig
from llip.contrastive import ContrastiveModel
from llip.evaluation import Metric
from llip.evaluation.evaluate import Outcome, evaluate_sets, named
from llip.evaluation.metrics import logged
from llip.evaluation.ranks import OverRanks
from llip.evaluation.sets import FoundSet, find_sets
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.fields import to_dict
from llip.headline import headline
from llip.progress import bar as progress_bar
from llip.progress import training_line
from llip.runs import lineage, notebook, run_folder, stopping
from llip.runs.stopping import GaveUpError, NonFiniteError, Stop, StoppedError
from llip.runs.tracking import Tracker, Tracking, metrics_files, open_run
from llip.training.loop import Progress, train
from llip.training.parallel import current_world
from pipelines import command
from pipelines.evaluation_cache import SCORES, scores_file

logger = logging.getLogger(__name__)

OnEvaluation = Callable[[int, dict[str, Metric]], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run: what is trained, on what, and where its results go."""

    config: TrainingConfig
    shards: str | tuple[str, ...]
    folder: str
    evaluation: str | None = None
    """Folder that holds evaluation sets, for evaluation in training; None: no evaluation."""
    watched: tuple[str, ...] = ()
    """Names of the sets that are evaluated on the way, all of them at the end; where none is named, all always."""
    tracking: Tracking | None = None
    recipe: str = ""
    """Name of what the configuration started from, and in `differing` what is other than there."""
    differing: tuple[str, ...] = ()
    command: str = ""
    """The command line that repeats the run."""
    documents: dict[str, dict[str, Any] | str] = field(default_factory=dict)
    """Documents on how the shards were curated, for the tracker: JSON values and pages by file name."""
    profile: bool = False
    """Trace a few steps: see `llip.training.profiling`."""


def train_and_evaluate(
    run: Run,
    *,
    on_evaluation: OnEvaluation | None = None,
    preempted: Stop = lambda: False,
    asked: float | None = None,
    progress: Progress = progress_bar,
) -> dict[str, Metric]:
    """Train to the end, from wherever the run's folder has got to, and return the metrics of the last evaluation.

    Uses the ranks of an initialised process group, at most as many as there are lanes, else this process alone. The
    folder keeps the scores of single items of the last evaluation (`evaluation_cache.scores_file`).
    `on_evaluation(step, metrics)` is called on every rank after each evaluation; ranks other than 0 have no metrics.
    `asked` is when training was asked for, by the clock: see `goodput`.
    Raises ValueError where the folder holds a run of another configuration, StoppedError where the run was asked to
    stop, or `preempted()` said so on any rank.
    """
    world = current_world()
    if world.device.type == "cpu":
        devices.keep_freed_memory()
    metrics: dict[str, Metric] = {}
    first = world.rank == 0
    if first:
        run_folder.claim(run.folder, run.config, run.shards)
        run_folder.tell(run.folder, {"recipe": run.recipe, "differing": list(run.differing), "command": run.command})
    sources = find_sets(run.evaluation) if run.evaluation else []
    sets = [source.read() for source in sources]
    total = run_folder.for_shards(run.config, run.shards).total_steps

    with Tracker(run.tracking, run.folder, enabled=first) as tracker, stopping.watched(run.folder) as stop:
        tracker.parameters(to_dict(run.config) | {"shards": run.shards, "world_size": world.size})
        tracker.artifact("config.json", to_dict(run.config))
        if first:
            tracker.tags(notebook.tags(run.config, recipe=run.recipe, shards=run.shards, world_size=world.size))
            tracker.inputs([*notebook.shards_data(run.shards), *data_of(sources, sets)])
            tracker.tags(_note(run, metrics))
        for name, content in run.documents.items():
            tracker.artifact(name, content)

        def evaluate(step: int, model: ContrastiveModel) -> None:
            error, outcomes = None, list[Outcome]()
            everything = not run.watched or step == total
            measured = [data for data in sets if everything or data.name in run.watched]
            try:
                outcomes += evaluate_sets(model, measured, OverRanks(model=model, ranks=world))
                metrics.update(named(outcomes))
            except ValueError as found:  # on rank 0; the others have to hear of it
                error = found
            for failure in world.gather(error):
                if failure:
                    raise failure
            tracker.log(step, logged(metrics))
            if first:
                storage.write_bytes(storage.join(run.folder, SCORES), scores_file(outcomes))
                tracker.tags(_note(run, metrics, step))
                told = (f"{n} {metrics[n].value:.3f} ({metrics[n].chance:.3f})" for n in headline(metrics))
                logger.info("step %s, beside (chance): %s", f"{step:,}", ", ".join(told))
            if on_evaluation:
                on_evaluation(step, metrics)

        train(
            run.config,
            shards=run.shards,
            folder=run.folder,
            world=world,
            tracker=tracker,
            evaluate=evaluate if run.evaluation else None,
            stop=lambda: stop() or preempted(),
            asked=asked,
            profile=run.profile,
            progress=progress,
        )
    return metrics


def data_of(sources: Sequence[FoundSet], sets: Sequence[EvaluationSet]) -> list[notebook.Data]:
    """Evaluation sets as MLflow knows them: one digest for one set, whatever run reads it."""
    return [
        notebook.Data(name=s.name, digest=s.digest(), uri=s.uri, rows=data.table.num_rows, context="evaluation")
        for s, data in zip(sources, sets, strict=True)
    ]


def _note(run: Run, metrics: dict[str, Metric], step: int | None = None) -> dict[str, str]:
    text = notebook.description(
        recipe=run.recipe,
        differing=run.differing,
        command=run.command,
        metrics=metrics,
        step=step,
        sources=lineage.makers(run.tracking.made_from, run.tracking.uri) if run.tracking else (),
    )
    return {lineage.NOTE: text} if text else {}


def fit(
    run: Run,
    *,
    workers: int,
    gpu: bool = False,
    min_workers: int | None = None,
    max_failures: int = 10,
    callbacks: Sequence[Any] = (),
) -> dict[str, Metric]:
    """`train_and_evaluate` under Ray Train: in this process (0 workers), or in as many, each with a GPU if there are,
    or with `gpu`, for which a cluster may have to start nodes first.

    Workers that fail are started again and go on from the last checkpoint, at most `max_failures` times in a row (-1:
    any number): a new checkpoint between two failures makes the count start anew, and a node that is preempted does not
    count. With `min_workers` the run goes on with the workers that are left, and with more once there are. Evaluations
    are reported to Ray Train, so that `callbacks` (Ray Tune's) see them. Raises what training raised: ValueError,
    NonFiniteError, StoppedError; and GaveUpError where workers fail without any progress.
    """
    from ray.train import ControllerError, FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import ScalingConfig  # what `ray.train` has of this name, as type checkers see it too

    from pipelines.failures import Restarts

    if run.tracking and workers:  # processes that meet a fresh sqlite file at once break it
        with contextlib.suppress(Exception):  # a server that is dead now is the tracker's business later
            open_run(run.tracking, run.folder)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # after 2 s a failure would be noticed
    if run.config.hang_seconds is not None:  # a worker that is stopped does not answer Ray either, which waits 600 s
        os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(2 * run.config.hang_seconds))
    work: Any = _train_on_worker if workers else _train_here
    ours: list[Any] = [Restarts(run.folder, max_failures), *callbacks]
    # Container images set it, and without compiled files workers take twice as long to start.
    environment: dict[str, Any] = {"worker_runtime_env": {"env_vars": {"PYTHONDONTWRITEBYTECODE": ""}}}
    trainer: Any = TorchTrainer(
        work,
        train_loop_config={"run": run, "asked": time.time()},
        scaling_config=ScalingConfig(
            num_workers=(min_workers, workers) if min_workers is not None else workers,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=workers > 0 and (gpu or _cluster_gpus() > 0),
            # Whole cores would leave none to others on a small machine; Ray counts whole ones to see who fits where.
            resources_per_worker={"CPU": 0.5 if min_workers is None else 1},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=storage.quoted(run.folder),
            failure_config=FailureConfig(max_failures=-1),  # the callback ends what is hopeless
            callbacks=ours,
            **environment,
        ),
    )
    if workers:
        _forget_driver(run.folder, trainer.train_run_context.run_id)
    try:
        with _followed(run) if workers and not callbacks else contextlib.nullcontext():
            result = trainer.fit()
    except ControllerError as error:
        if isinstance(error.controller_failure, (ValueError, GaveUpError)):
            raise error.controller_failure from None
        raise
    if isinstance(result.return_value, Exception):
        raise result.return_value
    return dict(result.return_value)


def _forget_driver(run_folder: str, run_id: str) -> None:
    """Give back what the driver before had asked of Ray, and note the name under which this one asks.

    Ray keeps nodes for a driver that was killed for another three minutes, in which an elastic run would wait for them.
    """
    import ray

    uri = storage.join(run_folder, DRIVER)
    before = storage.read_json(uri)["run_id"] if storage.exists(uri) else None
    storage.write_json(uri, {"run_id": run_id})
    if before:
        with contextlib.suppress(Exception):  # no such actor, or one that has other methods in another version of Ray
            coordinator: Any = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
            ray.get(coordinator.cancel_request.remote(requester_id=f"train-{before}"), timeout=10)


DRIVER = "driver.json"

RESIZE_SECONDS = 60.0
"""Seconds between looks of a run that has lost workers for new ones."""

SECONDS_BETWEEN_LOOKS = 5.0
"""Seconds between the driver's looks at its workers' progress."""

CHANCE = "chance:"
"""Prefix of a metric's chance level in what is reported."""


def reported(config: TrainingConfig, step: int, metrics: dict[str, Metric]) -> dict[str, float]:
    """An evaluation as Ray Train and Ray Tune take it: samples seen, values, chance levels, in one dictionary."""
    values = {name: metric.value for name, metric in metrics.items()}
    levels = {CHANCE + name: metric.chance for name, metric in metrics.items()}
    return {"step": step, "samples": step * config.data.batch_size} | values | levels


def default_workers() -> int:
    """A process for each GPU of the cluster that runs this job, or of this machine if it has several; else 0."""
    if "RAY_ADDRESS" in os.environ:
        return _cluster_gpus()
    return torch.cuda.device_count() if torch.cuda.device_count() > 1 else 0


def _cluster_gpus() -> int:
    import ray

    command.start_ray()
    return int(ray.cluster_resources().get("GPU", 0))


def _train_here(config: dict[str, Any]) -> dict[str, Metric]:
    return train_and_evaluate(config["run"], asked=config.get("asked"))


def _train_on_worker(config: dict[str, Any]) -> dict[str, Metric] | Exception:
    """Training on one rank. An error that all ranks share is returned, since Ray restarts workers that raise."""
    import ray.train

    from pipelines.failures import RefusedError

    run, context = config["run"], ray.train.get_context()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // context.get_local_world_size()))

    def report(step: int, metrics: dict[str, Metric]) -> None:
        ray.train.report(reported(run.config, step, metrics))

    try:
        return train_and_evaluate(
            run,
            on_evaluation=report,
            preempted=_preemption(),
            asked=config.get("asked"),
            progress=silent,
        )
    except StoppedError as error:
        if stopping.stop_requested(run.folder):
            return error
        raise  # a preemption: Ray starts the workers again elsewhere
    except NonFiniteError as error:
        return error
    except ValueError as error:
        if isinstance(error, OSError):  # a place that cannot be written: by this rank, now
            raise
        raise RefusedError(str(error), context.get_world_size()) from error


def _preemption() -> Stop:
    """Whether a node of the run is about to be taken away; always no, with a warning, from a Ray that does not tell.

    The public `ray.train.get_preemption_info` waits for all workers whenever it is called; the ranks tell each other in
    the message that ends a step anyway. So this reads what that call reads before it waits.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        told = get_train_context().preemption_context
        _ = told.preemption_info
    except (ImportError, AttributeError) as error:
        logger.warning(
            "this Ray does not tell of preemptions (%s): what came after a checkpoint is lost with a node", error
        )
        return lambda: False
    return lambda: told.preemption_info is not None


@contextlib.contextmanager
def _followed(run: Run) -> Iterator[None]:
    """Show in this process what a run on workers has logged, for as long as the block lasts."""
    steps = run_folder.for_shards(run.config, run.shards).total_steps
    done = threading.Event()

    def follow() -> None:
        with progress_bar(desc="train", total=steps * run.config.data.batch_size, unit="img") as bar:
            last, newest = False, 0
            while not last:
                last = done.wait(SECONDS_BETWEEN_LOOKS)
                files: list[list[dict[str, Any]]] = []
                with contextlib.suppress(Exception):  # it is written whole, but a store may fail
                    files = metrics_files(run.folder, newest)
                newest += max(0, len(files) - 1)
                lines = [line for file in files for line in file if "loss" in line]
                if lines:
                    bar.set_postfix_str(training_line(lines[-1]["step"], steps, lines[-1]), refresh=False)
                    bar.update(lines[-1]["samples"] - bar.n)

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(60)


def silent(**settings: Any) -> Any:
    """No bar."""
    return tqdm(**settings, disable=True)
