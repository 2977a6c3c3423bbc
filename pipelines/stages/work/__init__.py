"""Units of work over Ray Data, each done once, and the files that lie between two passes."""

from pipelines.stages.work.passes import THREADS, Stage, concurrently, digest, run, worker_count
from pipelines.stages.work.units import Listed, Unit

__all__ = ["THREADS", "Listed", "Stage", "Unit", "concurrently", "digest", "run", "worker_count"]
