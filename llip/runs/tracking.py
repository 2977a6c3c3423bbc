"""Tracking of a run: always its own metrics log, and MLflow where it answers."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llip import storage
from llip.runs import lineage, logged_models, notebook
from llip.runs.mlflow_writer import Document, MlflowWriter, connection_uri, is_active, sqlite_file, sqlite_uri
from llip.runs.run_folder import STATE, git_revision
from llip.runs.stopping import StoppedError

logger = logging.getLogger(__name__)

NAME, METRICS = lineage.FILE, "metrics"
SECONDS_BETWEEN_WRITES = 10.0
EXPERIMENT = "llip"
"""MLflow experiment of all runs."""
QUIET = {"mlflow": "WARNING", "mlflow.store.db.utils": "WARNING", "mlflow.utils.environment": "ERROR"}
CREATION = "mlflow.llip.creation"
"""Tag of a run by which its maker finds it again. MLflow's page shows no tags with this prefix."""
_unanswered: dict[str, str] = {}
"""Marks of runs that a server was asked for, by run folder, until the folder has a note of it."""
MODELS = "models:/"
"""Scheme of MLflow's models."""
IMPATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
}
"""MLflow waits two minutes for an answer, tries eight times, and stores the lock file of uv with a model, unless told
otherwise."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """The place where a run is tracked."""

    uri: str
    """MLflow tracking URI: a server, or `sqlite:////absolute/path`."""
    experiment: str = EXPERIMENT
    run_name: str
    artifact_location: str | None = None
    """Folder for the artifacts of an experiment that does not exist yet; None: the server decides."""
    made_from: tuple[str, ...] = ()
    """Folders that the run reads; the runs that made them are told."""
    parent_run_id: str | None = None
    """Run of a sweep that this run is a trial of."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of a run that is made."""


def default_store(output: str) -> tuple[str, str | None]:
    """Tracking URI and artifact location where nobody names one.

    MLFLOW_TRACKING_URI, else sqlite in the output folder or, where that is remote, in the working directory.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri, None
    folder = storage.absolute(output if storage.is_local(output) else ".")
    # MLflow takes a local folder for the path of a URL
    return sqlite_uri(f"{folder}/mlflow.db"), f"{folder}/mlartifacts".replace("%", "%25")


def tracking_of(run_folder: str) -> Tracking | None:
    """The place where a run has been tracked, for what comes later; None for a run that MLflow has not seen."""
    known = _known(run_folder)
    return Tracking(**known["tracking"] | {"made_from": tuple(known["tracking"]["made_from"])}) if known else None


def run_id_of(run_folder: str) -> str:
    """Id of the MLflow run of a run folder. Raises ValueError where MLflow has not seen it."""
    known = _known(storage.absolute(run_folder))
    if known is None:
        raise ValueError(f"{run_folder} has no {NAME}: MLflow has not seen a run of it")
    return str(known["run_id"])


def checkpoint_of(uri: str, store: str | None = None) -> str:
    """The checkpoint of `models:/<model id>`, `models:/<name>/<version>` or `models:/<name>@<alias>`.

    MLflow is asked at `store`, else at MLFLOW_TRACKING_URI or in ./output. Raises ValueError where it knows none.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    store = store or default_store("output")[0]
    client = MlflowClient(store)
    name = uri.removeprefix(MODELS).strip("/")
    try:
        version = None
        if alias := re.fullmatch(r"([^/@]+)@([^/@]+)", name):
            version = client.get_model_version_by_alias(*alias.groups())
        elif numbered := re.fullmatch(r"([^/@]+)/(\d+)", name):
            version = client.get_model_version(*numbered.groups())
        if version is not None:  # the registry of a database keeps no id, but where its files lie, which has it
            found_id = re.search(r"\bm-[0-9a-f]{32}\b", version.source or "")
            name = found_id[0] if found_id else ""
        found = client.get_logged_model(name).tags.get(logged_models.TAG)
    except MlflowException as error:
        raise ValueError(f"{uri}: MLflow at {store} has no such model ({error.message})") from error
    if found is None:
        raise ValueError(f"{uri} has no tag {logged_models.TAG}: it was not made by training")
    return str(found)


