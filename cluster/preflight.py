"""Whether a cluster is fit to train, before a run starts on it: what its nodes are, how fast, and which falls behind.

    python cluster/preflight.py --workers 128 --storage s3://bucket/llip   # as a job
    uv run python cluster/preflight.py --storage /data/llip                # this machine

Exit code 1 where a node does not answer, differs from the others or is slower; each such node is named.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from cluster.examination import Examination, Node, PreflightReport
from llip import storage
from llip.fields import setting
from pipelines import command

RATES = {
    "matmul": ("matrix products", "TFLOP/s", 1e12),
    "inside": ("all-reduce inside the node", "GB/s", 1e9),
    "peers": ("point to point", "GB/s", 1e9),
    "write": ("writing", "MB/s", 1e6),
    "read": ("reading", "MB/s", 1e6),
}
"""Rates that nodes are compared by, each with its name, its unit, and a unit in operations or bytes a second."""
SHOWN_PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """Options of an examination, and what the cluster has to reach."""

    workers: int | None = None
    """Workers, as training has them; where not given, one for each GPU of the cluster, without GPUs one a node."""
    gpu: bool = False
    """Each worker has a GPU although the cluster has none yet: its nodes start on demand."""
    storage: str | None = setting(None, metavar="FOLDER")
    """Folder that all nodes see, or s3://…: each writes a file there and reads another one's. They are removed."""
    mib: int | None = None
    """MiB of a message and of a file (256 with GPUs and 16 without, where not given)."""
    seconds: float = 2.0
    """Seconds for which each bandwidth is measured."""
    tolerance: float = 0.7
    """A node falls behind below this fraction of the median of the others."""
    clock_seconds: float = 1.0
    """Largest distance of a node's clock from the others'."""
    timeout: float = 600.0
    """Seconds to wait for nodes, and for each measurement."""
    output: str | None = setting(None, metavar="FILE")
    """JSON file of everything that was measured."""

    def __post_init__(self) -> None:
        for name in ("workers", "mib", "seconds", "clock_seconds", "timeout"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it has to be above 0")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance is {self.tolerance}; it has to be a fraction in (0, 1)")


def findings(report: PreflightReport, settings: Preflight) -> list[str]:
    """Reasons against training here, each naming its node; empty where nothing does."""
    found = list(report.failures)
    for name, values in _properties(report.nodes).items():
        usual = Counter(values.values()).most_common(1)[0][0]
        found += [f"{node}: {name} {value}, others {usual}" for node, value in values.items() if value != usual]
    middle = median([node.clock for node in report.nodes] or [0.0])
    for node in report.nodes:
        if abs(node.clock - middle) > settings.clock_seconds:
            found.append(f"{node.name}: clock {node.clock - middle:+.1f} s from the others'")
    for rate, (what, unit, scale) in RATES.items():
        rates = {node.name: node.rates[rate] for node in report.nodes if rate in node.rates}
        for name, value in rates.items():
            others = [other for node, other in rates.items() if node != name]
            if others and value < settings.tolerance * (usually := median(others)):
                found.append(f"{name} falls behind: {what} {_in(value, scale)} {unit}, others {_in(usually, scale)}")
    return found


def _in(value: float, scale: float) -> str:
    value /= scale
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _properties(nodes: Sequence[Node]) -> dict[str, dict[str, str]]:
    """Differences between nodes where all have to be equal, by their name and the node's."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for node in nodes:
        gpus = Counter(node.gpus).items()
        found["GPUs"][node.name] = " + ".join(f"{count} x {gpu}" for gpu, count in gpus) or "none"
        found["workers"][node.name] = str(len(node.workers))
        for package, version in node.versions.items():
            found[package][node.name] = version
    return found


def show(report: PreflightReport, found: Sequence[str]) -> None:
    """Print tables of the nodes and of the slowest pairs, and what was found."""
    from rich.console import Console
    from rich.table import Table

    plain: dict[str, Any] = {"box": None, "pad_edge": False, "header_style": ""}
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    if report.nodes:
        table = Table("node", "workers", "GPUs", "clock ms", **plain)
        for what, unit, _ in RATES.values():
            table.add_column(f"{what} {unit}", justify="right")
        gpus = _properties(report.nodes)["GPUs"]
        for node in report.nodes:
            cells = [_in(node.rates[r], scale) if r in node.rates else "" for r, (_, _, scale) in RATES.items()]
            table.add_row(node.name, str(len(node.workers)), gpus[node.name], f"{1000 * node.clock:+.1f}", *cells)
        console.print(table)
    if report.pairs:
        table = Table("slowest pairs of nodes", "", "GB/s", **plain)
        for (a, b), rate in sorted(report.pairs.items(), key=lambda pair: pair[1])[:SHOWN_PAIRS]:
            table.add_row(a, b, _in(rate, 1e9))
        console.print(table)
    if report.all_reduce is not None:
        console.print(f"all-reduce over all workers: {_in(report.all_reduce, 1e9)} GB/s")
    for line in found:
        console.print(f"error: {line}", soft_wrap=True)
    if not found:
        console.print(f"{len(report.nodes)} nodes are fit to train")


def preflight(settings: Preflight) -> list[str]:
    """Examine the cluster, print what was measured, and return what speaks against training on it."""
    folder = None if settings.storage is None else storage.absolute(settings.storage)
    if folder is not None:
        storage.filesystem(folder)  # an unknown scheme is refused before anything starts
    examination = Examination(
        workers=settings.workers,
        gpu=settings.gpu,
        storage=folder,
        mib=settings.mib,
        seconds=settings.seconds,
        timeout=settings.timeout,
    )
    report = examination.run()
    found = findings(report, settings)
    show(report, found)
    if settings.output is not None:
        pairs = [{"nodes": pair, "bytes_per_second": rate} for pair, rate in report.pairs.items()]
        storage.write_json(settings.output, asdict(report) | {"pairs": pairs, "findings": found})
    return found


def main(settings: Preflight) -> None:
    """Exit code 1 where anything speaks against training."""
    if preflight(settings):
        sys.exit(1)


def cli() -> None:
    """The command line."""
    command.run(Preflight, main, "Whether a cluster is fit to train: its nodes, their speed, and which falls behind.")


if __name__ == "__main__":
    cli()
