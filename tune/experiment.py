"""What sweeps and studies share: settings, the data, the folder and the MLflow run that their trials belong to."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llip import storage
from llip.evaluation.sets import find_sets
from llip.fields import differences
from llip.recipes import recipe
from llip.training.tracking import Tracking, default_store, open_run
from pipelines import prepare_data
from tune import trials

PLACES = ("output", "name", "concurrency")
"""Settings that change nothing of what is found."""

Parent = tuple[Any, str]
"""MLflow's client and the id of the run that trials are children of."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Trials that share everything but what is compared."""

    recipe: str = "llip_tiny_k8"
    """Complete configuration to start from; every trial replaces some of it."""
    seeds: int
    metric: str
    name: str
    concurrency: int | None = None
    """Trials at a time; as many as there are GPUs (or, without, CPUs) for where not given."""
    workers: int = 0
    """Processes of each trial under Ray Train, or 0 for one without it. A trial that loses some waits for others:
    going on with fewer is for pretrain.py alone, as such a run cannot report to Ray Tune."""

    pool: str | None = None
    """Images with captions to curate and shard; without it, the built-in corpus."""
    shards: str | None = None
    """Finished shards to train on."""
    evaluation: str | None = None
    """Folder of evaluation sets; those of the built-in corpus where it is trained on."""
    corpus_images: int | None = None
    """Images of the built-in corpus (16,000)."""
    output: str = "output"
    """Folder of everything that is made; the experiment's own is `sweeps/<name>` or `studies/<name>` in it."""

    def __post_init__(self) -> None:
        for field, least in (("seeds", 1), ("concurrency", 1), ("workers", 0)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(f"--{field} is {value}; it has to be at least {least}")
        if (self.pool or self.shards) and not self.evaluation:
            raise ValueError("metrics are compared: name a folder of evaluation sets with --evaluation")


def prepare(settings: Experiment, folder: str, kind: str, *, asha: bool) -> tuple[trials.Plan, Parent | None]:
    """Claim `<output>/<folder>/<name>`, make the data and open the parent run: a plan that has no trials yet.

    Raises ValueError, before any work, for a folder of other settings and for more workers than lanes of the
    data, and before training for an unknown metric.
    """
    lanes = recipe(settings.recipe).data.lane_count
    if settings.workers > lanes:
        raise ValueError(f"--workers {settings.workers} cannot share the {lanes} lanes of {settings.recipe}")
    output = storage.absolute(settings.output)
    own = storage.join(output, folder, settings.name)
    claim(own, settings, kind)
    data = prepare_data.prepare(
        output,
        pool=settings.pool and storage.absolute(settings.pool),
        shards=settings.shards and storage.absolute(settings.shards),
        evaluation=settings.evaluation and storage.absolute(settings.evaluation),
        corpus_images=settings.corpus_images,
    )
    assert data.evaluation is not None
    check_metric(settings.metric, data.evaluation)
    uri, artifacts = default_store(output)
    tracking = Tracking(uri=uri, experiment="llip", run_name=settings.name, artifact_location=artifacts)
    parent = open_parent(tracking, own)
    plan = trials.Plan(
        trials={},
        folder=own,
        shards=data.shards,
        evaluation=data.evaluation,
        tracking=tracking,
        parent_run_id=parent[1] if parent else None,
        metric=settings.metric,
        asha=asha,
        workers=settings.workers,
        concurrency=settings.concurrency,
    )
    return plan, parent


def claim(folder: str, settings: Any, kind: str) -> None:
    """Note in the folder, as `<kind>.json`, what is run. Raises ValueError where it holds another, naming what differs.

    `settings` is a dataclass.
    """
    uri = storage.join(folder, f"{kind}.json")
    content = {name: value for name, value in asdict(settings).items() if name not in PLACES}
    if storage.exists(uri) and (changed := differences(storage.read_json(uri), content)):
        raise ValueError(
            f"{folder} holds a {kind} of other settings ({'; '.join(changed)}); choose another --name or remove it"
        )
    storage.write_json(uri, content)


def check_metric(metric: str, evaluation: str) -> None:
    """Raises ValueError, before anything is trained, for a metric of a set that is not in the folder `evaluation`."""
    names = [source.name for source in find_sets(evaluation)]
    if metric.split("/")[0] not in names:
        raise ValueError(f"--metric {metric}: the evaluation sets in {evaluation} are {', '.join(names)}")


def open_parent(tracking: Tracking, folder: str) -> Parent | None:
    """The run that is noted in the folder, or a new one; None where the server does not answer."""
    try:
        return open_run(tracking, folder)
    except Exception as error:  # however a server fails, the trials go on: they keep records of their own
        print(
            f"MLflow at {tracking.uri} does not answer ({str(error).splitlines()[0]}): trials will have no parent run"
        )
        return None


def log_report(parent: Parent, settings: Any, files: Mapping[str, bytes], metrics: Mapping[str, float]) -> None:
    """Log settings, metrics and files to the parent run, and end it."""
    client, run_id = parent
    try:
        known = client.get_run(run_id).data.params
        for name, value in asdict(settings).items():
            if name not in known:
                client.log_param(run_id, name, value)
        for name, value in metrics.items():
            client.log_metric(run_id, name, value)
        with tempfile.TemporaryDirectory() as local:
            for name, content in files.items():
                path = Path(local) / name
                path.write_bytes(content)
                client.log_artifact(run_id, str(path))
        client.set_terminated(run_id)
    except Exception as error:  # the report lies in the folder
        print(f"MLflow does not answer ({str(error).splitlines()[0]}): the report was not logged")
