"""The registry of what a training run measures, and the clock behind its rates."""

import resource
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import record_function

from llip.data.loader import LoaderStats
from llip.model.features import ImageFeatures, Mixture, Query, TextFeatures
from llip.model.mixing import mixing_entropy
from llip.training.parallel import Towers
from llip.training.utilisation import Utilisation


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One logged quantity.

    `last` is of the logged step alone, so that a resumed run logs the numbers of an undisturbed one; `rate` is over the
    steps since the last log; `total` and `peak` are since the start of the run and of the process.
    """

    unit: str
    reduction: Literal["last", "rate", "total", "peak"]
    ranks: Literal["mean", "max", "sum", "first"]
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
    "loss_spikes": Measure(
        unit="", reduction="total", ranks="first", meaning="losses far above those before; see `spikes`"
    ),
    "mixing_entropy": Measure(
        unit="", reduction="last", ranks="first", meaning="of the mixing weights, over its maximum ln K; 1: even"
    ),
    "skipped": Measure(unit="steps", reduction="total", ranks="first", meaning="batches left out: not finite"),
    "samples": Measure(unit="images", reduction="total", ranks="sum", meaning="images seen by the run"),
    "samples_per_second": Measure(
        unit="images/s", reduction="rate", ranks="sum", meaning="evaluation and saving excluded"
    ),
    "tokens_per_second": Measure(
        unit="tokens/s", reduction="rate", ranks="sum", meaning="of captions, start and end included"
    ),
    "model_flops_utilisation": Measure(
        unit="", reduction="rate", ranks="mean", meaning="of the towers, over the devices' peak in bf16"
    ),
    "data_wait_share": Measure(
        unit="", reduction="rate", ranks="first", meaning="share of the time spent waiting for data"
    ),
    "step_seconds": Measure(
        unit="s",
        reduction="rate",
        ranks="mean",
        meaning="of a step, a rank's own before it meets the others: waiting for data, and forward",
    ),
    "step_seconds_max": Measure(unit="s", reduction="rate", ranks="max", meaning="of the slowest rank"),
    "slowest_rank": Measure(unit="", reduction="rate", ranks="first", meaning="the rank that the others wait for"),
    "decode_errors": Measure(unit="images", reduction="total", ranks="first", meaning="unreadable images, replaced"),
    "memory": Measure(unit="GiB", reduction="peak", ranks="first", meaning="allocated on the GPU, else resident"),
}


class Watched:
    """Towers that are timed, and of which the features of the first few images and captions are kept.

    What is measured costs no forward pass and no wait for the device.
    """

    KEPT = 8

    def __init__(self, towers: Towers, temperature: float) -> None:
        self._temperature = temperature
        self._towers = towers
        self._kept: tuple[Any, ...] = ()
        self._seconds = 0.0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self.no_sync = towers.no_sync

    def __call__(self, pixels_BCHW: Tensor, token_ids_TL: Tensor) -> tuple[ImageFeatures, TextFeatures]:
        with record_function("forward"), self._timed(pixels_BCHW.device):
            features = self._towers(pixels_BCHW, token_ids_TL)
        self._kept = tuple(type(f)(*(tensor[: self.KEPT].detach().clone() for tensor in f)) for f in features)
        return features

    @contextmanager
    def _timed(self, device: torch.device) -> Iterator[None]:
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            before = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - before

    def seconds(self) -> float:
        """Time of all forward passes that the device has done."""
        while self._events and self._events[0][1].query():
            begin, end = self._events.popleft()
            self._seconds += begin.elapsed_time(end) / 1000
        return self._seconds

    def mixing(self) -> dict[str, float]:
        """Entropy of the mixing weights; nothing where no query mixes tokens."""
        match self._kept:
            case (Mixture() as mixture, Query() as query) | (Query() as query, Mixture() as mixture):
                return {"mixing_entropy": float(mixing_entropy(mixture, query.query_BME, self._temperature))}
        return {}


def peak_memory(device: torch.device) -> float:
    """Peak memory in GiB: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


class Rates:
    """Throughput since the last lap; what happens inside `paused` does not count."""

    def __init__(self, samples: int, *, ranks: int, utilisation: Utilisation | None) -> None:
        self.samples = samples
        self._ranks = ranks
        self._utilisation = utilisation
        self._waited, self._tokens = 0.0, 0
        self._own_R: Sequence[float] = [0.0] * ranks
        self._steps = 0
        self._start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin

    def lap(self, samples: int, loader: LoaderStats, own_R: Sequence[float]) -> dict[str, float]:
        """The rates up to now, with `samples` seen by the run, over all ranks.

        `own_R` are the seconds that each rank has been at work, since it began, before it meets the others in a step.
        """
        now = time.perf_counter()
        seconds, done, waited = now - self._start, samples - self.samples, loader.wait_seconds - self._waited
        tokens, steps = (loader.tokens - self._tokens) * self._ranks, loader.batches - self._steps
        step_seconds_R = [(own - before) / steps for own, before in zip(own_R, self._own_R, strict=True)]
        self._start, self.samples, self._waited, self._tokens = now, samples, loader.wait_seconds, loader.tokens
        self._steps, self._own_R = loader.batches, own_R
        slowest = max(step_seconds_R)
        values = {
            "samples": samples,
            "samples_per_second": done / seconds,
            "tokens_per_second": tokens / seconds,
            "data_wait_share": waited / seconds,
            "step_seconds": statistics.fmean(step_seconds_R),
            "step_seconds_max": slowest,
            "slowest_rank": step_seconds_R.index(slowest),
            "decode_errors": loader.decode_errors,
        }
        if self._utilisation:
            values["model_flops_utilisation"] = self._utilisation.share(images=done, tokens=tokens, seconds=seconds)
        return values
