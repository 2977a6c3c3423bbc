"""Steps that hang: who waits for whom is said, with every rank's stack, and the processes end."""

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from helpers import forkserver

from llip.runs.goodput import Phases
from llip.training import watchdog
from llip.training.parallel import current_world, single_process
from llip.training.watchdog import HUNG, Watchdog

SECONDS, RANKS = 4.0, 3


def _step(phases: Phases) -> None:
    for phase in ("load", "forward", "loss and backward", "reduce", "update"):
        phases.enter(phase)


def _wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_process_shows_where_it_hangs_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    phases = Phases()
    _step(phases)
    with (
        caplog.at_level(logging.ERROR, "llip"),
        watchdog.watched(str(tmp_path), phases, single_process(), ["here, process 1"], 0.2),
    ):
        _step(phases)
        phases.enter("load")
        _wait_for(lambda: (tmp_path / "hangs" / "reason.json").exists())
    reason = watchdog.last_reason(str(tmp_path), 0.0)
    assert reason is not None and "rank 0 (here, process 1) has been in load of its step 3" in reason
    assert "test_one_process_shows_where_it_hangs" in (tmp_path / "hangs" / "rank-00000.txt").read_text()
    assert "test_one_process_shows_where_it_hangs" in caplog.text
    assert watchdog.last_reason(str(tmp_path), time.time() + 1) is None


def test_a_step_is_late_by_what_is_usual(tmp_path: Path) -> None:
    phases = Phases()
    dog = Watchdog(str(tmp_path), phases, single_process(), ["here"], 180.0)
    _step(phases)
    assert dog.limit() == 1800  # the first step compiles
    _step(phases)
    assert dog.limit() == 180
    dog._usual.extend([30.0] * 20)
    assert dog.limit() == 300
    phases.enter("checkpoint")
    assert dog.limit() == 3000


def _rank(rank: int, folder: str, fault: str, culprit: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS)
    world, phases = current_world(), Phases()
    with watchdog.watched(folder, phases, world, watchdog.hosts_of(world), SECONDS):
        for step in range(100):
            for phase in ("load", "forward", "loss and backward"):
                phases.enter(phase)
            if step == 3 and rank == culprit:
                Path(folder, "pid").write_text(str(os.getpid()))
                if fault == "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                else:
                    phases.enter("load")
                    time.sleep(1000)
            phases.enter("reduce")
            world.scalars([1.0])
            phases.enter("update")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("fault", "culprit"), [("stopped", 1), ("stopped", 0), ("waiting for data", 1)])
def test_a_rank_that_others_wait_for_is_named(fault: str, culprit: int, tmp_path: Path) -> None:
    ranks = forkserver.start(_rank, RANKS, str(tmp_path), fault, culprit, join=False)
    processes = ranks.processes
    try:
        _wait_for((tmp_path / "pid").exists, 300)
        others = [rank for rank in range(RANKS) if rank != culprit]
        for rank in others:
            processes[rank].join(120)
            assert processes[rank].exitcode == HUNG
        reason = json.loads((tmp_path / "hangs" / "reason.json").read_text())["reason"]
        assert "in reduce of its step 4" in reason and f"process {processes[others[0]].pid}" in reason
        name = f"process {(tmp_path / 'pid').read_text()})"
        if fault == "stopped":
            assert f"{name} does not answer" in reason
            assert processes[culprit].is_alive()
        else:
            assert f"{name} has been in load of its step 5" in reason
            processes[1].join(120)
            assert processes[1].exitcode == HUNG
        assert "in scalars" in (tmp_path / "hangs" / f"rank-{others[0]:05d}.txt").read_text()
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
