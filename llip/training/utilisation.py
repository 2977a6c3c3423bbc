"""Model FLOPs utilisation: what the towers need for a batch, as a share of what the devices could do in its time."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from llip.config import ModelConfig, TrainingConfig
from llip.summary import summarise
from llip.training.parallel import World

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
    """Of this device; None where it is not in the table, as a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


@dataclass(frozen=True)
class Utilisation:
    """Of all ranks together."""

    model: ModelConfig
    captions_per_image: int
    peak: float
    """FLOP/s of all devices."""

    def share(self, *, images: int, tokens: int, seconds: float) -> float:
        """Forward and backward (twice the forward) of the towers on images whose captions have `tokens` tokens.

        What is computed again to save memory does not count, nor do the pair scores and the optimizer.
        """
        captions = images * self.captions_per_image
        summary = _summary(self.model, round(tokens / captions))
        return 3 * (images * summary.image_flops + captions * summary.caption_flops) / seconds / self.peak


def utilisation(config: TrainingConfig, world: World) -> Utilisation | None:
    """None where the peak of the device is neither known nor given."""
    peak = config.peak_flops or peak_flops(world.device)
    return Utilisation(config.model, config.data.captions_per_image, peak * world.size) if peak else None


_summary = lru_cache(maxsize=None)(summarise)
