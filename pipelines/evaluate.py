"""Evaluate a checkpoint: zero-shot classification, retrieval and context analysis, each beside its chance level.

    uv run pipelines/evaluate.py --checkpoint output/runs/<name> --evaluation output/evaluation

Leaves `report.html`, `report.md` and, last, `metrics.json`, which says what it was made from.
"""

import hashlib
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llip import storage
from llip.config import differences
from llip.data import evaluation_set
from llip.data.evaluation_set import EvaluationSet
from llip.evaluation import Metric
from llip.evaluation.encode import InProcess, Runner
from llip.evaluation.evaluate import Outcome, evaluate_sets, named
from llip.evaluation.report import Report, table
from llip.interop import load_model
from llip.model.build import ContrastiveModel
from llip.training import checkpoint
from llip.training.revision import git_revision
from llip.training.tracking import Tracker, tracking_of
from pipelines import command

NAME = "metrics.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What is evaluated, on what, and how."""

    checkpoint: str
    """A run folder (its newest checkpoint is taken) or a checkpoint folder."""
    evaluation: str = "output/evaluation"
    """Folder with evaluation sets at any depth."""
    sets: tuple[str, ...] = ()
    """Names of the sets to use; all of them where none is named."""
    output: str | None = None
    """Folder for metrics.json and the report; the run or checkpoint folder where not given."""
    workers: int = 0
    """Ray actors that encode images; 0: this process alone."""
    batch_size: int = 64
    """Images encoded at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"--workers {self.workers}: 0 for this process alone, or the number of actors")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size} has to be at least 1")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint, and the run that it belongs to."""

    given: str
    """Absolute URI of what the user named."""
    folder: str
    """Absolute URI of the model's folder."""
    run: str | None
    """Absolute URI of the run folder; None for a checkpoint outside of one."""
    step: int | None
    """Number of updates behind it, where a run says so."""

    @classmethod
    def find(cls, uri: str) -> "Source":
        """Raises ValueError for what is neither a run folder with a complete checkpoint nor a model's folder."""
        given = storage.absolute(uri).rstrip("/")
        if storage.exists(storage.join(given, checkpoint.MODEL)):
            folder = given
        elif newest := checkpoint.latest(given):
            folder = newest
        else:
            raise ValueError(
                f"--checkpoint {uri} is neither a run folder with a complete checkpoint nor a folder with a "
                f"{checkpoint.MODEL}"
            )
        in_run = storage.exists(storage.join(folder, checkpoint.STATE))
        return cls(
            given=given,
            folder=folder,
            run=folder.rsplit("/", 2)[0] if in_run else None,
            step=checkpoint.step_of(folder) if in_run else None,
        )


def evaluate(settings: Evaluate) -> dict[str, Metric]:
    """Evaluate, unless the output says that this was done. Returns the metrics, named `<set>/<metric>`.

    Raises ValueError, before any work, for a checkpoint or a set that cannot be used, and for an output of other
    settings.
    """
    source = Source.find(settings.checkpoint)
    output = storage.absolute(settings.output or settings.checkpoint).rstrip("/")
    folders = _folders(settings)
    request = {"checkpoint": source.given, "evaluation": storage.absolute(settings.evaluation), "sets": settings.sets}
    inputs = {"model": _model_digest(source), "sets": _sets_digest(folders)}
    if (finished := _finished(output, request, inputs)) is not None:
        print(f"{storage.join(output, NAME)} is complete: nothing to do\n\n{table(finished)}")
        return finished
    sets = _read(folders)
    model = load_model(source.folder)
    started = time.monotonic()
    outcomes = evaluate_sets(model, sets, _runner(model, settings))
    metrics = named(outcomes)
    result = {
        "schema_version": SCHEMA_VERSION,
        "request": request,
        "inputs": inputs,
        "step": source.step,
        "seconds": round(time.monotonic() - started, 2),
        "git_revision": git_revision(),
        "metrics": {name: {"value": m.value, "chance": m.chance} for name, m in metrics.items()},
    }
    _write_report(output, source, model, outcomes)
    _track(source, metrics)
    storage.write_json(storage.join(output, NAME), result)
    print(f"{table(metrics)}\n\n{storage.join(output, 'report.html')}")
    return metrics


