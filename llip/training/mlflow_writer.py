"""Writing to MLflow, which never stops or slows training: a thread sends, and says at the end what was not taken."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

METRICS_PER_CALL, PARAMETERS_PER_CALL = 1000, 100  # MLflow's limits


class MlflowWriter:
    """Holds metrics, parameters and artifacts of a run in memory until the server has taken them."""

    PAUSE, LONGEST_PAUSE, PATIENCE = 1.0, 60.0, 60.0
    """Seconds between deliveries, between tries of a dead server, and for the last delivery."""

    def __init__(self, uri: str, connect: Callable[[], tuple[Any, str]]) -> None:
        """`connect` gives an MlflowClient and the id of the run; the thread calls it until it succeeds."""
        self._uri, self._connect = uri, connect
        self._client: Any = None
        self._run_id, self._status = "", "FINISHED"
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._metrics: list[tuple[str, float, int, int]] = []
        self._parameters: dict[str, str] = {}
        self._artifacts: dict[str, dict[str, Any] | str] = {}
        self._monitor: Any = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        with self._lock:
            self._metrics += [(name, float(value), now, step) for name, value in values.items()]

    def parameters(self, values: Mapping[str, str]) -> None:
        with self._lock:
            self._parameters |= values

    def artifact(self, name: str, content: dict[str, Any] | str) -> None:
        with self._lock:
            self._artifacts[name] = content

    def close(self, status: str) -> str | None:
        """Deliver the rest, for at most PATIENCE seconds, and end the run. Returns what was not delivered, or None."""
        self._status = status
        self._closing.set()
        self._thread.join(self.PATIENCE)
        left = {
            "metrics": len(self._metrics),
            "parameters": len(self._parameters),
            "artifacts": len(self._artifacts),
        }
        if not any(left.values()):
            return None
        counts = ", ".join(f"{count} {what}" for what, count in left.items() if count)
        return f"{counts} were not delivered to {self._uri} ({_brief(self._error)})"

    def _work(self) -> None:
        pause, closing = self.PAUSE, False
        while not closing:
            closing = self._closing.wait(pause)
            try:
                self._deliver()
                if closing:
                    self._end()
                pause, self._error = self.PAUSE, None
            except Exception as error:  # however a server fails, training goes on
                if self._error is None and not closing:
                    logger.warning("MLflow at %s: %s; metrics are kept and sent later", self._uri, _brief(error))
                pause, self._error = min(2 * pause, self.LONGEST_PAUSE), error

    def _deliver(self) -> None:
        if self._client is None:
            client, self._run_id = self._connect()
            self._monitor = _system_monitor(self._uri, self._run_id)
            self._client = client
        self._deliver_metrics()
        self._deliver_parameters()
        for name, content in list(self._artifacts.items()):
            log = self._client.log_text if isinstance(content, str) else self._client.log_dict
            log(self._run_id, content, name)
            with self._lock:
                del self._artifacts[name]

    def _deliver_metrics(self) -> None:
        from mlflow.entities import Metric

        while some := self._metrics[:METRICS_PER_CALL]:
            self._client.log_batch(self._run_id, metrics=[Metric(*metric) for metric in some])
            with self._lock:
                del self._metrics[: len(some)]

    def _deliver_parameters(self) -> None:
        from mlflow.entities import Param

        if not self._parameters:
            return
        known = self._client.get_run(self._run_id).data.params  # MLflow refuses to change one: the first start's stay
        new = [Param(name, value) for name, value in self._parameters.items() if name not in known]
        for i in range(0, len(new), PARAMETERS_PER_CALL):
            self._client.log_batch(self._run_id, params=new[i : i + PARAMETERS_PER_CALL])
        with self._lock:
            self._parameters.clear()

    def _end(self) -> None:
        if self._monitor:
            self._monitor.finish()
        self._client.set_terminated(self._run_id, self._status)


def _system_monitor(uri: str, run_id: str) -> Any:
    """MLflow's record of CPU, GPU, disk and network, where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING asks for it."""
    from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return None
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


def _brief(error: Exception | None) -> str:
    """The innermost cause in one line: MLflow wraps it in urllib3's names."""
    if error is None:
        return "it did not answer in time"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "connection refused" if "Connection refused" in text else text[:200]
