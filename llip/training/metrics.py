"""The registry of what a training run measures, and the clock behind its rates."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from llip.data.loader import LoaderStats


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One logged quantity.

    `last` is of the logged step alone, so that a resumed run logs the numbers of an undisturbed one; `rate` is over the
    steps since the last log; `total` and `peak` are since the start of the run and of the process.
    """

    unit: str
    reduction: Literal["last", "rate", "total", "peak"]
    ranks: Literal["mean", "sum", "first"]
    """How the ranks' values become one; first: rank 0 stands for all."""
    meaning: str


MEASURES: dict[str, Measure] = {
    "loss": Measure(unit="nat", reduction="last", ranks="mean", meaning="loss of the global batch"),
    "learning_rate": Measure(unit="", reduction="last", ranks="first", meaning="learning rate of the update"),
    "logit_scale": Measure(unit="", reduction="last", ranks="first", meaning="factor of the cosines after the update"),
    "logit_bias": Measure(unit="", reduction="last", ranks="first", meaning="bias of the scores after the update"),
    "gradient_norm": Measure(unit="", reduction="last", ranks="first", meaning="L2 norm of the whole gradient"),
    "guard_hits": Measure(
        unit="pairs", reduction="last", ranks="sum", meaning="pairs with a norm too small to divide by"
    ),
    "samples": Measure(unit="images", reduction="total", ranks="sum", meaning="images seen by the run"),
    "samples_per_second": Measure(
        unit="images/s", reduction="rate", ranks="sum", meaning="evaluation and saving excluded"
    ),
    "data_wait_share": Measure(
        unit="", reduction="rate", ranks="first", meaning="share of the time spent waiting for data"
    ),
    "decode_errors": Measure(unit="images", reduction="total", ranks="first", meaning="unreadable images, replaced"),
    "memory": Measure(unit="GiB", reduction="peak", ranks="first", meaning="allocated on the GPU, else resident"),
}


def peak_memory(device: torch.device) -> float:
    """Peak memory in GiB: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


class Rates:
    """Throughput since the last lap; what happens inside `paused` does not count."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._waited = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin

    def lap(self, samples: int, loader: LoaderStats) -> dict[str, float]:
        """The rates up to now, with `samples` seen by the run, over all ranks."""
        now = time.perf_counter()
        seconds, done, waited = now - self._start, samples - self.samples, loader.wait_seconds - self._waited
        self._start, self.samples, self._waited = now, samples, loader.wait_seconds
        return {
            "samples": samples,
            "samples_per_second": done / seconds,
            "data_wait_share": waited / seconds,
            "decode_errors": loader.decode_errors,
        }