def _folders(settings: Evaluate) -> list[str]:
    found = {folder.rsplit("/", 1)[1]: folder for folder in evaluation_set.find(storage.absolute(settings.evaluation))}
    if not found:
        raise ValueError(f"--evaluation {settings.evaluation} holds no evaluation set")
    if unknown := [name for name in settings.sets if name not in found]:
        raise ValueError(f"--sets {unknown[0]}: {settings.evaluation} holds {', '.join(found)}")
    return [found[name] for name in settings.sets or found]


def _read(folders: list[str]) -> list[EvaluationSet]:
    sets: dict[str, EvaluationSet] = {}
    for folder in folders:
        data = evaluation_set.read(folder)
        if data.name in sets:
            raise ValueError(
                f"{folder}: there is another evaluation set named {data.name}; metrics need distinct names"
            )
        sets[data.name] = data
    return list(sets.values())


def _model_digest(source: Source) -> str:
    """Digest of the weights: the one that the checkpoint notes, or else that of the file."""
    if source.run is not None:
        return str(
            storage.read_json(storage.join(source.folder, checkpoint.STATE))["files"][checkpoint.MODEL]["sha256"]
        )
    return hashlib.sha256(storage.read_bytes(storage.join(source.folder, checkpoint.MODEL))).hexdigest()


def _sets_digest(folders: list[str]) -> str:
    """Digest of the descriptions and of names and sizes of the data files."""
    digest = hashlib.sha256()
    for folder in folders:
        digest.update(storage.read_bytes(storage.join(folder, evaluation_set.DESCRIPTION)))
        for uri in storage.listing(folder, ".parquet"):
            fs, path = storage.filesystem(uri)
            digest.update(f"{uri.removeprefix(folder)} {fs.size(path)}\n".encode())
    return digest.hexdigest()


def _finished(output: str, request: dict[str, Any], inputs: dict[str, str]) -> dict[str, Metric] | None:
    """The metrics that an earlier run left; None where there are none, or where its inputs have changed since."""
    uri = storage.join(output, NAME)
    if not storage.exists(uri):
        return None
    found = storage.read_json(uri)
    if changed := differences(found.get("request"), request):
        raise ValueError(
            f"{uri} was made with other settings ({'; '.join(changed)}); choose another --output or remove it"
        )
    if found["inputs"] != inputs:
        print(f"{uri} is of another state of its checkpoint or sets: evaluating again")
        return None
    return {name: Metric(**values) for name, values in found["metrics"].items()}


def _runner(model: ContrastiveModel, settings: Evaluate) -> Runner:
    """Moves the model to this process's device, and says who encodes images."""
    cuda_here = torch.cuda.is_available()
    if settings.device == "cuda" and settings.workers == 0 and not cuda_here:
        raise ValueError("--device cuda: this machine has no GPU that torch can use")
    model.to("cuda" if cuda_here and settings.device != "cpu" else "cpu")
    if settings.workers == 0:
        return InProcess(model=model, batch_size=settings.batch_size)
    import ray

    from pipelines.stages.images import OnActors

    command.start_ray()
    gpu = settings.device == "cuda" or (settings.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    return OnActors(model=model, workers=settings.workers, batch_size=settings.batch_size, gpu=gpu)


def _write_report(output: str, source: Source, model: ContrastiveModel, outcomes: list[Outcome]) -> None:
    config = model.config
    facts = {
        "checkpoint": source.folder,
        "head": config.head.kind,
        "mixture tokens": str(config.mixture_tokens),
        "heads": str(config.head.heads),
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M",
    }
    facts |= {"step": f"{source.step:,}"} if source.step is not None else {}
    report = Report(title=f"Evaluation of {source.given.rsplit('/', 1)[1]}", facts=facts, outcomes=outcomes)
    storage.write_bytes(storage.join(output, "report.html"), report.html().encode())
    storage.write_bytes(storage.join(output, "report.md"), report.markdown().encode())


def _track(source: Source, metrics: dict[str, Metric]) -> None:
    """Log to the MLflow run of the run folder, where it has one."""
    if source.run is None or (tracking := tracking_of(source.run)) is None:
        return
    with Tracker(tracking, source.run) as tracker:
        tracker.log(source.step or 0, {name: metric.value for name, metric in metrics.items()})


if __name__ == "__main__":
    command.run(Evaluate, evaluate, "Evaluate a checkpoint on evaluation sets.")
