"""Passes over partitions on Ray Data, each partition done once, and the files that lie between two passes."""

from pipelines.stages.work.partitions import Listed, Partition
from pipelines.stages.work.runner import THREADS, Stage, concurrently, digest, run, worker_count

__all__ = ["THREADS", "Listed", "Partition", "Stage", "concurrently", "digest", "run", "worker_count"]
