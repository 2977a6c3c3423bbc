"""The log of a command: levels, errors in one line, lines in place of a bar, no escape codes."""

import logging
import subprocess
import sys
from dataclasses import dataclass

import pytest

from llip import progress
from pipelines import command, logs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a command of these tests does."""

    fail: str = "no"


def _fail(settings: Settings) -> None:
    """Do as is said."""
    match settings.fail:
        case "value":
            raise ValueError("x is 1; it has to be 2")
        case "foreign":
            raise RuntimeError("ray::task\n  File 'worker.py'\nOSError: the disk is full")
    logging.getLogger("llip.somewhere").info("told")
    logging.getLogger("somebody").info("not told")
    logging.getLogger("somebody").warning("this is told")


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--fail", "value"], 2, "error: x is 1; it has to be 2\n"),
        (["--fail", "foreign"], 1, "error: OSError: the disk is full\n--log-level debug shows where\n"),
    ],
)
def test_an_error_is_one_line(
    options: list[str],
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(logs, "configure", lambda level: None)
    monkeypatch.setattr(sys, "argv", ["program", *options])
    with pytest.raises(SystemExit) as stopped:
        command.run(Settings, _fail, "")
    assert stopped.value.code == code and capsys.readouterr().err == told


def test_a_traceback_is_shown_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "configure", lambda level: None)
    monkeypatch.setattr(sys, "argv", ["program", "--fail", "foreign", "--log-level", "debug"])
    with pytest.raises(RuntimeError, match="the disk is full"):
        command.run(Settings, _fail, "")


PROGRAM = """
import logging, sys, time
from llip import progress
from pipelines import logs
logs.configure(sys.argv[1])
logging.getLogger("llip.somewhere").info("told")
logging.getLogger("somebody").info("not told")
logging.getLogger("somebody").warning("of others")
with progress.bar(total=30, desc="train", unit="img", mininterval=0) as bar:
    for step in range(3):
        time.sleep(0.01)
        bar.set_postfix_str(f"step {step}", refresh=False)
        bar.update(10)
"""


def test_a_job_gets_lines_with_times_and_without_escape_codes() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "info"], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert not any(c in done.stderr for c in "\x1b\r")
    assert all(line[2] == ":" and line.split()[1] in ("INFO", "WARNING") for line in lines)
    said = [line.split(maxsplit=2)[2] for line in lines]
    assert said[:2] == ["told", "of others"]
    assert said[-1].startswith("train: 30 of 30 img, step 2, 00:00 left")
    quiet = subprocess.run([sys.executable, "-c", PROGRAM, "warning"], capture_output=True, text=True, check=True)
    assert [line.split(maxsplit=2)[2] for line in quiet.stderr.splitlines()] == ["of others"]


def test_a_line_of_training_has_step_loss_rate_and_wait() -> None:
    values = {"loss": 2.34567, "learning_rate": 9.8e-4, "samples_per_second": 1234.5, "data_wait_share": 0.031}
    assert progress.training_line(120, 1200, values) == (
        "step 120 of 1,200, loss 2.346, learning rate 0.00098, 1,234 images/s, data wait 3%"
    )
