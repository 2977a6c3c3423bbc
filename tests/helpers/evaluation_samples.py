"""Small evaluation sets of every task, of noise."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
            table=pa.table({"image": pictures, "captions": captions, "caption_types": [["object", "ground"]] * images}),
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


def write_winogavil(folder: Path, sizes: Sequence[int] = (5, 5, 6, 10), cues: int = 2) -> list[dict[str, Any]]:
    """WinoGAViL's files as they are published, of noise: `cues` rows for each group of candidates. Returns the rows."""
    rows = []
    for group, size in enumerate(sizes):
        candidates = [f"thing {group + i}" for i in range(size)]  # images of several groups
        for cue in range(cues):
            rows.append({"cue": f"Idea {group} {cue}" if cue else f"notion {group}", "candidates": candidates})
            rows[-1]["associations"] = candidates[cue : cue + 2 + group % 2]
    (folder / "winogavil_images").mkdir(parents=True)
    for seed, name in enumerate(sorted({name for row in rows for name in row["candidates"]})):
        (folder / "winogavil_images" / f"{name}.jpg").write_bytes(picture(seed))
    with (folder / "winogavil_dataset.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", "candidates", "cue", "associations", "ID"])
        writer.writeheader()
        for number, row in enumerate(rows):
            lists = {field: json.dumps(row[field]) for field in ("candidates", "associations")}
            writer.writerow({"": number, "cue": row["cue"], "ID": number} | lists)
    return rows
