"""MLflow: delivered, resumed, and dead."""

import json
import logging
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llip.evaluation import Metric
from llip.runs.mlflow_items import Names
from llip.runs.mlflow_writer import MlflowWriter, connection_uri, sqlite_file
from llip.runs.notebook import KIND, Data, description, with_headlines
from llip.runs.stopping import StoppedError
from llip.runs.tracking import Tracker, Tracking, default_store, open_run, read_metrics, tracking_of


def _sqlite(folder: Path) -> Tracking:
    return Tracking(
        uri=f"sqlite:///{folder}/mlflow.db",
        experiment="test",
        run_name="first",
        artifact_location=f"{folder}/mlartifacts",
        tags={"colour": "red"},
    )


def _closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_metrics_parameters_and_artifacts_arrive_and_a_second_tracker_continues_the_run(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    with Tracker(_sqlite(tmp_path), folder) as tracker:
        tracker.parameters({"optimizer": {"learning_rate": 0.5, "betas": [0.9, 0.95]}, "name": "x"})
        tracker.artifact("config.json", {"a": 1})
        tracker.artifact("page.html", "<p>é</p>")
        tracker.inputs([Data(name="set", digest="0" * 64, uri="/set", rows=7, context="evaluation")])
        tracker.log(1, {"loss": 3.0})
        tracker.log(2, {"loss": 2.0})
    with Tracker(tracking_of(folder), folder) as tracker:
        tracker.parameters({"optimizer": {"learning_rate": 0.7}, "new": 1})
        tracker.log(3, {"loss": 1.5, "set/top1": 0.25})

    client, run_id = open_run(_sqlite(tmp_path), folder)
    run = client.get_run(run_id)
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "train/loss")] == [
        (1, 3.0),
        (2, 2.0),
        (3, 1.5),
    ]
    assert run.data.metrics["eval/set/top1"] == 0.25
    assert run.data.params == {
        "optimizer.learning_rate": "0.5",
        "optimizer.betas": "[0.9, 0.95]",
        "name": "x",
        "new": "1",
    }
    assert run.data.tags["colour"] == "red" and re.fullmatch("[0-9a-f]{40}", run.data.tags["mlflow.source.git.commit"])
    assert client.get_experiment(run.info.experiment_id).tags == KIND
    assert [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs] == [("set", "0" * 32)]
    assert next((tmp_path / "mlartifacts").rglob("page.html")).read_text() == "<p>é</p>"
    stored = next((tmp_path / "mlartifacts").rglob("config.json"))
    assert json.loads(stored.read_text()) == {"a": 1}
    assert [line["loss"] for line in read_metrics(folder)] == [3.0, 2.0, 1.5]


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (StoppedError, "KILLED")])
def test_an_exception_ends_the_run_as_failed_and_a_request_to_stop_as_killed(
    error: type[Exception], status: str, tmp_path: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path)
    folder = str(tmp_path / "run")
    with pytest.raises(error), Tracker(_sqlite(tmp_path), folder) as tracker:
        tracker.log(1, {"loss": 1.0})
        raise error
    from mlflow import MlflowClient

    note = json.loads((tmp_path / "run" / "tracking.json").read_text())
    assert MlflowClient(_sqlite(tmp_path).uri).get_run(note["run_id"]).info.status == status


def test_a_dead_server_costs_one_warning_and_a_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri, folder = f"http://127.0.0.1:{_closed_port()}", str(tmp_path / "run")
    with (
        caplog.at_level(logging.WARNING, "llip"),
        Tracker(Tracking(uri=uri, experiment="test", run_name="x"), folder) as tracker,
    ):
        for step in range(5):
            tracker.log(step, {"loss": 1.0, "gradient_norm": 2.0})
        tracker.artifact("config.json", {})
    report = caplog.records[-1].getMessage()
    assert report == (
        f"15 metrics, 1 artifacts were not delivered to {uri} (connection refused); "
        f"all metrics are in {folder}/metrics.jsonl"
    )
    assert len(read_metrics(folder)) == 5
    assert tracking_of(folder) is None


def test_what_a_server_did_not_take_is_sent_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self) -> None:
            self.taken: list[float] = []

        def log_batch(self, run_id: str, metrics: list[Any]) -> None:
            self.taken += [m.value for m in metrics]

        def set_terminated(self, run_id: str, status: str) -> None:
            self.status = status

    client, tries = Client(), []

    def connect() -> tuple[Client, str]:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("down")
        return client, "run"

    monkeypatch.setattr(MlflowWriter, "PAUSE", 0.01)
    writer = MlflowWriter("http://nowhere", connect)
    writer.metrics(1, {"memory": 7.0})
    while len(tries) < 3:
        pass
    writer.metrics(2, {"memory": 8.0})
    assert writer.close("FINISHED") is None
    assert client.taken == [7.0, 8.0] and client.status == "FINISHED"


