"""Common parts of sweeps, studies and scaling: settings, the data, the folder and the MLflow run of their trials."""

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llip import storage
from llip.config import TrainingConfig
from llip.fields import differences, find_leaf, setting
from pipelines import prepare_data
from pipelines.prepare_data import TrainedOnData

if TYPE_CHECKING:  # torch and Ray are imported once the options are right
    from llip.evaluation.sets.evaluation_set import EvaluationSet
    from llip.runs.tracking import Tracking
    from tune.trials import TrialPlan

Parent = tuple[Any, str]
"""MLflow's client and the id of the run that trials are children of."""
PLACES = ("pool", "shards", "evaluation", "corpus_images")
"""Settings that say what trials read."""


@dataclass(frozen=True, kw_only=True)
class Experiment(TrainedOnData):
    """Trials that share everything but what is compared."""

    seeds: int
    """Trials of each point, with one seed after the other, from --seed on."""
    metric: str
    """Compared metric, the more the better: `<evaluation set>/<metric>`."""
    name: str
    """Name of the experiment, and of its folder."""
    concurrency: int | None = None
    """Trials at a time; as many as there are GPUs (or, without, CPUs) for where not given."""
    workers: int = 0
    """Processes of each trial under Ray Train, or 0 for one without it. A trial that loses some waits for others:
    going on with fewer is for pretrain.py alone, as such a run cannot report to Ray Tune."""
    output: str = setting("output", metavar="FOLDER")
    """Folder of everything that is made; the experiment's own is `<sweeps, studies, scaling>/<name>` in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (("seeds", 1), ("concurrency", 1), ("workers", 0)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(f"--{field} is {value}; it has to be at least {least}")
        if self.gpu and not self.workers:
            raise ValueError("--gpu is about the workers of trials; it needs --workers")
        if (self.pool or self.shards) and not self.evaluation:
            raise ValueError("metrics are compared: name a folder of evaluation sets with --evaluation")

    def fixed(self) -> dict[str, Any]:
        """The overrides by dotted path."""
        return {find_leaf(TrainingConfig, name).path: value for name, value in self.overrides.items()}

    def place(self, folder: str) -> str:
        """URI of the experiment's own folder in `folder` of the output."""
        return storage.join(storage.absolute(self.output), folder, self.name)


def check_workers(workers: int, config: TrainingConfig, name: str) -> None:
    """Raises ValueError where there are more workers than lanes: Ray would wait for those that are left over."""
    lanes = config.data.lane_count
    if workers > lanes:
        raise ValueError(f"--workers {workers} cannot share the {lanes} lanes of {name}")


def prepare(
    settings: Experiment, folder: str, kind: str, fixed: Mapping[str, Any], heads: Collection[str]
) -> "TrialPlan":
    """Make the data, claim the folder and open the parent run: a plan that has no trials yet.

    `fixed` are the settings that may not change from one session to the next, `heads` the kinds of the compared heads.
    Raises ValueError, before any work, for a folder of other settings, and before training for an unknown metric.
    """
    from llip.runs.tracking import default_store

    check(folder, kind, fixed)
    output = storage.absolute(settings.output)
    check_store(default_store(output)[0], settings.concurrency)
    data = prepare_data.prepare(output, **settings.data())
    from llip.runs.notebook import context_tags
    from llip.runs.tracking import Tracking
    from tune.trials import TrialPlan

    assert data.evaluation is not None
    check_metric(settings.metric, data.evaluation, heads)
    storage.write_json(storage.join(folder, f"{kind}.json"), fixed)
    uri, artifacts = default_store(output)
    tracking = Tracking(uri=uri, run_name=settings.name, artifact_location=artifacts, tags=context_tags())
    parent = open_parent(tracking, folder)
    return TrialPlan(
        folder=folder,
        shards=data.shards,
        evaluation=data.evaluation,
        tracking=tracking,
        parent_run_id=parent[1] if parent else None,
        metric=settings.metric,
        workers=settings.workers,
        gpu=settings.gpu,
        concurrency=settings.concurrency,
    )


def check(folder: str, kind: str, fixed: Mapping[str, Any]) -> None:
    """Raises ValueError where the folder holds an experiment with other `fixed` settings, naming these."""
    uri = storage.join(folder, f"{kind}.json")
    if storage.exists(uri) and (changed := differences(storage.read_json(uri), dict(fixed))):
        raise ValueError(
            f"{folder} holds a {kind} of other settings ({'; '.join(changed)}); choose another --name or remove it"
        )


