"""Units of work over Ray Data, each done once, and the files that lie between two passes."""

from pipelines.stages.work.partitions import Listed, Unit
from pipelines.stages.work.runner import THREADS, Stage, concurrently, digest, run, worker_count

__all__ = ["THREADS", "Listed", "Stage", "Unit", "concurrently", "digest", "run", "worker_count"]