@pytest.mark.parametrize("lost", [False, True], ids=["asked twice", "no answer"])
def test_a_lost_answer_leaves_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    """The client asks again where the server has made a run and its answer does not come, and then gives up."""
    from mlflow import MlflowClient

    make = MlflowClient.create_run

    def create_run(client: MlflowClient, *arguments: Any, **named: Any) -> Any:
        make(client, *arguments, **named)
        run = make(client, *arguments, **named)
        monkeypatch.setattr(MlflowClient, "create_run", make)
        if lost:
            raise TimeoutError
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking, folder = Tracking(uri=uri, run_name="run"), str(tmp_path / "run")
    if lost:
        with pytest.raises(TimeoutError):
            open_run(tracking, folder)
    client, run_id = open_run(tracking, folder)
    experiment = client.get_experiment_by_name(tracking.experiment).experiment_id
    assert [run.info.run_id for run in client.search_runs([experiment])] == [run_id]
    assert open_run(tracking, folder)[1] == run_id


def test_other_ranks_leave_nothing(tmp_path: Path) -> None:
    with Tracker(_sqlite(tmp_path), str(tmp_path / "run"), enabled=False) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["exp?", "50%25", "a b#1", "größe", "a?mode=ro&x"])
def test_a_database_lies_in_its_folder_whatever_the_name_of_that(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.engine import make_url

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, _ = default_store(f"{tmp_path}/{name}")
    for spelling in (uri, connection_uri(uri), connection_uri(uri + "?timeout=5")):
        assert Path(str(make_url(spelling).database)) == sqlite_file(spelling) == tmp_path / name / "mlflow.db"


@pytest.mark.parametrize("name", ["50%25", "50%", "a b", "c%20d#1", "größe?"])
def test_artifacts_lie_in_their_folder_whatever_its_name(
    name: str, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, location = default_store(f"{tmp_path}/{name}")
    shutil.copytree(empty_database.parent, tmp_path / name)
    client, run_id = open_run(Tracking(uri=uri, artifact_location=location, run_name="x"), str(tmp_path / name / "run"))
    client.log_text(run_id, "hello", "t.txt")
    assert [file.relative_to(tmp_path).parts[0] for file in tmp_path.rglob("t.txt")] == [name]
    assert Path(client.download_artifacts(run_id, "t.txt", str(tmp_path))).read_text() == "hello"


def test_default_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert default_store("out") == (f"sqlite:///{tmp_path}/out/mlflow.db", f"{tmp_path}/out/mlartifacts")
    assert default_store("s3://bucket/out")[0] == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert default_store("out") == ("http://tracking:5000", None)


def test_the_loss_and_one_metric_a_set_come_first_in_mlflow() -> None:
    values = {"loss": 2.0, "a/top1": 0.5, "a/top5": 0.9, "b/text_to_image_r1": 0.3, "system/gpu": 1.0}
    names = sorted(with_headlines(values))
    assert names[:3] == ["Headline/Loss", "Headline/a top1", "Headline/b text_to_image_r1"]
    assert names[3:] == ["eval/a/top1", "eval/a/top5", "eval/b/text_to_image_r1", "system/gpu", "train/loss"]


def test_a_description_has_numbers_beside_chance_what_differs_and_the_command() -> None:
    text = description(
        recipe="tiny", differing=["steps: 9 → 3"], command="do it", metrics={"a/top1": Metric(0.5, 0.1)}, step=3
    )
    assert text.startswith("After step 3:") and "| a | top1 | **0.500** | 0.100 | – |" in text
    assert "Recipe `tiny`, with\n\n- `steps: 9 → 3`" in text and "```\ndo it\n```" in text


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("loss", "loss"),
        ("set/text_to_image_r1", "set/text_to_image_r1"),
        ("my set (v2): größe", "my set _v2_: größe"),
        ("a//b/../c", "a/b/c"),
        ("/a/./b", "a/b"),
        ("café [en]", "café _en_"),
        ("?", "_"),
        ("../..", "_"),
    ],
)
def test_names_are_ones_that_mlflow_takes(name: str, accepted: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert Names().accepted(name) == accepted
    _validate_metric_name(accepted)


def test_names_that_would_become_one_stay_apart_and_long_ones_are_cut() -> None:
    names = Names()
    given = ["a (b)", "a [b]", "a _b_", "x" * 300, "x" * 301]
    accepted = [names.accepted(name) for name in given]
    assert accepted[0] == "a _b_" and len(set(accepted)) == len(given)
    assert max(map(len, accepted)) <= 250
    assert [names.accepted(name) for name in given] == accepted


class StubServer:
    """A client of a server that refuses some names for good."""

    def __init__(self, refused: tuple[str, ...]) -> None:
        self.refused = refused
        self.taken: list[str] = []

    def log_batch(self, run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

        names = [item.key.removeprefix("train/") for item in (*metrics, *params)]
        if any(name in self.refused for name in names):
            raise MlflowException("no such name", INVALID_PARAMETER_VALUE)
        self.taken += names

    def get_run(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(lifecycle_stage="active"), data=SimpleNamespace(params={}))

    def log_dict(self, run_id: str, content: dict[str, Any], name: str) -> None:
        json.dumps(content)
        self.taken.append(name)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status = status


@pytest.mark.parametrize("refused", [("m3",), ("m0", "m6"), ("p1", "m2"), ("p0", "p1", "p2")])
def test_what_is_refused_is_left_out_and_said_once(refused: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    server = StubServer(refused)
    with caplog.at_level(logging.WARNING, "llip"):
        writer = MlflowWriter("http://nowhere", lambda: (server, "run"))
        for step in range(3):
            writer.metrics(step, {f"m{i}": 1.0 for i in range(7)})
        writer.parameters({f"p{i}": "x" for i in range(3)})
        writer.artifact("broken.json", {"a": object()})
        writer.artifact("whole.json", {"a": 1})
        assert writer.close("FINISHED") is None
    expected = {f"m{i}" for i in range(7)} | {f"p{i}" for i in range(3)} | {"whole.json"}
    assert set(server.taken) == expected - set(refused) and server.status == "FINISHED"
    said = [
        message.split(" (")[0].split()[-1].removeprefix("train/")
        for message in caplog.messages
        if "does not take" in message
    ]
    assert sorted(said) == sorted(["broken.json", *refused])


@pytest.mark.parametrize("gone", ["run deleted", "run unknown", "experiment deleted", "database deleted"])
def test_what_was_deleted_is_made_anew_with_all_that_was_logged(
    tmp_path: Path, gone: str, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is written, and between two starts."""
    monkeypatch.setattr(MlflowWriter, "PAUSE", 0.01)
    shutil.copy(empty_database, tmp_path)
    tracking, folder = _sqlite(tmp_path), str(tmp_path / "run")
    note = tmp_path / "run" / "tracking.json"

    def run_id() -> str:
        return str(json.loads(note.read_text())["run_id"])

    def delete(between: bool) -> None:
        client = open_run(tracking, folder)[0]
        match gone:
            case "run unknown" if between:
                note.write_text(json.dumps(json.loads(note.read_text()) | {"run_id": "0" * 32}))
            case "run deleted" | "run unknown":
                client.delete_run(run_id())
            case "experiment deleted":
                client.delete_experiment(client.get_experiment_by_name("test").experiment_id)
            case "database deleted":
                shutil.copy(empty_database, tmp_path / "new.db")
                (tmp_path / "new.db").replace(tmp_path / "mlflow.db")

    with Tracker(tracking, folder) as tracker:
        tracker.parameters({"a": 1})
        tracker.log(1, {"loss": 3.0})
        writer = tracker._mlflow
        while writer is None or writer._client is None or any(writer.waiting().values()):
            time.sleep(0.01)
        first = run_id()
        delete(between=False)
        tracker.log(2, {"loss": 2.0})
        tracker.parameters({"b": 2})
    second = run_id()
    client = open_run(tracking, folder)[0]
    assert client.get_run(second).data.params == {"a": "1", "b": "2"}
    delete(between=True)
    with Tracker(tracking, folder) as tracker:
        tracker.log(3, {"loss": 1.0})
    client, third = open_run(tracking, folder)
    assert len({first, second, third}) == 3
    assert [(m.step, m.value) for m in client.get_metric_history(third, "train/loss")] == [(1, 3.0), (2, 2.0), (3, 1.0)]


FRESH = """
import sys
from llip.runs.tracking import Tracking, open_run
open_run(Tracking(uri=f"sqlite:///{sys.argv[1]}/mlflow.db", experiment="test", run_name="x"), sys.argv[2])
"""


@pytest.mark.slow
def test_a_fresh_database_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", FRESH, str(tmp_path), str(tmp_path / str(i))]) for i in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    runs = {json.loads((tmp_path / str(i) / "tracking.json").read_text())["run_id"] for i in range(3)}
    assert len(runs) == 3


def test_a_server_that_comes_back_while_the_run_ends_gets_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    server, fails = StubServer(()), [0, 1, 1, 0]
    send = server.log_batch

    def log_batch(*arguments: Any, **options: Any) -> None:
        if fails and fails.pop(0):
            raise ConnectionError("away")
        send(*arguments, **options)

    monkeypatch.setattr(server, "log_batch", log_batch)
    monkeypatch.setattr(MlflowWriter, "PAUSE", 0.01)
    writer = MlflowWriter("http://nowhere", lambda: (server, "run"))
    writer.metrics(1, {"memory": 1.0})
    while len(fails) == 4:
        time.sleep(0.01)
    writer.metrics(2, {"memory": 2.0})
    assert writer.close("FINISHED") is None
    assert server.taken == ["memory", "memory"] and server.status == "FINISHED"
