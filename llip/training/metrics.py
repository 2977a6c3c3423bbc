"""The registry of what a training run measures, and what measures it: towers, rates, FLOPs utilisation, spikes."""

import resource
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import record_function

from llip.config import ModelConfig, TrainingConfig
from llip.data.loader import LoaderStats
from llip.model.features import Mixture, Outputs, Query, mixing_entropy
from llip.runs.goodput import PARTS, Phases
from llip.summary import summarise
from llip.training.parallel import Towers, World


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One logged quantity.

    `last` is of the logged step alone, so that a resumed run logs the numbers of an undisturbed one; `rate` is over the
    steps since the last log; `total` and `peak` are since the start of the run and of the process.
    """

    unit: str
    reduction: Literal["last", "rate", "total", "peak"]
    ranks: Literal["mean", "max", "sum", "first"]
    """Reduction of the ranks' values to one; first: rank 0 stands for all."""
    meaning: str


MEASURES: dict[str, Measure] = {
    "loss": Measure(unit="nat", reduction="last", ranks="mean", meaning="loss of the global batch"),
    "learning_rate": Measure(unit="", reduction="last", ranks="first", meaning="learning rate of the update"),
    "logit_scale": Measure(unit="", reduction="last", ranks="first", meaning="factor of the cosines after the update"),
    "logit_bias": Measure(unit="", reduction="last", ranks="first", meaning="bias of the scores after the update"),
    "gradient_norm": Measure(
        unit="", reduction="last", ranks="first", meaning="L2 norm of the gradient, before it is clipped"
    ),
    "clamped_pairs": Measure(
        unit="pairs",
        reduction="last",
        ranks="sum",
        meaning="pairs whose cosine was beyond ±1 by rounding and clamped there",
    ),
    "loss_spikes": Measure(
        unit="", reduction="total", ranks="first", meaning="losses far above those before; see `SpikeDetector`"
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
    "step_seconds_spread": Measure(unit="", reduction="rate", ranks="first", meaning="of the slowest, over the median"),
    "slowest_rank": Measure(unit="", reduction="rate", ranks="first", meaning="the rank that the others wait for"),
    "data_seconds_max": Measure(
        unit="s", reduction="rate", ranks="max", meaning="of a step, waiting for data, of the rank that waits longest"
    ),
    "data_slowest_rank": Measure(unit="", reduction="rate", ranks="first", meaning="that rank"),
    "decode_errors": Measure(unit="images", reduction="total", ranks="first", meaning="unreadable images, replaced"),
    "goodput": Measure(
        unit="", reduction="total", ranks="first", meaning="share of the time that trained what was kept; see `goodput`"
    ),
    **{
        f"seconds_{part}": Measure(unit="s", reduction="total", ranks="first", meaning=f"of the run: {part}")
        for part in PARTS
    },
    "memory": Measure(unit="GiB", reduction="peak", ranks="first", meaning="allocated on the GPU, else resident"),
}


class Watched:
    """Towers that are timed, and whose features of the first few images and captions are kept.

    The measurements need no forward pass of their own and never wait for the device.
    """

    KEPT = 8

    def __init__(self, towers: Towers, temperature: float, phases: Phases | None = None) -> None:
        self._temperature = temperature
        self._towers, self._phases = towers, phases or Phases()
        self._kept: tuple[Any, ...] = ()
        self._seconds = 0.0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self.no_sync = towers.no_sync

    def __call__(self, pixels_BCHW: Tensor, token_ids_TL: Tensor) -> Outputs:
        self._phases.enter("forward")
        with record_function("forward"), self._timed(pixels_BCHW.device):
            features = self._towers(pixels_BCHW, token_ids_TL)
        self._phases.enter("loss and backward")
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
            case (Mixture() as mixture, Query() as query, *_) | (Query() as query, Mixture() as mixture, *_):
                return {"mixing_entropy": float(mixing_entropy(mixture, query.query_BME, self._temperature))}
        return {}


def peak_memory(device: torch.device) -> float:
    """Peak memory in GiB: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Dense bf16 FLOP/s of a device by a part of its name, longer parts first (data sheets, without sparsity)."""


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a device; None for one that is not in the table, as a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


@dataclass(frozen=True)
class Utilisation:
    """Model FLOPs utilisation: what the towers need for a batch, over what the devices of all ranks could do."""

    model: ModelConfig
    captions_per_image: int
    peak: float
    """FLOP/s of all devices."""

    def share(self, *, images: int, tokens: int, seconds: float) -> float:
        """Forward and backward (twice the forward) of the towers on images whose captions have `tokens` tokens.

        Activations that are recomputed to save memory do not count, nor do the pair scores and the optimizer.
        """
        captions = images * self.captions_per_image
        summary = _summary(self.model, round(tokens / captions))
        of_images = images * (summary.image_flops + summary.word_flops)
        return 3 * (of_images + captions * summary.caption_flops) / seconds / self.peak


def utilisation(config: TrainingConfig, world: World) -> Utilisation | None:
    """None where the peak of the device is neither known nor given."""
    peak = config.peak_flops or peak_flops(world.device)
    return Utilisation(config.model, config.data.captions_per_image, peak * world.size) if peak else None


_summary = lru_cache(maxsize=None)(summarise)


class Rates:
    """Throughput since the last lap; what happens inside `paused` does not count."""

    def __init__(self, samples: int, *, ranks: int, share: float, utilisation: Utilisation | None) -> None:
        """`share` is the part of every batch that this rank reads."""
        self.samples = samples
        self._share = share
        self._utilisation = utilisation
        self._waited, self._tokens = 0.0, 0
        self._own_R: Sequence[float] = [0.0] * ranks
        self._waits_R: Sequence[float] = [0.0] * ranks
        self._slow_rank, self._slow_laps = -1, 0
        self._steps = 0
        self._start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin

    def lap(
        self, samples: int, loader: LoaderStats, own_R: Sequence[float], waits_R: Sequence[float]
    ) -> dict[str, float]:
        """The rates up to now, with `samples` seen by the run, over all ranks.

        `own_R` are the seconds that each rank has been at work, since it began, before it meets the others in a step,
        `waits_R` those of them in which it waited for data.
        """
        now = time.perf_counter()
        seconds, done, waited = now - self._start, samples - self.samples, loader.wait_seconds - self._waited
        tokens, steps = round((loader.tokens - self._tokens) / self._share), loader.batches - self._steps
        step_seconds_R = [(own - before) / steps for own, before in zip(own_R, self._own_R, strict=True)]
        waits_seconds_R = [(wait - before) / steps for wait, before in zip(waits_R, self._waits_R, strict=True)]
        self._start, self.samples, self._waited, self._tokens = now, samples, loader.wait_seconds, loader.tokens
        self._steps, self._own_R, self._waits_R = loader.batches, own_R, waits_R
        slowest, waits = max(step_seconds_R), max(waits_seconds_R)
        spread = slowest / (statistics.median(step_seconds_R) or 1.0)
        rank = step_seconds_R.index(slowest)
        slow = spread > SLOW and slowest > FASTEST
        self._slow_laps = self._slow_laps + 1 if slow and rank == self._slow_rank else int(slow)
        self._slow_rank = rank
        values = {
            "samples": samples,
            "samples_per_second": done / seconds,
            "tokens_per_second": tokens / seconds,
            "data_wait_share": waited / seconds,
            "step_seconds": statistics.fmean(step_seconds_R),
            "step_seconds_max": slowest,
            "step_seconds_spread": spread,
            "slowest_rank": rank,
            "data_seconds_max": waits,
            "data_slowest_rank": waits_seconds_R.index(waits),
            "decode_errors": loader.decode_errors,
        }
        if self._utilisation:
            values["model_flops_utilisation"] = self._utilisation.share(images=done, tokens=tokens, seconds=seconds)
        return values

    def straggler(self, values: dict[str, float], hosts: Sequence[str]) -> str | None:
        """A warning about a rank that has been slower than the others for LAPS laps on end. It is given once for each
        such rank; None otherwise."""
        if self._slow_laps != LAPS:
            return None
        seconds, waits = values["step_seconds_max"], values["data_seconds_max"]
        waiting = f", {waits:.2g} s of it for data" if values["data_slowest_rank"] == self._slow_rank else ""
        return (
            f"rank {self._slow_rank} ({hosts[self._slow_rank]}) takes {seconds:.2g} s a step before it meets the others"
            f"{waiting}, {values['step_seconds_spread']:.1f} times the median: they wait for it"
        )


SLOW, FASTEST, LAPS = 1.5, 0.02, 3
"""A rank is named that takes so many times the median, and so many seconds a step, so many laps on end."""

WINDOW, FEWEST, DEVIATIONS, SHARE = 100, 20, 6.0, 0.01
"""Losses looked back at, how many there have to be, and how far above them a spike lies: so many robust standard
deviations and this share of their median, which on a plateau is the more."""

_OF_NORMAL = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


class SpikeDetector:
    """Finds loss spikes: steps whose loss lies far above the median of the window before it.

    The distance is in units of the window's median absolute deviation. Median and deviation withstand the spikes in the
    window, so a second spike is found as the first was. A loss that stays at a level is normal once it fills half of
    the window.
    """

    def __init__(self) -> None:
        self.count = 0
        """Spikes so far; the steps of one that lasts count as one."""
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._inside = False

    def observe(self, loss: float) -> str | None:
        """Take the loss of one more step. Returns what is to be said where a spike begins."""
        before, self._inside = self._inside, False
        message = None
        if len(self._losses) >= FEWEST:
            median = statistics.median(self._losses)
            deviation = _OF_NORMAL * statistics.median(abs(value - median) for value in self._losses)
            self._inside = loss > median + max(DEVIATIONS * deviation, SHARE * abs(median))
            if self._inside and not before:
                self.count += 1
                message = (
                    f"loss spike: {loss:.4g}, where the last {len(self._losses)} steps have a median of {median:.4g} "
                    f"and a deviation of {deviation:.2g}"
                )
        self._losses.append(loss)
        return message