def open_run(tracking: Tracking, run_folder: str) -> tuple[Any, str]:
    """An MlflowClient and the id of the run of a run folder, which is made and noted in the folder where there is none.

    A run that was deleted, or whose database was, is made anew. One process at a time does this with a sqlite file: a
    fresh one breaks where several meet it.
    """
    for name, value in IMPATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name, level in QUIET.items():  # its notes would break into the progress bar
        logging.getLogger(name).setLevel(level)

    with _alone_with(tracking.uri):
        client = MlflowClient(connection_uri(tracking.uri))
        known = _known(run_folder)
        if known and known["tracking"]["uri"] == tracking.uri:
            if is_active(client, known["run_id"]):
                client.update_run(known["run_id"], status="RUNNING")
                return client, known["run_id"]
            logger.warning("MLflow run %s is gone from %s: a new one is made", known["run_id"], tracking.uri)
        return client, _new_run(client, tracking, run_folder)


def _new_run(client: Any, tracking: Tracking, run_folder: str) -> str:
    experiment = client.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        location = tracking.artifact_location
        experiment_id = client.create_experiment(tracking.experiment, artifact_location=location, tags=notebook.KIND)
    else:
        experiment_id = experiment.experiment_id
        if experiment.lifecycle_stage == "deleted":  # its name is taken all the same
            logger.warning("MLflow experiment %s was deleted: it is restored for this run", tracking.experiment)
            client.restore_experiment(experiment_id)
    commit = git_revision().partition("+")[0]
    tags = {"mlflow.source.git.commit": commit, "run_folder": run_folder} | tracking.tags
    if tracking.parent_run_id:
        tags["mlflow.parentRunId"] = tracking.parent_run_id
    mark = _unanswered.setdefault(run_folder, uuid.uuid4().hex)
    run_id = _create_once(client, experiment_id, tracking.run_name, tags | {CREATION: mark})
    user = lineage.Maker(tracking.run_name, run_id, experiment_id)
    try:
        lineage.note_use(client, tracking.made_from, tracking.uri, user)
    except Exception as error:  # a run before was deleted: what is made now is there all the same
        if _without_answer(error):
            raise
        logger.warning("MLflow at %s: what the run was made from is not linked (%s)", tracking.uri, error)
    note = {"tracking": dataclasses.asdict(tracking), "run_id": run_id, "experiment_id": experiment_id}
    storage.write_json(storage.join(run_folder, NAME), note)
    _unanswered.pop(run_folder, None)
    return run_id


def _without_answer(error: Exception) -> bool:
    """Whether a server did not answer, which it may when it is asked again."""
    from mlflow.exceptions import RestException

    return getattr(error, "error_code", "") == "INTERNAL_ERROR" and not isinstance(error, RestException)


