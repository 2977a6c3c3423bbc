"""What `cluster/preflight.py` finds in measurements, and on two nodes of this machine, one of which is slowed down."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.ports import free_ports
from helpers.s3 import s3_environment
from ray.cluster_utils import Cluster

from cluster.examination import Node, PreflightReport, rounds
from cluster.preflight import Preflight, findings, show
from llip import storage

ROOT = Path(__file__).parents[2]
AGENTS = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")


def _nodes(count: int = 4, **changes: Any) -> list[Node]:
    """Equal nodes a, b, c…, the last of which is changed."""
    rates = {"matmul": 2e14, "inside": 2e11, "peers": 2e10, "write": 1e9, "read": 2e9}
    usual: dict[str, Any] = {"versions": {"torch": "2.14.1"}, "gpus": ["A100, 80 GiB"] * 8, "rates": rates}
    nodes = [Node(name="abcdefgh"[i], workers=list(range(8 * i, 8 * i + 8)), clock=5.0, **usual) for i in range(count)]
    changes["rates"] = rates | changes.get("rates", {})
    return [*nodes[:-1], replace(nodes[-1], **changes)]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"rates": {"matmul": 1.5e14}}, []),
        ({"rates": {"matmul": 1.3e14}}, ["d falls behind: matrix products 130 TFLOP/s, others 200"]),
        ({"rates": {"peers": 1e9}}, ["d falls behind: point to point 1 GB/s, others 20"]),
        ({"rates": {"write": 1e8}}, ["d falls behind: writing 100 MB/s, others 1,000"]),
        ({"versions": {"torch": "2.13.0"}}, ["d: torch 2.13.0, others 2.14.1"]),
        ({"gpus": ["A100, 80 GiB"] * 7}, ["d: GPUs 7 x A100, 80 GiB, others 8 x A100, 80 GiB"]),
        ({"gpus": []}, ["d: GPUs none, others 8 x A100, 80 GiB"]),
        ({"workers": [24]}, ["d: workers 1, others 8"]),
        ({"clock": 2.5}, ["d: clock -2.5 s from the others'"]),
    ],
)
def test_a_node_that_differs_is_named(changes: dict[str, Any], found: list[str]) -> None:
    assert findings(PreflightReport(nodes=_nodes(**changes)), Preflight()) == found


def test_of_two_nodes_the_slower_one_is_named_and_what_failed_comes_first() -> None:
    report = PreflightReport(nodes=_nodes(2, rates={"read": 1e9}), failures=["a does not reach b at 10.0.0.1"])
    assert findings(report, Preflight()) == [*report.failures, "b falls behind: reading 1,000 MB/s, others 2,000"]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_pair_of_nodes_is_measured_once_and_no_node_twice_at_a_time(count: int) -> None:
    found = list(rounds(count))
    assert sorted(itertools.chain(*found)) == list(itertools.combinations(range(count), 2))
    assert all(len({*itertools.chain(*pairs)}) == 2 * len(pairs) for pairs in found)


def test_the_table_has_every_node_the_slowest_pairs_and_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    show(PreflightReport(nodes=_nodes(), pairs={("a", "b"): 2e10, ("c", "d"): 1e9}, all_reduce=3e11), ["d is slow"])
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[1].split()) == "a 8 8 x A100, 80 GiB +5000.0 200 200 20 1,000 2,000"
    pair = next(i for i, line in enumerate(lines) if line.startswith("slowest"))
    assert lines[pair + 1].split() == ["c", "d", "1"]
    assert lines[-2:] == ["all-reduce over all workers: 300 GB/s", "error: d is slow"]


@pytest.mark.parametrize(
    ("options", "message"), [({"workers": 0}, "--workers is 0"), ({"tolerance": 1.0}, "--tolerance is 1.0")]
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preflight(**options)


@pytest.fixture(scope="module")
def two_nodes(s3_server: str) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(s3_server).items():
            patch.setenv(name, value)
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        cluster = Cluster()
        for options in ({"include_dashboard": False}, {}):
            # given ports are not waited for: Ray gives its agents 15 s to name theirs, however busy the machine
            ports: dict[str, Any] = dict(zip(AGENTS, free_ports(4), strict=True))
            cluster.add_node(num_cpus=1, **options, **ports)
        yield cluster
        cluster.shutdown()


def _preflight(cluster: Cluster, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "cluster/preflight.py", "--mib", "4", "--seconds", "1", *options]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": cluster.address}, text=True, stdout=-1)


@contextmanager
def _slowed(raylet: int) -> Iterator[None]:
    """The workers of a node stand still for four fifths of the time."""
    done = threading.Event()

    def send(number: signal.Signals) -> None:
        for worker in psutil.Process(raylet).children():
            with suppress(psutil.Error):  # it has ended
                if "Probe" in " ".join(worker.cmdline()):
                    worker.send_signal(number)

    def slow() -> None:
        while not done.wait(0.02):
            send(signal.SIGSTOP)
            done.wait(0.1)
            send(signal.SIGCONT)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_are_measured_and_the_one_that_is_slowed_down_is_named(
    two_nodes: Cluster, s3_bucket: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    whole = _preflight(two_nodes, "--storage", s3_bucket, "--output", str(report), "--tolerance", "0.01")
    out = whole.communicate()[0]
    assert (whole.returncode, out.splitlines()[-1]) == (0, "2 nodes are fit to train"), out
    found = json.loads(report.read_text())
    for node in found["nodes"]:
        assert {"matmul", "peers", "write", "read"} == {name for name, rate in node["rates"].items() if rate > 0}
        assert abs(node["clock"]) < 1
    assert [len(pair["nodes"]) for pair in found["pairs"]] == [2] and found["all_reduce"] > 0
    assert storage.listing(s3_bucket) == []

    (node,) = two_nodes.worker_nodes
    with _slowed(node.all_processes["raylet"][0].process.pid):
        slow = _preflight(two_nodes, "--storage", str(tmp_path), "--output", str(report))
        out = slow.communicate()[0]
    assert slow.returncode == 1, out
    found = json.loads(report.read_text())
    slowed = next(n["name"] for n in found["nodes"] if n["name"].endswith(node.node_id[:6]))
    assert any(line.startswith(f"{slowed} falls behind: matrix products") for line in found["findings"]), out
