"""The metrics log: written in parts beside the training, rewound where a run goes back."""

import time
from pathlib import Path

import pytest

from llip import storage
from llip.runs import tracking
from llip.runs.tracking import MetricsLog, Tracker, read_metrics


def test_a_resumed_run_forgets_the_record_of_steps_that_it_does_again(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for upto, start in ((5, 0), (7, 3)):
        with Tracker(None, folder) as tracker:
            tracker.rewind(start)
            for step in range(start + 1, upto + 1):
                tracker.log(step, {"loss": float(10 * upto + step)})
    assert [line["loss"] for line in read_metrics(folder)] == [51.0, 52.0, 53.0, 74.0, 75.0, 76.0, 77.0]


def test_the_log_is_written_in_parts_and_only_those_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MetricsLog, "LINES", 3)
    written: list[str] = []
    write = storage.write_bytes

    def noted(uri: str, content: bytes) -> None:
        written.append(Path(uri).name)
        write(uri, content)

    monkeypatch.setattr(storage, "write_bytes", noted)
    folder = str(tmp_path)
    log = MetricsLog(folder)
    for step in range(1, 9):
        log.append(step, {"loss": float(step)})
        log.flush()
    names = ["metrics.jsonl", "metrics-00001.jsonl", "metrics-00002.jsonl"]
    assert written == [names[(step - 1) // 3] for step in range(1, 9)]
    log = MetricsLog(folder)
    log.rewind(4)
    log.append(5, {"loss": 0.0})
    written.clear()
    log.flush()
    assert written == names[1:]
    assert [line["loss"] for line in read_metrics(folder)] == [1.0, 2.0, 3.0, 4.0, 0.0] and len(log.lines()) == 5


def test_the_log_is_written_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_WRITES", 0.01)
    with Tracker(None, str(tmp_path)) as tracker:
        tracker.log(1, {"loss": 1.0})
        deadline = time.monotonic() + 60
        while not read_metrics(str(tmp_path)):
            assert time.monotonic() < deadline