def _create_once(client: Any, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    """Id of a new run, of which there is one: where the answer of a server is lost, the client and the writer ask again
    and the server makes another."""
    same = [experiment_id], f"tags.`{CREATION}` = '{tags[CREATION]}'"
    if not client.search_runs(*same):
        client.create_run(experiment_id, run_name=name, tags=tags)
    run, *others = client.search_runs(*same)
    for other in others:
        client.delete_run(other.info.run_id)
    return str(run.info.run_id)


@contextlib.contextmanager
def _alone_with(uri: str) -> Iterator[None]:
    """Keep other processes of this machine from a sqlite file, for as long as it may be made or migrated."""
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class MetricsLog:
    """The numbers of a run in `metrics.jsonl`, one JSON object a logged step. It needs no server.

    Lines lie in memory and, since an object store cannot append, in a file that is written whole now and then; after
    LINES of them in the next one, `metrics-00001.jsonl` and so on, so that a month of them costs no more than a day.
    """

    LINES = 1000
    """Lines of a part."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._parts = metrics_files(folder) or [[]]
        self._changed: set[int] = set()
        self._lock, self._writing = threading.Lock(), threading.Lock()

    def rewind(self, step: int) -> None:
        """Forget what comes after `step`: a resumed run does it again."""
        with self._lock:
            for index, part in enumerate(self._parts):
                kept = [line for line in part if line["step"] <= step]
                if len(kept) < len(part):
                    self._parts[index] = kept
                    self._changed.add(index)

    def lines(self) -> list[dict[str, Any]]:
        """All that is logged, each line with its `step`."""
        with self._lock:
            return [line for part in self._parts for line in part]

    def append(self, step: int, values: Mapping[str, float]) -> None:
        with self._lock:
            index = next((i for i, part in enumerate(self._parts) if len(part) < self.LINES), len(self._parts))
            if index == len(self._parts):
                self._parts.append([])
            self._parts[index].append({"step": step, **values})
            self._changed.add(index)

    def flush(self) -> None:
        """Write the files that have changed. From any thread; what is appended meanwhile stays for the next time."""
        with self._writing:
            with self._lock:
                changed = {index: list(self._parts[index]) for index in sorted(self._changed)}
                self._changed.clear()
            for index, part in list(changed.items()):
                content = "".join(json.dumps(line) + "\n" for line in part).encode()
                try:
                    storage.write_bytes(_part(self._folder, index), content)
                except storage.FAILURES:
                    with self._lock:
                        self._changed.update(changed)
                    raise
                del changed[index]


def read_metrics(folder: str) -> list[dict[str, Any]]:
    """The logged lines of a run, oldest first; none where nothing was logged."""
    return [line for part in metrics_files(folder) for line in part]


def _part(folder: str, index: int) -> str:
    return storage.join(folder, f"{METRICS}-{index:05d}.jsonl" if index else f"{METRICS}.jsonl")


def metrics_files(folder: str, first: int = 0) -> list[list[dict[str, Any]]]:
    """The lines of each file of a metrics log, from the file of this number on."""
    parts: list[list[dict[str, Any]]] = []
    while storage.exists(uri := _part(folder, first + len(parts))):
        parts.append([json.loads(line) for line in storage.read_bytes(uri).splitlines()])
    return parts


class Tracker:
    """The numbers of a run, to its metrics log and to MLflow. `enabled=False`, for ranks other than 0, does nothing."""

    def __init__(self, tracking: Tracking | None, run_folder: str, *, enabled: bool = True) -> None:
        self._folder = run_folder
        self._beside: Callable[[], None] = lambda: None
        self._log = MetricsLog(run_folder) if enabled else None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="metrics", daemon=True)
        if enabled:
            self._thread.start()
        self._mlflow = (
            MlflowWriter(
                tracking.uri,
                lambda: open_run(tracking, run_folder),
                history=self._log.lines if self._log else list,
                known_run=(_known(run_folder) or {}).get("run_id", ""),
            )
            if enabled and tracking is not None
            else None
        )

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, (StoppedError, KeyboardInterrupt))
        self.close("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        if self._log:
            self._log.append(step, values)
        if self._mlflow:
            self._mlflow.metrics(step, values)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log nested settings, flattened to names like `optimizer.learning_rate`."""
        if self._mlflow:
            self._mlflow.parameters(dict(_flat(values)))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run; `lineage.NOTE` is its description."""
        if self._mlflow:
            self._mlflow.tags(values)

    def inputs(self, data: Sequence[notebook.Data]) -> None:
        """Name the data sets that the run reads."""
        if self._mlflow:
            self._mlflow.inputs(data)

    def checkpoint(self, step: int, uri: str) -> None:
        """Make a checkpoint a model of MLflow, once it is complete; those that are gone by then are deleted there."""
        if self._mlflow:
            self._mlflow.checkpoint(step, storage.join(uri, STATE))

    def artifact(self, name: str, content: Document) -> None:
        """Log a file: JSON, a text such as a page, or bytes."""
        if self._mlflow:
            self._mlflow.artifact(name, content)

    def rewind(self, step: int) -> None:
        """Forget what is logged of later steps: a resumed run does them again."""
        if self._log:
            self._log.rewind(step)

    def beside(self, write: Callable[[], None]) -> None:
        """Call this too wherever the metrics log is written."""
        self._beside = write

    def flush(self) -> None:
        """Write the metrics log; if that fails now, it is written later. The MLflow writer keeps its own time.

        Lines up to a checkpoint are written before it is committed, so a killed run loses none.
        """
        if self._log:
            self._beside()
            try:
                self._log.flush()
            except storage.FAILURES as error:
                logger.warning("%s cannot be written now (%s)", _part(self._folder, 0), error)

    def _write(self) -> None:
        """Write the log now and then, beside the training."""
        while not self._closing.wait(SECONDS_BETWEEN_WRITES):
            self.flush()

    def close(self, status: str = "FINISHED") -> None:
        """Write the metrics log and deliver the rest; what a server did not take is said once."""
        self._closing.set()
        if self._log:
            self._thread.join()
            storage.patient(self._log.flush, _part(self._folder, 0))
        if self._mlflow and (undelivered := self._mlflow.close(status)):
            logger.warning("%s; all metrics are in %s", undelivered, _part(self._folder, 0))


def _known(run_folder: str) -> dict[str, Any] | None:
    uri = storage.join(run_folder, NAME)
    return dict(storage.read_json(uri)) if storage.exists(uri) else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}.")
        else:
            lines.append((prefix + name, value if isinstance(value, str) else json.dumps(value)))
    return lines
