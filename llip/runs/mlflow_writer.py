"""Writing to MLflow, which never stops or slows training: a thread sends, and reports what was not taken.

Items that a server refuses for good are dropped, with one warning. A run or a database that is deleted while it is
written is made anew, and gets everything that was logged.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from llip.runs.logged_models import LoggedModels
from llip.runs.mlflow_items import Kept, Names
from llip.runs.notebook import EVALUATION, Data, wants_system_metrics, with_headlines

logger = logging.getLogger(__name__)

METRICS_PER_CALL, PARAMETERS_PER_CALL = 1000, 100  # MLflow's limits
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""Error codes of what no later try changes."""

Item = TypeVar("Item")
Document = dict[str, Any] | str | bytes
"""An artifact: JSON, a text such as a page, or a file of another kind."""


class MlflowWriter:
    """Holds metrics, parameters and artifacts of a run in memory until the server has taken them."""

    PAUSE, LONGEST_PAUSE, PATIENCE = 1.0, 60.0, 60.0
    PAUSE_AT_END = 5.0
    """Seconds between deliveries, between tries of a dead server, for the last delivery, and between its tries."""

    def __init__(
        self,
        uri: str,
        connect: Callable[[], tuple[Any, str]],
        *,
        history: Callable[[], list[dict[str, Any]]] = list,
        known_run: str = "",
    ) -> None:
        """`connect` gives an MlflowClient and the id of the run; the thread calls it until it succeeds.

        Where that is another run than `known_run`, all metrics of `history` are sent to it.
        """
        self._uri, self._connect, self._history = uri, connect, history
        self._client: Any = None
        self._run_id, self._status, self._deadline = known_run, "FINISHED", 0.0
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._metrics: list[tuple[str, float, int, int]] = []
        self._parameters = Kept[str, str]()
        self._tags = Kept[str, str]()
        self._data = Kept[str, Data]()
        self._checkpoints = Kept[int, str]()
        self._artifacts = Kept[str, Document]()
        self._models: LoggedModels | None = None
        self._names, self._refused = Names(), set[str]()
        self._file: tuple[int, int] | None = None
        self._monitor: Any = None
        self._error: Exception | None = None
        self._has_answered = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        with self._lock:
            self._metrics += _timed(step, values)

    def parameters(self, values: Mapping[str, str]) -> None:
        self._parameters.add(values)

    def tags(self, values: Mapping[str, str]) -> None:
        self._tags.add(values)

    def inputs(self, data: Sequence[Data]) -> None:
        self._data.add({f"{d.context}/{d.name}": d for d in data})

    def checkpoint(self, step: int, state: str) -> None:
        self._checkpoints.add({step: state})

    def artifact(self, name: str, content: Document) -> None:
        self._artifacts.add({name: content})

    def close(self, status: str) -> str | None:
        """Deliver the rest, for at most PATIENCE seconds, and end the run. Returns what was not delivered, or None."""
        self._status, self._deadline = status, time.monotonic() + self.PATIENCE
        self._closing.set()
        self._thread.join(self.PATIENCE)
        left = self.waiting()
        if not any(left.values()):
            return None
        counts = ", ".join(f"{count} {what}" for what, count in left.items() if count)
        return f"{counts} were not delivered to {self._uri} ({_brief(self._error)})"

    def waiting(self) -> dict[str, int]:
        """Number of items of each kind that the server has not taken yet."""
        return {
            "metrics": len(self._metrics),
            "parameters": len(self._parameters.waiting()),
            "tags": len(self._tags.waiting()),
            "data sets": len(self._data.waiting()),
            "models": len(self._checkpoints.waiting()),
            "artifacts": len(self._artifacts.waiting()),
        }

    def _work(self) -> None:
        pause, last = self.PAUSE, False
        while not last:
            closing = self._closing.wait(pause)
            try:
                try:
                    self._deliver()
                except GoneError:
                    self._deliver()  # to a new run
                if closing:
                    self._end()
                pause, last, self._error = self.PAUSE, closing, None
            except Exception as error:  # however a server fails, training goes on
                if self._error is None and not closing:
                    logger.warning("MLflow at %s: %s; metrics are kept and sent later", self._uri, _brief(error))
                pause, self._error = min(2 * pause, self.LONGEST_PAUSE), error
                if closing:  # a server that has answered may come back; one that never did is not waited for
                    left = self._deadline - time.monotonic() if self._has_answered else 0.0
                    last = left <= 0
                    time.sleep(max(0.0, min(pause, left, self.PAUSE_AT_END)))

    def _deliver(self) -> None:
        if self._client is not None and self._file != file_identity(self._uri):
            self._client = None  # its database was deleted, and its connection writes to what is left of it
        if self._client is None:
            client, run_id = self._connect()
            if self._run_id and run_id != self._run_id:
                self._start_over()
            self._run_id, self._file, self._has_answered = run_id, file_identity(self._uri), True
            if self._monitor:  # of the run before
                self._monitor.finish()
            self._monitor = _system_monitor(self._uri, self._run_id)
            self._client, self._models = client, None
        count = len(self._metrics)  # those that come later may be of models that come later too
        self._deliver_tags()
        self._deliver_data()
        self._deliver_models()
        self._deliver_metrics(count)
        self._deliver_parameters()
        self._deliver_artifacts()

    def _start_over(self) -> None:
        """Send everything again: to a run that takes the place of one that is gone."""
        with self._lock:
            self._metrics = [
                metric
                for line in self._history()
                for metric in _timed(line["step"], {name: v for name, v in line.items() if name != "step"})
            ]
        for kept in (self._parameters, self._tags, self._data, self._checkpoints, self._artifacts):
            kept.send_again()

    def _deliver_metrics(self, count: int) -> None:
        from mlflow.entities import Metric

        while some := self._metrics[: min(METRICS_PER_CALL, count)]:
            metrics = [
                Metric(self._names.accepted(name), value, at, step, **self._of_model(name, step))
                for name, value, at, step in some
            ]
            self._send(metrics, lambda items: self._client.log_batch(self._run_id, metrics=items), "metric")
            with self._lock:
                del self._metrics[: len(some)]
            count -= len(some)

    def _of_model(self, name: str, step: int) -> dict[str, str | None]:
        """The model and the evaluation set that a metric is of; nothing for one of training."""
        if not name.startswith(EVALUATION):
            return {}
        data = self._data.given.get(f"evaluation/{name.split('/')[1]}")
        found: dict[str, str | None] = {"model_id": self._models.of_step(step) if self._models else None}
        return found | ({"dataset_name": data.name, "dataset_digest": data.short_digest} if data else {})

    def _deliver_models(self) -> None:
        if not self._checkpoints.given:
            return
        waiting = self._checkpoints.waiting()
        try:
            if self._models is None:
                self._models = LoggedModels(self._client, self._run_id, lambda: self._parameters.given)
            for step, state in waiting.items():
                self._models.add(step, state)
            self._models.refresh()
        except Exception as error:
            if not self._is_refusal(error):
                raise
            self._drop("model", ", ".join(map(str, waiting)), error)
        self._checkpoints.forget(waiting)

    def _deliver_tags(self) -> None:
        from mlflow.entities import RunTag

        if waiting := self._tags.waiting():
            given = [RunTag(self._names.accepted(name), value) for name, value in waiting.items()]
            self._send(given, lambda items: self._client.log_batch(self._run_id, tags=items), "tag")
            self._tags.forget(waiting)

    def _deliver_data(self) -> None:
        if waiting := self._data.waiting():
            given = [data.entity() for data in waiting.values()]
            self._send(given, lambda items: self._client.log_inputs(self._run_id, items), "data set")
            self._data.forget(waiting)

    def _deliver_parameters(self) -> None:
        from mlflow.entities import Param

        if not (waiting := self._parameters.waiting()):
            return
        known = self._run().data.params  # MLflow refuses to change one: the first start's stay
        given = {self._names.accepted(name): value for name, value in waiting.items()}
        new = [Param(name, value) for name, value in given.items() if name not in known]
        for i in range(0, len(new), PARAMETERS_PER_CALL):
            some = new[i : i + PARAMETERS_PER_CALL]
            self._send(some, lambda items: self._client.log_batch(self._run_id, params=items), "parameter")
        self._parameters.forget(waiting)

    def _deliver_artifacts(self) -> None:
        """One that cannot be written now keeps no other from being written."""
        failure: Exception | None = None
        for name, content in self._artifacts.waiting().items():
            try:
                self._write_artifact(name, content)
            except (TypeError, ValueError) as error:  # it is no JSON
                self._drop("artifact", name, error)
            except Exception as error:
                if not self._is_refusal(error):
                    failure = error
                    continue
                self._drop("artifact", name, error)
            self._artifacts.forget({name: content})
        if failure:
            raise failure

    def _write_artifact(self, name: str, content: Document) -> None:
        if isinstance(content, str):
            self._client.log_text(self._run_id, content, name)
        elif isinstance(content, dict):
            self._client.log_dict(self._run_id, content, name)
        else:
            folder, _, file = name.rpartition("/")
            with tempfile.TemporaryDirectory() as place:
                path = Path(place, file)
                path.write_bytes(content)
                self._client.log_artifact(self._run_id, str(path), folder or None)

    def _send(self, items: Sequence[Item], log: Callable[[Sequence[Item]], None], what: str) -> None:
        """Log items, without those that the server refuses: halves are tried until these are found."""
        try:
            log(items)
        except Exception as error:
            if not self._is_refusal(error):
                raise
            if len(items) == 1:
                self._drop(what, getattr(items[0], "key", ""), error)
                return
            middle = len(items) // 2
            self._send(items[:middle], log, what)
            self._send(items[middle:], log, what)

    def _is_refusal(self, error: Exception) -> bool:
        """Whether an item is at fault, not the server. Raises GoneError where it is the run that is no more."""
        code = getattr(error, "error_code", None)
        if code == "RESOURCE_DOES_NOT_EXIST" or (code in REFUSALS and not is_active(self._client, self._run_id)):
            self._client = None
            raise GoneError(f"run {self._run_id} was deleted") from error
        return code in REFUSALS

    def _run(self) -> Any:
        try:
            return self._client.get_run(self._run_id)
        except Exception as error:
            self._is_refusal(error)
            raise

    def _drop(self, what: str, name: str, error: Exception) -> None:
        if name not in self._refused:
            logger.warning(
                "MLflow at %s does not take %s %s (%s): it is left out", self._uri, what, name, _brief(error)
            )
        self._refused.add(name)

    def _end(self) -> None:
        if self._monitor:
            self._monitor.finish()
            self._monitor = None
        self._client.set_terminated(self._run_id, self._status)
        if self._models:
            try:
                self._models.finish()
            except Exception as error:  # the checkpoint is there, and so is its model
                logger.warning("MLflow at %s: the last model is not served (%s)", self._uri, _brief(error))


