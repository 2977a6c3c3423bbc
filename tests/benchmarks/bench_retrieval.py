"""Exact retrieval of large galleries in bounded memory: all metrics from random features of a small model's size.

uv run tests/benchmarks/bench_retrieval.py --images 20000 --captions 100000
"""

import resource
import time
from dataclasses import dataclass

import numpy as np
import torch
import tyro

from llip import create_model
from llip.evaluation import retrieval
from llip.evaluation.retrieval import Captions
from llip.model.features import Mixture, Query

BAR_GB = 2.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = "llip_tiny_k8"
    images: int = 20_000
    captions: int = 100_000
    threads: int = 1
    """CPU threads."""


@torch.inference_mode()
def peak_gb(settings: Settings) -> tuple[float, float]:
    """Peak of this process's memory in GB, and seconds. Captions belong to images in turn."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    model = create_model(settings.recipe).eval()
    config = model.config
    mixed = (settings.images, config.head.heads, config.mixture_tokens, config.embed_dim // config.head.heads)
    asking = (settings.captions, config.head.heads, config.embed_dim // config.head.heads)
    images = Mixture(torch.randn(mixed), torch.randn(mixed))
    texts = Query(torch.randn(asking), torch.randn(settings.captions, config.embed_dim))
    text_J = np.arange(settings.captions)
    image_J = text_J % settings.images
    captions = Captions(
        texts=[f"caption {t}" for t in text_J],
        by_type={"caption": text_J},
        image_J=image_J,
        text_J=text_J,
        decisions=[(image, text, "caption") for image, text in zip(image_J.tolist(), text_J.tolist(), strict=True)],
    )
    start = time.perf_counter()
    found = retrieval.rank(model, images, texts, captions)
    seconds = time.perf_counter() - start
    assert abs(found.item_scores["text_to_image_r10"].value - found.item_scores["text_to_image_r10"].chance) < 0.01
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, seconds


def main(settings: Settings) -> None:
    gigabytes, seconds = peak_gb(settings)
    print(f"| images × captions | peak memory | seconds, {settings.threads} threads |\n| --- | ---: | ---: |")
    print(f"| {settings.images:,} × {settings.captions:,} | {gigabytes:.2f} GB | {seconds:,.0f} |")
    assert gigabytes < BAR_GB, f"more than {BAR_GB} GB"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
