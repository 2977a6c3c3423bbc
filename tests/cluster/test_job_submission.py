"""`ray job submit` as the pages say: in a fresh clone, and where dependencies are installed and the project is not."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from helpers.faults import ended
from helpers.ports import free_ports
from helpers.shard_folders import row, write_shards
from mlflow import MlflowClient

from llip.runs.tracking import read_metrics
from llip.training import checkpoint

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


SUBMIT = ("--runtime-env", "cluster/runtime_env.yaml", "--working-dir", ".")


@dataclass(frozen=True)
class Cluster:
    """A head node that was started with a token."""

    address: str
    """URL of the job server."""
    environment: dict[str, str]
    """Variables under which it was started."""

    def submit(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` with the documented options, from the project's root."""
        return subprocess.run(
            ["ray", "job", "submit", "--address", self.address, *SUBMIT, "--", *command],
            cwd=ROOT,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a shell in the environment that cluster/Dockerfile makes: same command, without the container."""
    folder = tmp_path_factory.mktemp("image")
    for name in ("pyproject.toml", "uv.lock"):  # the lock, where there is one, spares resolving again
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    venv = folder / "venv"
    variables = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "MLFLOW_", "VIRTUAL_ENV", "PYTHON"))}
    command = [os.environ.get("UV", "uv"), "sync", "--no-install-project", "--no-default-groups", "--group", "demo"]
    python = ["--python", sys.executable]
    subprocess.run(command + python, cwd=folder, check=True, env=variables | {"UV_PROJECT_ENVIRONMENT": str(venv)})
    _copy_bytecode(venv)
    variables |= {"PATH": f"{venv}/bin{os.pathsep}{variables['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    without = subprocess.run(
        ["python", "-c", "import ray, llip"], cwd=folder, env=variables, capture_output=True, text=True
    )
    assert "No module named 'llip'" in without.stderr
    return variables


def _copy_bytecode(venv: Path) -> None:
    """Files of packages as this environment has them compiled, of the same sources: else a dozen processes compile
    PyTorch and Ray at the same moment."""
    ours, theirs = Path(pytest.__file__).parents[1], next(venv.glob("lib/python*/site-packages"))
    for file in ours.rglob("__pycache__/*.pyc"):
        copy = theirs / file.relative_to(ours)
        if copy.parents[1].is_dir():
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(file, copy)


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    """`ray start --head` with token authentication, on ports of its own."""
    variables = environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    port, dashboard, client, agent = free_ports(4)
    folder = tempfile.mkdtemp(
        prefix="ray", dir="/tmp"
    )  # short: Ray puts sockets in it, whose paths have 107 characters
    command = ["ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}"]
    with Path(folder, "head.log").open("w") as log:
        head = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
    cluster = Cluster(f"http://127.0.0.1:{dashboard}", variables)
    try:
        _wait_until_it_answers(cluster, head, Path(folder, "head.log"))
        yield cluster
    finally:  # not `ray stop`: it ends every Ray of this machine; nor SIGTERM, after which Ray waits half a minute
        _kill_group(head.pid)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_answers(cluster: Cluster, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    command = ["ray", "job", "list", "--address", cluster.address]
    while subprocess.run(command, env=cluster.environment, capture_output=True).returncode:
        assert head.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(2)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


SMALL = "--steps 20 --batch-size 32 --corpus-images 192"


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables of somebody who has uv and nothing of Ray. Whatever runs in that home at the end is killed."""
    with socket.socket() as probe:
        if not probe.connect_ex(("127.0.0.1", 6379)):
            pytest.skip("port 6379 of Ray's own is taken: another head runs on this machine")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    cache = subprocess.run(["uv", "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    variables = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "MLFLOW_", "VIRTUAL_ENV", "PYTHON"))}
    yield variables | {"HOME": str(tmp_path), "UV_CACHE_DIR": cache, "RAY_TMPDIR": folder}
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(tmp_path):
                process.kill()
        except psutil.Error:
            continue
    shutil.rmtree(folder, ignore_errors=True)


def test_the_lines_of_the_pages_train_in_a_fresh_clone(newcomer: dict[str, str], tmp_path: Path) -> None:
    """As they stand, but for folder, length and ports. README's train; the other page's, on that Ray, find it done.

    First in this file: they start Ray at its own ports.
    """
    block = _block("README.md", "^```\\w*\n(.*?)^```\n")
    again = _block("cluster/README.md", "((?:^    .*\n)+)")
    assert [line.replace("uv run ", "") for line in block[:2]] == [" && ".join(again[:2]), again[2]]
    lines = [*block, f"export PATH={tmp_path}/clone/.venv/bin:$PATH", again[-1]]
    assert [line.endswith("--output /data/llip") for line in lines] == [False, False, True, False, True]
    small = f"--output {tmp_path}/llip {SMALL} --name run"
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    lines = [line.replace("--output /data/llip", small) for line in lines]
    # Ray of the test that runs beside this one has the other ports, and Ray takes no jobs where the agent's is taken.
    dashboard, agent = free_ports(2)
    ports = f"--head --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
    lines = [line.replace("--head", ports) for line in lines]
    newcomer |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    script = ["bash", "-ec", "\n".join(lines)]
    done = subprocess.run(script, cwd=clone, env=newcomer, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    assert done.stdout.count("succeeded") == 2
    assert done.stdout.count("scenes_in_style/text_to_image_map") >= 1
    run = tmp_path / "llip" / "runs" / "run"
    newest = checkpoint.latest(str(run))
    assert newest is not None and checkpoint.step_of(newest) == read_metrics(str(run))[-1]["step"] == 20
    assert (tmp_path / "llip" / "mlflow.db").exists()


def _block(page: str, pattern: str) -> list[str]:
    """The lines of a page that start Ray on one machine and submit a job."""
    blocks = re.findall(pattern, (ROOT / page).read_text(), re.M | re.S if "```" in pattern else re.M)
    found = next(block for block in blocks if "ray start --head" in block)
    return [line.strip() for line in found.splitlines() if "plan.py" not in line]


def test_a_job_without_the_token_is_refused(cluster: Cluster) -> None:
    refused = cluster.submit("python", "-c", "print('ran')", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert refused.returncode != 0
    assert "token is invalid" in refused.stdout


@pytest.mark.soak
def test_pretraining_runs_as_a_job(cluster: Cluster, tmp_path: Path) -> None:
    """Driver, Ray Data's and Ray Train's workers find the project in the working directory that Ray unpacked."""
    command = ["python", "pipelines/pretrain.py", *SMALL.split(), "--workers", "2", "--name", "job"]
    finished = cluster.submit(*command, "--output", str(tmp_path))
    assert finished.returncode == 0, finished.stdout[-4000:]
    assert "succeeded" in finished.stdout
    newest = checkpoint.latest(str(tmp_path / "runs" / "job"))
    assert newest is not None and checkpoint.step_of(newest) == 20
    assert read_metrics(str(tmp_path / "runs" / "job"))[-1]["step"] == 20


def test_bad_input_fails_the_job_with_its_message(cluster: Cluster, tmp_path: Path) -> None:
    command = ["python", "pipelines/pretrain.py", "--recipe", "siglip_tiny", "--heads", "4", "--output", str(tmp_path)]
    failed = cluster.submit(*command)
    assert failed.returncode != 0
    assert "model.head.heads is 4; it has to be left at 8" in failed.stdout


def test_a_relative_output_is_refused_in_a_job(cluster: Cluster) -> None:
    failed = cluster.submit("python", "pipelines/pretrain.py", "--output", "output")
    assert failed.returncode != 0
    assert "--output output is relative: a job runs in a copy of the code" in failed.stdout


def test_a_job_that_is_stopped_saves_first_and_goes_on_when_submitted_again(
    cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "runs" / "stopped"
    shards = write_shards(tmp_path / "shards", [row(number) for number in range(192)], files=2, row_group_size=16)
    command = ["python", "pipelines/pretrain.py", "--batch-size", "32", "--shards", shards, "--workers", "0"]
    command += ["--steps", "3000", "--checkpoint-every", "3000", "--name", "stopped", "--output", str(tmp_path)]
    submit = ["ray", "job", "submit", "--no-wait", "--submission-id", "stopped", "--address", cluster.address, *SUBMIT]
    subprocess.run([*submit, "--", *command], cwd=ROOT, env=cluster.environment, check=True, capture_output=True)
    deadline = time.monotonic() + 300
    while not read_metrics(str(folder)):
        assert time.monotonic() < deadline
        time.sleep(1)
    stop = ["ray", "job", "stop", "--address", cluster.address, "stopped"]
    stopped = subprocess.run(stop, env=cluster.environment, capture_output=True, text=True)
    assert "was stopped" in stopped.stdout + stopped.stderr, stopped
    newest = checkpoint.latest(str(folder))
    assert newest is not None and 0 < checkpoint.step_of(newest) < 3000
    note = json.loads((folder / "tracking.json").read_text())
    assert MlflowClient(note["tracking"]["uri"]).get_run(note["run_id"]).info.status == "KILLED"
    how = f"saved at step {checkpoint.step_of(newest)}; MLflow says KILLED; goes on where it is submitted again"
    ended(record_property, "`ray job stop`", how, str(folder))
