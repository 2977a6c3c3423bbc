"""Ranks of tests, forked from one process a session that has imported what they need: seconds of each, once."""

from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

PRELOAD = ["pytest", "torch._dynamo", "llip.training.loop", "llip.training.watchdog", "llip.evaluation.evaluate"]


def start(work: Callable[..., None], ranks: int, *arguments: Any, join: bool = True) -> Any:
    """`work(rank, *arguments)` in as many processes. With `join` until all end, and it raises what one of them raises;
    else what `torch.multiprocessing` returns, with the list of `processes`."""
    mp.set_forkserver_preload(PRELOAD)
    return mp.start_processes(work, arguments, nprocs=ranks, join=join, start_method="forkserver")
