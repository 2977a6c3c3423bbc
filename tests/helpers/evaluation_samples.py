"""Small evaluation sets of every task, of noise."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from llip.evaluation.sets.evaluation_set import EvaluationSet


def picture(seed: int, side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_sets(images: int = 10) -> list[EvaluationSet]:
    pictures = [picture(i) for i in range(images)]
    captions = [[f"object {i % 4}", f"ground {i % 3}"] for i in range(images)]
    return [
        EvaluationSet(
            name="things",
            task="classification",
            table=pa.table({"image": pictures, "label": [i % 4 for i in range(images)]}),
            classes=("cat", "dog", "owl", "fox", "bear", "fish"),
            templates=("a {}", "{} drawn"),
        ),
        EvaluationSet(
            name="scenes",
            task="retrieval",
            table=pa.table({"image": pictures, "captions": captions, "kinds": [["object", "ground"]] * images}),
        ),
        EvaluationSet(
            name="pairs",
            task="context",
            table=pa.table(
                {
                    "image": pictures,
                    "caption_a": [f"a thing {i}" for i in range(images)],
                    "caption_b": [f"on a table of {i % 3} legs" for i in range(images)],
                }
            ),
        ),
    ]
