"""Negative controls: sets that no model can solve, or not by looking. A score above chance on them is no merit of the
model.

`<set>-shuffled`: every image stands in the place of another one, so that labels and captions are those of others.
`<set>-blind` (hard negatives): every image is the same grey one, so that the captions alone decide (Hsieh et al.,
*SugarCrepe*, NeurIPS 2023, found sets that captions alone solve).
"""

import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
from PIL import Image

from llip.evaluation.metrics import Metric
from llip.evaluation.sets.evaluation_set import EvaluationSet

SHUFFLED, BLIND = "-shuffled", "-blind"


def of(data: EvaluationSet, seed: int = 0) -> list[EvaluationSet]:
    """The controls of a set. One of a single image has none."""
    rows = data.table.num_rows
    if rows < 2:
        return []
    image = data.table.column_names.index("image")
    drawn = np.random.default_rng(seed).permutation(rows)
    place = np.empty(rows, np.int64)
    place[drawn] = np.roll(drawn, 1)  # one cycle: no image stays
    shuffled = data.table.set_column(image, "image", data.table["image"].take(pa.array(place)))
    found = [replace(data, name=data.name + SHUFFLED, table=shuffled)]
    if data.task == "choice":
        blind = data.table.set_column(image, "image", pa.array([_grey()] * rows, pa.binary()))
        found.append(replace(data, name=data.name + BLIND, table=blind))
    return found


def _grey() -> bytes:
    with io.BytesIO() as buffer:
        Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, "PNG")
        return buffer.getvalue()


def above_chance(metrics: Mapping[str, Metric]) -> list[str]:
    """Headlines of controls, among metrics `<set>/<metric>`, whose interval lies above chance."""
    return [
        name
        for name, metric in metrics.items()
        if name.split("/")[0].endswith((SHUFFLED, BLIND)) and metric.low is not None and metric.low > metric.chance
    ]
