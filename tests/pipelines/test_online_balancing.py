"""Balancing left to the loader: from a pool to batches."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.plain_reference import spaced
from helpers.small_pools import WORDS, pool_rows, read_all, write_parquet

from llip import storage
from llip.config import DataConfig
from llip.data.loader import LaneLoader
from pipelines.curate import Curate, curate
from pipelines.shard import Shard, shard


def ids_and_captions(
    folder: str, seed: int, start: int, steps: int, world: int = 1
) -> list[tuple[Counter[str], Counter[int]]]:
    """What all ranks read at some steps: sample ids, and sums of the token ids of every caption."""
    config = DataConfig(batch_size=32, lanes=4, captions_per_image=2, threads=2)
    parts = []
    for rank in range(world):
        options: dict[str, Any] = {
            "image_size": 16,
            "context_length": 16,
            "seed": seed,
            "rank": rank,
            "world_size": world,
        }
        with LaneLoader(folder, config, **options) as loader:
            batches = list(islice(loader.iter_from(start), steps))
        parts.append([(Counter(b.sample_ids), Counter(b.token_ids.sum(1).tolist())) for b in batches])
    return [
        (sum((ids for ids, _ in ranks), Counter[str]()), sum((sums for _, sums in ranks), Counter[int]()))
        for ranks in zip(*parts, strict=True)
    ]


@pytest.mark.usefixtures("in_process", "undrawn")
def test_probabilities_reach_the_loader_which_draws_anew_in_each_epoch(tmp_path: Path) -> None:
    rows = pool_rows(256)
    (tmp_path / "entries.json").write_text(json.dumps(WORDS))
    settings = Curate(
        pool=write_parquet(tmp_path / "pool", rows),
        output=str(tmp_path / "curated"),
        metadata=str(tmp_path / "entries.json"),
        t=5,
        online=True,
    )
    result = curate(settings)
    assert result.rows == 256 and result.summary["captions"]["dropped"] == {}
    found = [[[w for w in WORDS if f" {w} " in spaced(c)] for c in row["captions"]] for row in rows]
    counts = Counter(w for row in found for words in row for w in words)
    p = {w: 5 / max(n, 5) for w, n in counts.items()}
    literal = [[1 - np.prod([1 - p[w] for w in words]) for words in row] for row in found]
    kept = read_all(settings.output)
    for row, expected in zip(kept, literal, strict=True):
        np.testing.assert_allclose(row["keep_probability"], expected, atol=1e-12)

    folder = str(tmp_path / "shards")
    shard(Shard(curated=settings.output, output=folder, rows_per_group=64))
    stored = {r["id"]: r["keep_probability"] for r in read_all(folder)}
    assert stored == {r["id"]: r["keep_probability"] for r in kept}

    epoch = 256 // 32
    whole = ids_and_captions(folder, 0, 0, 3 * epoch)
    assert whole == ids_and_captions(folder, 0, 0, 3 * epoch, world=2)
    assert whole[5:9] == ids_and_captions(folder, 0, 5, 4)
    epochs = [sum((ids for ids, _ in whole[e * epoch : (e + 1) * epoch]), Counter[str]()) for e in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] and all(e.total() == 256 for e in epochs)
    often, total = Counter[str](), 12 * epoch
    for ids, _ in ids_and_captions(folder, 1, 0, total):
        often.update(ids)
    likely = {name: 1 - float(np.prod([1 - x for x in row])) for name, row in stored.items()}
    order = sorted(likely, key=lambda name: likely[name])
    shares = [sum(values[n] for n in order[:128]) / sum(values.values()) for values in (often, likely)]
    assert shares[0] == pytest.approx(shares[1], abs=0.05) and shares[1] < 0.3
    assert storage.read_json(f"{folder}/manifest.json")["summary"]["online"]
