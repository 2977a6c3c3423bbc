"""A pool of any format as tables of one shape. A format is a reader of its own, named in `pools.py`."""

from pipelines.stages.read.pools import Pool, open_pool, open_pools, pool_name, tables
from pipelines.stages.read.repeated import refuse_repeated_ids

__all__ = ["Pool", "open_pool", "open_pools", "pool_name", "refuse_repeated_ids", "tables"]