def check_store(uri: str, concurrency: int | None) -> None:
    """Raises ValueError for more trials at once than the file of a database takes."""
    from tune.trials import MOST_ON_SQLITE

    if uri.startswith("sqlite:") and concurrency is not None and concurrency > MOST_ON_SQLITE:
        raise ValueError(
            f"--concurrency {concurrency}: a sqlite file takes one writer at a time, and at most {MOST_ON_SQLITE} "
            "trials; name an MLflow server on PostgreSQL in MLFLOW_TRACKING_URI "
            "(cluster/kubernetes/base/mlflow.yaml is one)"
        )


def check_metric(metric: str, evaluation: str, heads: Collection[str]) -> None:
    """Raises ValueError, before anything is trained, for a metric that the sets in the folder `evaluation` do not give
    to models of all these heads."""
    from llip.evaluation.sets import find_sets

    sources = {source.name: source for source in find_sets(evaluation)}
    name = next((name for name in sources if metric.startswith(f"{name}/")), None)
    if name is None:
        raise ValueError(f"--metric {metric}: the evaluation sets in {evaluation} are {', '.join(sources)}")
    data = sources[name].read()
    known = _metric_names(data)
    if metric not in known:
        raise ValueError(f"--metric {metric}: {name} gives {', '.join(sorted(known))}")
    if data.task == "context" and set(heads) != {"text_query"}:
        raise ValueError(f"--metric {metric} is of text_query heads alone; some of these models have another")


ROWS_PER_TYPE = 16
"""Rows by which the metrics of a set are found: enough that each caption type has several captions."""


def _metric_names(data: "EvaluationSet") -> set[str]:
    """Names of a set's metrics, as an untrained model of the smallest size gives them on some of its rows."""
    from dataclasses import replace

    from llip.contrastive import ContrastiveModel
    from llip.evaluation import evaluate_model
    from llip.recipes import recipe

    rows = set(range(min(ROWS_PER_TYPE, data.table.num_rows)))
    if data.task == "association":  # an instance is all of its images, whose rows lie anywhere
        rows = set(range(data.table.num_rows))
    if data.task == "retrieval":
        found: dict[str, int] = {}
        for row, types in enumerate(data.table["caption_types"].to_pylist()):
            for name in set(types):
                found[name] = found.get(name, 0) + 1
                rows |= {row} if found[name] <= ROWS_PER_TYPE else set()
    few = replace(data, table=data.table.take(sorted(rows)))
    return set(evaluate_model(ContrastiveModel(recipe("llip_tiny_k8").model), [few], progress=False))


def open_parent(tracking: "Tracking", folder: str) -> Parent | None:
    """The run that is noted in the folder, or a new one; None where the server does not answer."""
    from llip.runs.tracking import open_run

    try:
        return open_run(tracking, folder)
    except Exception as error:  # however a server fails, the trials go on: they keep records of their own
        print(
            f"MLflow at {tracking.uri} does not answer ({str(error).splitlines()[0]}): trials will have no parent run"
        )
        return None


def write(folder: str, files: Mapping[str, bytes]) -> None:
    """Write a report, by file name, into the experiment's folder."""
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)


def kept(settings: Experiment, extended: Collection[str]) -> dict[str, Any]:
    """Settings that an experiment keeps when it goes on: its options but those that may change, and overrides that
    affect what is learned."""
    learned = {p: v for p, v in settings.fixed().items() if not find_leaf(TrainingConfig, p).operational}
    return {name: value for name, value in asdict(settings).items() if name not in extended} | {"overrides": learned}


def seed_by_seed(
    plan: "TrialPlan",
    settings: Experiment,
    seeds: int,
    make: Callable[[int], Mapping[str, bytes]],
    names: tuple[str, str, str],
) -> str:
    """Train one seed after the other, with the report written after each and logged at the end; returns its table.

    `make` trains a seed and returns the report by file name; `names` are those of its table, figure and page.
    """
    table, figure, page = names
    files: Mapping[str, bytes] = {}
    for seed in range(seeds):
        files = make(seed)
        write(plan.folder, files)
        print(f"\nseeds {seed + 1} of {seeds}: {storage.join(plan.folder, page)}")
    text = files[table].decode()
    log_report(plan, settings, files, {}, text)
    print(f"\n{text}\nplot         {storage.join(plan.folder, figure)}")
    return text


def log_report(
    plan: "TrialPlan", settings: Any, files: Mapping[str, bytes], metrics: Mapping[str, float], note: str
) -> None:
    """Log settings, metrics, files and a description to the parent run, if there is one, and end it."""
    from llip.runs.lineage import NOTE

    if plan.parent_run_id is None or (parent := open_parent(plan.tracking, plan.folder)) is None:
        return
    client, run_id = parent
    try:
        known = client.get_run(run_id).data.params
        for name, value in asdict(settings).items():
            if name not in known:
                client.log_param(run_id, name, value)
            elif known[name] != str(value):  # of a sweep that was extended
                client.set_tag(run_id, name, value)
        client.set_tag(run_id, NOTE, note)
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
