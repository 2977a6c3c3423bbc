"""Probes that `preflight.py` runs on the nodes: one `Probe` a worker, an actor of Ray."""

import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib import metadata
from typing import Any

from llip import storage

PACKAGES = ("torch", "torchcodec", "ray", "numpy", "numba", "pyarrow", "s3fs", "mlflow", "safetensors")
"""Packages whose versions have to be the same on all workers."""
CONNECT_SECONDS = 5.0
GPU_QUERY = ("nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader,nounits")


class Probe:
    """One worker, on the node and the GPU that training would give it. Bandwidths are bytes a second."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("", 0))

    def facts(self) -> dict[str, Any]:
        """Facts of the node, and the address at which this worker listens."""
        import ray
        import torch

        context = ray.get_runtime_context()
        gpus = _gpus()
        return {
            "node_id": context.get_node_id(),
            "host": socket.gethostname(),
            "address": ray.util.get_node_ip_address(),
            "port": self.listener.getsockname()[1],
            "versions": {
                "python": platform.python_version(),
                **{name: _version(name) for name in PACKAGES},
                "cuda": str(torch.version.cuda) if gpus else "none",
                "driver": gpus[0][0] if gpus else "none",
            },
            "gpus": [f"{name}, {int(memory) / 1024:.0f} GiB" for _, name, memory in gpus],
        }

    def clock(self) -> float:
        return time.time()

    def reaches(self, address: str, port: int) -> bool:
        """Whether a TCP connection to another worker can be opened."""
        try:
            socket.create_connection((address, port), CONNECT_SECONDS).close()
        except OSError:
            return False
        return True

    def free_port(self) -> int:
        with socket.create_server(("", 0)) as server:
            return int(server.getsockname()[1])

    def matmul(self, seconds: float) -> float:
        """FLOPs a second of products of square matrices: bf16 on a GPU, fp32 on a core."""
        import torch

        width, dtype = (8192, torch.bfloat16) if self._on_gpu() else (512, torch.float32)
        torch.set_num_threads(1)
        matrix = torch.ones(width, width, dtype=dtype, device=self._device())
        return 2 * width**3 / _seconds_each(lambda: matrix @ matrix, self._synchronize, seconds)

    def join(self, rank: int, size: int, address: str, port: int, seconds: float, groups: Sequence[list[int]]) -> None:
        """Enter the group of all workers, with NCCL or gloo, and one of each node, whose ranks `groups` lists."""
        import torch.distributed as dist

        self.rank = rank
        dist.init_process_group(
            "nccl" if self._on_gpu() else "gloo",
            init_method=f"tcp://{address}:{port}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=seconds),
        )
        self.groups: list[Any] = [dist.new_group(list(ranks)) for ranks in groups]
        dist.barrier()

    def all_reduce(self, count: int, seconds: float, group: int | None = None) -> float:
        """Bus bandwidth of a ring over all workers or over those of a node: 2 (n - 1) / n of the buffer a worker."""
        import torch
        import torch.distributed as dist

        ring = None if group is None else self.groups[group]
        size = dist.get_world_size(ring)
        buffer = torch.zeros(count, dtype=torch.uint8, device=self._device())
        each = self._repeated(lambda: dist.all_reduce(buffer, group=ring), seconds, ring)
        return 2 * (size - 1) / size * count / each

    def exchange(self, peer: int, count: int, seconds: float) -> float:
        """Bandwidth of a buffer that goes to another worker and comes back."""
        import torch
        import torch.distributed as dist

        buffer = torch.zeros(count, dtype=torch.uint8, device=self._device())
        first, second = (dist.send, dist.recv) if self.rank < peer else (dist.recv, dist.send)

        def round_trip() -> None:
            first(buffer, peer)
            second(buffer, peer)

        round_trip()
        self._synchronize()
        # both have to make the same number of trips: the lower rank counts those of a time, and tells
        start, trips = time.perf_counter(), torch.zeros(1, dtype=torch.int64, device=self._device())
        round_trip()
        self._synchronize()
        if self.rank < peer:
            trips += max(1, min(100, int(seconds / (time.perf_counter() - start))))
            dist.send(trips, peer)
        else:
            dist.recv(trips, peer)
        start = time.perf_counter()
        for _ in range(int(trips)):
            round_trip()
        self._synchronize()
        return 2 * count * int(trips) / (time.perf_counter() - start)

    def write(self, uri: str, count: int) -> float:
        content = os.urandom(count)
        start = time.perf_counter()
        storage.write_bytes(uri, content)
        return count / (time.perf_counter() - start)

    def read(self, uri: str, count: int) -> float:
        """Bandwidth of reading what another node wrote. Raises ValueError where it is not there whole."""
        if not storage.exists(uri):
            raise ValueError(f"{uri} is not there: the folder is not the same on all nodes")
        start = time.perf_counter()
        found = len(storage.read_bytes(uri))
        if found != count:
            raise ValueError(f"{uri} has {found:,} bytes of {count:,}")
        return count / (time.perf_counter() - start)

    def _on_gpu(self) -> bool:
        import torch

        return torch.cuda.is_available()

    def _device(self) -> str:
        return "cuda" if self._on_gpu() else "cpu"

    def _synchronize(self) -> None:
        import torch

        if self._on_gpu():
            torch.cuda.synchronize()

    def _repeated(self, collective: Callable[[], object], seconds: float, ring: Any) -> float:
        """Seconds that a collective takes, the same number of times on every worker."""
        import torch
        import torch.distributed as dist

        collective()
        self._synchronize()
        start = time.perf_counter()
        collective()
        self._synchronize()
        longest = torch.tensor([time.perf_counter() - start], dtype=torch.float64, device=self._device())
        dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=ring)
        times = max(1, min(100, int(seconds / float(longest))))
        start = time.perf_counter()
        for _ in range(times):
            collective()
        self._synchronize()
        return (time.perf_counter() - start) / times


def _seconds_each(work: Callable[[], object], synchronize: Callable[[], None], seconds: float) -> float:
    """Seconds that a piece of work takes on average, after a first one."""
    work()
    synchronize()
    start, times = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        work()
        synchronize()
        times += 1
    return spent / times


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _gpus() -> list[list[str]]:
    """Driver, name and MiB of every GPU of the node, whoever may use it; empty where there is no driver."""
    try:
        found = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.split(", ") for line in found.stdout.splitlines()] if found.returncode == 0 else []
