"""Seconds an image takes to be classified among prompts whose features were made once (Llip, table of inference times).

Measured in rounds: each times every model with every number of prompts once, so that what disturbs the machine disturbs
all alike, and ratios are taken within a round.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llip.evaluation.encode import scores
from llip.model.build import ContrastiveModel
from llip.model.features import TextFeatures


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

    def table(self, baseline: str) -> str:
        """Median seconds per image, and the median ratio to a baseline with its quartiles."""
        columns = ["prompts", *self.models, *(f"{model} / {baseline}" for model in self._others(baseline))]
        lines = [f"| {' | '.join(columns)} |", "| ---: " * len(columns) + "|"]
        for index, count in enumerate(self.prompts):
            seconds = [f"{np.median(self.seconds_MPR[m, index]):.5f}" for m in range(len(self.models))]
            quartiles = [np.quantile(self.ratio(m, baseline)[index], (0.25, 0.5, 0.75)) for m in self._others(baseline)]
            ratios = [f"{middle:.3f} ({low:.3f}–{high:.3f})" for low, middle, high in quartiles]
            lines.append(f"| {count:,} | {' | '.join([*seconds, *ratios])} |")
        return "\n".join(lines)

    def _others(self, baseline: str) -> list[str]:
        return [model for model in self.models if model != baseline]


@torch.inference_mode()
def measure(
    models: Mapping[str, ContrastiveModel], prompts: Sequence[int], *, batch_size: int, rounds: int, warmup: int = 1
) -> Latency:
    """Time models on random pixels, on the device where each lies."""
    texts = {name: [prompt_features(model, count) for count in prompts] for name, model in models.items()}
    seconds_MPR = np.zeros((len(models), len(prompts), rounds))
    for turn in range(-warmup, rounds):
        for p in range(len(prompts)):
            for m, (name, model) in enumerate(models.items()):
                seconds = _classify(model.eval(), texts[name][p], batch_size)
                if turn >= 0:
                    seconds_MPR[m, p, turn] = seconds / batch_size
    return Latency(tuple(models), tuple(prompts), seconds_MPR)


def prompt_features(model: ContrastiveModel, count: int) -> TextFeatures:
    """Random features with the shapes of `count` prompts': no time depends on their values."""
    device = next(model.parameters()).device
    one = model.encode_text(torch.tensor([[49406, 49407]], device=device))
    return type(one)(*(torch.randn(count, *tensor.shape[1:], device=device) for tensor in one))


def _classify(model: ContrastiveModel, texts: TextFeatures, batch_size: int) -> float:
    device, size = texts[0].device, model.config.vision.image_size
    pixels = torch.randn(batch_size, 3, size, size, device=device)
    _wait(device)
    start = time.perf_counter()
    scores(model, model.encode_image(pixels), texts).argmax(dim=1)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
