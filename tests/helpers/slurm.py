"""Slurm on this machine: munge, a controller and two nodes, each a daemon of its own on 127.0.0.1."""

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from helpers.ports import free_ports

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
AuthType=auth/munge
# A job that is queued again waits until its old credential has expired, two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Two nodes, n1 and n2, of one CPU each while the block runs; the variables that Slurm's commands need."""
    (folder / "state").mkdir()
    for node in ("n1", "n2"):
        (folder / f"spool-{node}").mkdir()
    key, log = folder / "munge.key", folder / "daemons.log"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=free_ports(3)))
    variables = os.environ | {"SLURM_CONF": str(configuration)}
    munge = [f"--{name}={folder}/munge.{kind}" for name, kind in MUNGE_FILES.items()]
    # --force: munge's socket is everybody's, and pytest's folders are not
    daemons = [["munged", "-F", "--force", "--num-threads=2", f"--key-file={key}", *munge], ["slurmctld", "-D", "-c"]]
    daemons += [["slurmd", "-D", "-N", node] for node in ("n1", "n2")]
    with ExitStack() as stack, log.open("w") as output:
        for daemon in daemons:
            process = subprocess.Popen(daemon, env=variables, stdout=output, stderr=output)
            stack.callback(_end, process)
            if daemon[0] == "munged":
                _wait((folder / "munge.socket").exists, log)
        _wait(lambda: _idle(variables) == 2, log)
        yield variables


MUNGE_FILES = {"socket": "socket", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)


def _idle(variables: dict[str, str]) -> int:
    sinfo = subprocess.run(["sinfo", "-h", "-N", "-t", "idle"], env=variables, capture_output=True, text=True)
    return len(sinfo.stdout.splitlines())


def _wait(ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
