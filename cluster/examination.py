"""The examination of a cluster that `preflight.py` prints: workers are placed as training has them, and measured."""

import itertools
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.probes import Probe
from llip import storage
from pipelines import command

MIB = 2**20
CLOCK_CALLS = 10


@dataclass(kw_only=True)
class Node:
    """A node as it was found."""

    name: str
    """Its host, with the start of Ray's id where several nodes are on one."""
    workers: list[int]
    """Ranks of its workers; the first stands for the node."""
    versions: dict[str, str]
    """Versions of Python, packages, CUDA and the driver."""
    gpus: list[str]
    """Name and memory of each, whoever may use it."""
    clock: float = 0.0
    """Seconds that its clock is ahead of the driver's."""
    rates: dict[str, float] = field(default_factory=dict)
    """matmul (FLOPs), inside (all-reduce), peers (median over the other nodes), write, read (bytes): a second, of its
    slowest worker."""


@dataclass(kw_only=True)
class PreflightReport:
    """Results of the examination."""

    nodes: list[Node] = field(default_factory=list)
    pairs: dict[tuple[str, str], float] = field(default_factory=dict)
    """Point-to-point bytes a second between the first workers of two nodes."""
    all_reduce: float | None = None
    """Bus bandwidth over all workers, bytes a second."""
    failures: list[str] = field(default_factory=list)
    """Failures: what did not answer, was not reached, could not be read or written."""


class UnfitError(RuntimeError):
    """Nothing more can be measured."""


