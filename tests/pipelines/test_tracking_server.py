"""Training, evaluation and a sweep against an MLflow server on PostgreSQL with artifacts on S3, which dies once."""

import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.postgres import postgresql, programs

import llip
from llip import storage
from llip.runs.mlflow_writer import MlflowWriter
from llip.runs.tracking import Tracker, Tracking, open_run, read_metrics, tracking_of
from pipelines.evaluate import Evaluate, evaluate
from pipelines.pretrain import Pretrain, pretrain
from pipelines.ui import serving
from tune.sweep import Sweep, sweep

STEPS = 40
WRITERS, LINES = 50, 20


class Server:
    """An MLflow server that can be killed and started again at the same address."""

    def __init__(self, store: str, artifacts: str) -> None:
        self._options = ("--default-artifact-root", artifacts, "--no-serve-artifacts")
        self._store = store
        self._running: AbstractContextManager[tuple[str, Any]] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def start(self) -> str:
        self._running = serving(self._store, "127.0.0.1", self.port, None, *self._options)
        url, _ = self._running.__enter__()
        return str(url)

    def stop(self) -> None:
        if self._running:
            self._running.__exit__(None, None, None)
        self._running = None

    def die_once(self, run_folder: Path) -> None:
        """Die when the run has logged something and this server knows it, and come back."""
        while tracking_of(str(run_folder)) is None or not read_metrics(str(run_folder)):
            time.sleep(0.1)
        self.stop()
        time.sleep(5)
        self.start()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(programs() is None, reason="needs Debian's postgresql")
def test_what_is_trained_while_the_server_is_away_is_found_once(
    ray_session: None, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MlflowWriter, "PATIENCE", 300.0)
    monkeypatch.setattr(MlflowWriter, "LONGEST_PAUSE", 2.0)
    monkeypatch.setattr("llip.runs.tracking.SECONDS_BETWEEN_WRITES", 0.5)
    with postgresql() as store:
        server = Server(store, f"{s3_bucket}/artifacts")
        try:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.start())
            settings = Pretrain(
                output=str(tmp_path),
                corpus_images=192,
                name="killed",
                workers=0,
                overrides={"steps": STEPS, "log_every": 1, "checkpoint_every": 20, "evaluate_every": 20},
            )
            killer = threading.Thread(target=server.die_once, args=(tmp_path / "runs/killed",))
            killer.start()
            outcome = pretrain(settings)
            killer.join()
            _found_once(outcome.folder, s3_bucket)
            evaluate(Evaluate(checkpoint=outcome.folder, evaluation=str(tmp_path / "evaluation")))
            swept = Sweep(
                vary=("k=1,4",),
                seeds=1,
                evaluations=1,
                output=str(tmp_path),
                corpus_images=192,
                name="small",
                concurrency=1,
                overrides={"steps": 4},
            )
            sweep(swept)
            sweep(replace(swept, vary=("k=1,2,4",)))
            _one_family(str(tmp_path / "sweeps/small"))
            _fifty_at_once(tmp_path, server)
        finally:
            server.stop()


def _fifty_at_once(tmp_path: Path, server: Server) -> None:
    """Writers that begin at the same moment, as trials of one parent: each run is there once, with all that it said."""
    uri = f"http://127.0.0.1:{server.port}"
    client, parent = open_run(Tracking(uri=uri, run_name="fifty"), str(tmp_path / "fifty"))
    begin = threading.Barrier(WRITERS)

    def write(number: int) -> None:
        tracking = Tracking(uri=uri, run_name=f"writer-{number}", parent_run_id=parent)
        begin.wait()
        with Tracker(tracking, str(tmp_path / f"fifty/{number}")) as tracker:
            tracker.parameters({"number": number})
            for step in range(LINES):
                tracker.log(step, {"loss": number + step / LINES})
            tracker.artifact("note.txt", f"of {number}")

    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(write, range(WRITERS)))
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    assert Counter(r.info.run_name for r in runs) == {f"writer-{n}": 1 for n in range(WRITERS)}
    assert {r.info.status for r in runs} == {"FINISHED"}
    for run in runs:
        number = int(run.data.params["number"])
        assert run.info.run_name == f"writer-{number}"
        history = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss"))
        assert history == [(step, number + step / LINES) for step in range(LINES)]
        assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["note.txt"]


def _found_once(folder: str, bucket: str) -> None:
    tracking = tracking_of(folder)
    assert tracking is not None and tracking.uri.startswith("http://")
    client, run_id = open_run(tracking, folder)
    run = client.get_run(run_id)
    client.set_terminated(run_id)
    assert run.info.artifact_uri.startswith(bucket)
    steps = Counter(m.step for m in client.get_metric_history(run_id, "train/loss"))
    assert steps == dict.fromkeys(range(1, STEPS + 1), 1)
    values = {m.step: m.value for m in client.get_metric_history(run_id, "train/loss")}
    assert values == {line["step"]: line["loss"] for line in read_metrics(folder) if "loss" in line}
    artifacts = {a.path for a in client.list_artifacts(run_id)}
    assert artifacts >= {"config.json", "report.html", "data_card.html", "metrics.json", "item_scores.npz"}
    models = client.search_logged_models([run.info.experiment_id])
    assert sorted((m.tags["step"], m.status.name) for m in models) == [("20", "READY"), (str(STEPS), "READY")]
    last = next(m for m in models if m.tags["step"] == str(STEPS))
    assert last.artifact_location.startswith(bucket)
    assert not [uri for uri in storage.listing(last.artifact_location) if uri.endswith(".safetensors")]
    model = llip.load(f"models:/{last.model_id}").model
    assert sum(p.numel() for p in model.parameters()) > 0
    names = Counter(r.info.run_name for r in client.search_runs([run.info.experiment_id]))
    assert names == {"killed": 1, "curated": 1, "shards": 1}
    makers = {r.info.run_name: r.data.tags["mlflow.note.content"] for r in client.search_runs([run.info.experiment_id])}
    assert "used by [killed]" in makers["shards"] and "used by [shards]" in makers["curated"]
    assert "[shards](#/experiments/" in makers["killed"] and "[curated](" in makers["shards"]


def _one_family(folder: str) -> None:
    tracking = tracking_of(folder)
    assert tracking is not None
    client, parent = open_run(tracking, folder)
    client.set_terminated(parent)
    run = client.get_run(parent)
    children = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    assert sorted(r.data.tags["model.vision.tokens"] for r in children) == ["1", "2", "4"]
    assert {r.info.status for r in children} == {"FINISHED"}
    assert "| K |" in run.data.tags["mlflow.note.content"] or "| k |" in run.data.tags["mlflow.note.content"]
    assert {a.path for a in client.list_artifacts(parent)} >= {"sweep.html", "sweep.png", "sweep.txt"}
