"""Seconds an image takes to be classified among prompts whose features were made once (Llip, table of inference times).

Measured in rounds: each times every model once, encoding a batch of images and then scoring it with every number of
prompts, so that what disturbs the machine disturbs all alike, and ratios are taken within a round. An image takes its
share of both. On a CPU, time is that of the processor, which other processes do not add to.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import scores
from llip.model.features import Message, Mixture


@dataclass(frozen=True)
class Latency:
    """Seconds per image, by model, number of prompts and round."""

    models: tuple[str, ...]
    prompts: tuple[int, ...]
    seconds_MPR: NDArray[np.float64]

    def ratio(self, model: str, baseline: str) -> NDArray[np.float64]:
        """Time of a model over that of another in the same round: [prompts, rounds]."""
        of = self.models.index
        return np.asarray(self.seconds_MPR[of(model)] / self.seconds_MPR[of(baseline)])

    def growth(self, model: str) -> NDArray[np.float64]:
        """Time of a model over its time with the fewest prompts in the same round: [prompts, rounds]."""
        seconds_PR = self.seconds_MPR[self.models.index(model)]
        return np.asarray(seconds_PR / seconds_PR[np.argmin(self.prompts)])

    def table(self, baseline: str) -> str:
        """Median seconds per image, and the ratio to a baseline as median (min – max)."""
        columns = ["prompts", *self.models, *(f"{model} / {baseline}" for model in self._others(baseline))]
        lines = [f"| {' | '.join(columns)} |", "| ---: " * len(columns) + "|"]
        for index, count in enumerate(self.prompts):
            seconds = [f"{np.median(self.seconds_MPR[m, index]):.5f}" for m in range(len(self.models))]
            ratios = [spread(self.ratio(model, baseline)[index]) for model in self._others(baseline)]
            lines.append(f"| {count:,} | {' | '.join([*seconds, *ratios])} |")
        return "\n".join(lines)

    def _others(self, baseline: str) -> list[str]:
        return [model for model in self.models if model != baseline]


def spread(ratio_R: NDArray[np.float64]) -> str:
    """Median (min – max) over the rounds."""
    return f"{np.median(ratio_R):.3f} ({ratio_R.min():.3f} – {ratio_R.max():.3f})"


@torch.inference_mode()
def measure(
    models: Mapping[str, ContrastiveModel], prompts: Sequence[int], *, batch_size: int, rounds: int, warmup: int = 1
) -> Latency:
    """Time models on random pixels, on the device where each lies."""
    texts = {name: [prompt_features(model, count) for count in prompts] for name, model in models.items()}
    seconds_MPR = np.zeros((len(models), len(prompts), rounds))
    for turn in range(-warmup, rounds):
        for m, (name, model) in enumerate(models.items()):
            seconds_P = _classify(model.eval(), texts[name], batch_size)
            if turn >= 0:
                seconds_MPR[m, :, turn] = np.array(seconds_P) / batch_size
    return Latency(tuple(models), tuple(prompts), seconds_MPR)


def prompt_features(model: ContrastiveModel, count: int) -> Message | Mixture:
    """Random features with the shapes of `count` prompts', prepared: no time depends on their values."""
    device = next(model.parameters()).device
    one = model.encode_text(torch.tensor([[49406, 49407]], device=device))
    return model.prepare_texts(type(one)(*(torch.randn(count, *tensor.shape[1:], device=device) for tensor in one)))


def _classify(model: ContrastiveModel, texts: Sequence[Message | Mixture], batch_size: int) -> list[float]:
    """Seconds that a batch of images takes with each of the texts."""
    device, size = texts[0][0].device, model.config.vision.image_size
    pixels_BCHW = torch.randn(batch_size, 3, size, size, device=device)
    start = _now(device)
    images = model.encode_image(pixels_BCHW)
    encoded = _now(device)
    times = [encoded]
    for prompts in texts:
        scores(model, images, prompts).argmax(dim=1)
        times.append(_now(device))
    return [encoded - start + after - before for before, after in pairwise(times)]


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