class GoneError(RuntimeError):
    """The run that is written was deleted."""


def is_active(client: Any, run_id: str) -> bool:
    """Whether a server still has a run that was not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def sqlite_file(uri: str) -> Path | None:
    """The database file of a tracking URI; None for a server."""
    path = unquote(uri.removeprefix("sqlite:///").partition("?")[0])
    return Path(path) if uri.startswith("sqlite:///") and path not in ("", ":memory:") else None


def sqlite_uri(file: str) -> str:
    """The tracking URI of a database file, in which `?` would begin options and `%` a letter."""
    return "sqlite:///" + file.replace("%", "%25").replace("?", "%3F")


def file_identity(uri: str) -> tuple[int, int] | None:
    """Device and inode of a database file, which differ for a file that takes its place; None without a file."""
    file = sqlite_file(uri)
    if file is None or not file.exists():
        return None
    found = file.stat()
    return found.st_dev, found.st_ino


_spellings: dict[str, list[tuple[int, int] | None]] = {}
"""By tracking URI, the database files that this process has met there, oldest first."""


def connection_uri(uri: str) -> str:
    """A URI for a new client: MLflow keeps one connection a URI, also to a file that was deleted since."""
    file = sqlite_file(uri)
    if file is None:
        return uri
    met = _spellings.setdefault(uri, [])
    if met and met[-1] is None:  # made by the client before
        met[-1] = file_identity(uri)
    if not met or met[-1] != file_identity(uri) or met[-1] is None:
        met.append(file_identity(uri))
    spelling = sqlite_uri(f"{file.parent}/{'./' * (len(met) - 1)}{file.name}")
    return spelling + "".join(uri.partition("?")[1:])


def _timed(step: int, values: Mapping[str, float]) -> list[tuple[str, float, int, int]]:
    now = int(time.time() * 1000)
    return [(name, float(value), now, step) for name, value in with_headlines(values).items()]


def _system_monitor(uri: str, run_id: str) -> Any:
    """MLflow's record of CPU, GPU, disk and network, where it is wanted."""
    if not wants_system_metrics():
        return None
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


def _brief(error: Exception | None) -> str:
    """The innermost cause in one line: MLflow wraps it in urllib3's names."""
    if error is None:
        return "it did not answer in time"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "connection refused" if "Connection refused" in text else text[:200]