def rounds(count: int) -> Iterator[list[tuple[int, int]]]:
    """All pairs of `count` nodes, in rounds in which each node occurs at most once (the circle method)."""
    ring: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    for _ in range(len(ring) - 1):
        halves = zip(ring[: len(ring) // 2], reversed(ring), strict=False)
        yield [(min(a, b), max(a, b)) for a, b in halves if a is not None and b is not None]
        ring[1:] = [ring[-1], *ring[1:-1]]


@dataclass(kw_only=True)
class Examination:
    """Workers on the cluster while they are examined. The fields are the options of `preflight.py`."""

    workers: int | None
    gpu: bool
    storage: str | None
    mib: int | None
    seconds: float
    timeout: float
    report: PreflightReport = field(default_factory=PreflightReport)
    probes: list[Any] = field(default_factory=list)

    def run(self) -> PreflightReport:
        """Measure as much as can be; what cannot is among the report's failures."""
        import ray

        command.start_ray()
        gpu = self.gpu or ray.cluster_resources().get("GPU", 0) > 0
        self.bytes = (self.mib or (256 if gpu else 16)) * MIB
        try:
            self._place("GPU" if gpu else "CPU")
            self._find_nodes()
            self._examine_each()
            if self.storage is not None:
                self._examine_storage(self.storage)
            if len(self.probes) > 1:
                self._examine_network()
        except UnfitError as error:
            self.report.failures.append(str(error))
        finally:
            for probe in self.probes:
                ray.kill(probe)
        return self.report

    def _place(self, key: str) -> None:
        """A worker in each bundle of a placement group: nodes that start on demand are started for it."""
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        there = [node["Resources"].get(key, 0) for node in ray.nodes() if node["Alive"]]
        workers = self.workers or (int(sum(there)) if key == "GPU" else sum(count > 0 for count in there))
        if not workers:
            raise UnfitError(f"no node has a {key}")
        share = 1.0 if key == "GPU" else 0.5
        strategy = "PACK" if key == "GPU" else "SPREAD" if self.workers else "STRICT_SPREAD"
        group = placement_group([{key: share}] * workers, strategy=strategy)
        if not group.wait(self.timeout):
            raise UnfitError(
                f"{workers} workers of {share:g} {key} found no room in {self.timeout:g} s: {there} a node"
            )
        needs: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if key == "GPU" else {"num_cpus": share}
        place = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(workers)]
        self.probes = [ray.remote(Probe).options(scheduling_strategy=p, **needs).remote() for p in place]

    def _find_nodes(self) -> None:
        facts = self._ask("start", {rank: probe.facts.remote() for rank, probe in enumerate(self.probes)})
        if len(facts) < len(self.probes):
            raise UnfitError(f"only {len(facts)} of {len(self.probes)} workers started")
        ranks: dict[str, list[int]] = defaultdict(list)
        for rank, fact in facts.items():
            ranks[fact["node_id"]].append(rank)
        hosts = Counter(facts[own[0]]["host"] for own in ranks.values())
        for node_id, own in ranks.items():
            fact = facts[own[0]]
            name = fact["host"] if hosts[fact["host"]] == 1 else f"{fact['host']}/{node_id[:6]}"
            self.report.nodes.append(Node(name=name, workers=own, versions=fact["versions"], gpus=fact["gpus"]))
        self.places = [
            (facts[node.workers[0]]["address"], facts[node.workers[0]]["port"]) for node in self.report.nodes
        ]

    def _examine_each(self) -> None:
        for node in self.report.nodes:
            node.clock = self._clock(node.workers[0])
        self._keep("matmul", {rank: probe.matmul.remote(self.seconds) for rank, probe in enumerate(self.probes)})

    def _clock(self, rank: int) -> float:
        """Seconds that a worker's clock is ahead, by the call that was answered soonest."""
        calls = []
        for _ in range(CLOCK_CALLS):
            before = time.time()
            there = self._all("clock", {rank: self.probes[rank].clock.remote()})[rank]
            after = time.time()
            calls.append((after - before, there - (before + after) / 2))
        return min(calls)[1]

    def _examine_storage(self, folder: str) -> None:
        """All nodes at once; each reads what the next one wrote, which no cache of its own holds."""
        nodes, place = self.report.nodes, storage.join(folder, f"preflight-{uuid.uuid4().hex[:8]}")
        files = {node.workers[0]: storage.join(place, str(node.workers[0])) for node in nodes}
        try:
            self._keep("write", {rank: self.probes[rank].write.remote(uri, self.bytes) for rank, uri in files.items()})
            others = [*list(files.values())[1:], *list(files.values())[:1]]
            reading = zip(files, others, strict=True)
            self._keep("read", {rank: self.probes[rank].read.remote(uri, self.bytes) for rank, uri in reading})
        finally:
            storage.remove(place)

    def _examine_network(self) -> None:
        nodes, probes = self.report.nodes, self.probes
        calls = {
            (a, b): self._first(nodes[a]).reaches.remote(*self.places[b])
            for a, b in itertools.permutations(range(len(nodes)), 2)
        }
        unseen = [pair for pair, reached in self._ask("connect", calls).items() if not reached]
        for a, b in unseen:
            self.report.failures.append(f"{nodes[a].name} does not reach {nodes[b].name} at {self.places[b][0]}")
        if unseen:
            raise UnfitError("bandwidth between nodes was not measured")
        port = self._ask("find a port", {0: probes[0].free_port.remote()})[0]
        shared = (len(probes), self.places[0][0], port, self.timeout, [node.workers for node in nodes])
        self._all("join", {rank: probe.join.remote(rank, *shared) for rank, probe in enumerate(probes)})
        size = (self.bytes, self.seconds)
        rings = self._all("all-reduce", {rank: probe.all_reduce.remote(*size) for rank, probe in enumerate(probes)})
        self.report.all_reduce = min(rings.values())
        inside = {rank: i for i, node in enumerate(nodes) for rank in node.workers if len(node.workers) > 1}
        self._keep("inside", {rank: probes[rank].all_reduce.remote(*size, i) for rank, i in inside.items()})
        for pairs in rounds(len(nodes)):
            peers = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
            calls = {
                (a, b): self._first(nodes[a]).exchange.remote(nodes[b].workers[0], *size) for a, b in peers.items()
            }
            found = self._all("exchange", calls)
            self.report.pairs |= {(nodes[a].name, nodes[b].name): found[a, b] for a, b in pairs}
        for node in nodes if len(nodes) > 1 else []:
            own = sorted(rate for pair, rate in self.report.pairs.items() if node.name in pair)
            node.rates["peers"] = own[len(own) // 2]

    def _first(self, node: Node) -> Any:
        return self.probes[node.workers[0]]

    def _keep(self, rate: str, calls: Mapping[int, Any]) -> None:
        """A rate of each node: that of its slowest worker."""
        found = self._ask(rate, calls)
        for node in self.report.nodes:
            if own := [found[rank] for rank in node.workers if rank in found]:
                node.rates[rate] = min(own)

    def _all(self, what: str, calls: Mapping[Any, Any]) -> dict[Any, Any]:
        """Answers of all. Raises UnfitError where one is missing: the others wait for it in a collective."""
        found = self._ask(what, calls)
        if len(found) < len(calls):
            raise UnfitError(f"{what}: {len(calls) - len(found)} of {len(calls)} did not answer")
        return found

    def _ask(self, what: str, calls: Mapping[Any, Any]) -> dict[Any, Any]:
        """Answers by key of the call (a rank, or a pair of nodes); each one that is missing becomes a failure."""
        import ray

        if not calls:
            return {}
        done, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=self.timeout)
        found, late = {}, set(calls.values()).difference(done)
        for key, call in calls.items():
            if call in late:
                self.report.failures.append(f"{self._name(key)}: {what} took longer than {self.timeout:g} s")
                continue
            try:
                found[key] = ray.get(call)
            except Exception as error:  # whatever a node raises, or that it died, is what was asked for
                self.report.failures.append(f"{self._name(key)}: {what} failed ({_reason(error)})")
        return found

    def _name(self, key: Any) -> str:
        if isinstance(key, tuple):
            return " and ".join(self.report.nodes[index].name for index in key)
        return next((node.name for node in self.report.nodes if key in node.workers), f"worker {key}")


def _reason(error: Exception) -> str:
    """The line of an actor's error that says what happened."""
    lines: Sequence[str] = [line.strip() for line in str(getattr(error, "cause", error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
