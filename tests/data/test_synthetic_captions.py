"""Synthetic captions: drawn as often as asked for, by hash, and carried from the pool into the shards."""

import itertools
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from helpers.shard_folders import SCHEMA, row, write_shards

from llip.config import DataConfig
from llip.data.loader import Batch, LaneLoader
from llip.data.tokenizer import tokenize

CONFIG = DataConfig(batch_size=64, captions_per_image=2, lanes=8, threads=2, prefetch=2, crop_scale=(1.0, 1.0))
WITH_SYNTHETIC = SCHEMA.append(pa.field("synthetic_captions", pa.list_(pa.string())))
ROWS = 256


def synthetic(number: int) -> list[str] | None:
    """None, none, or one to three texts."""
    return None if number % 5 == 0 else [f"synthetic {c} of image {number}" for c in range(number % 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [row(i) | {"synthetic_captions": synthetic(i)} for i in range(ROWS)]
    target = tmp_path_factory.mktemp("synthetic") / "shards"
    return write_shards(target, rows, files=2, row_group_size=16, schema=WITH_SYNTHETIC)


def batches(folder: str, share: float, count: int = 16, *, rank: int = 0, world_size: int = 1) -> list[Batch]:
    config = replace(CONFIG, synthetic_share=share)
    options: dict[str, Any] = {
        "image_size": 24,
        "context_length": 16,
        "seed": 3,
        "rank": rank,
        "world_size": world_size,
    }
    with LaneLoader(folder, config, **options) as loader, closing(loader.iter_from(0)) as found:
        return list(itertools.islice(found, count))


def drawn(batch: Batch) -> list[tuple[int, str]]:
    """(row, text) of every caption of a batch."""
    numbers = [int(i.removeprefix("row-")) for i in batch.sample_ids] * 2
    texts = []
    for number, ids in zip(numbers, batch.token_ids, strict=True):
        known = [*row(number)["captions"], *(synthetic(number) or [])]  # type: ignore[misc]
        tokens = tokenize(known, 16)
        width = tokens.shape[1]
        padded = torch.nn.functional.pad(ids, (0, max(0, width - len(ids))))[:width]
        texts.append((number, next(t for t, of in zip(known, tokens, strict=True) if torch.equal(of, padded))))
    return texts


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_draws_is_synthetic_where_a_row_has_any(folder: str, share: float) -> None:
    found = [pair for batch in batches(folder, share) for pair in drawn(batch)]
    with_some = [text.startswith("synthetic") for number, text in found if synthetic(number)]
    assert len(with_some) > 1000 and abs(sum(with_some) / len(with_some) - share) < 0.04
    assert not any(text.startswith("synthetic") for number, text in found if not synthetic(number))
    places = Counter(text.split()[1] for number, text in found if number % 4 == 3 and text.startswith("synthetic"))
    assert sorted(places) == ["0", "1", "2"] and min(places.values()) > 0.2 * places.total()


def test_without_a_share_the_batches_are_those_of_shards_without_the_column(folder: str, tmp_path: Path) -> None:
    plain = write_shards(tmp_path / "plain", [row(i) for i in range(ROWS)], files=2, row_group_size=16)
    for a, b in zip(batches(folder, 0.0, 4), batches(plain, 0.0, 4), strict=True):
        assert a.sample_ids == b.sample_ids and torch.equal(a.token_ids, b.token_ids)


def test_ranks_draw_what_one_process_draws(folder: str) -> None:
    whole = batches(folder, 0.5, 2)
    parts = [batches(folder, 0.5, 2, rank=rank, world_size=2) for rank in range(2)]
    for i, batch in enumerate(whole):
        assert Counter(drawn(batch)) == Counter(pair for part in parts for pair in drawn(part[i]))


def test_shards_without_the_column_are_refused(tmp_path: Path) -> None:
    plain = write_shards(tmp_path / "plain", [row(i) for i in range(ROWS)], files=2, row_group_size=16)
    with pytest.raises(ValueError, match="has no column 'synthetic_captions'; it has id, image, captions"):
        batches(plain, 0.5, 1)


def test_a_share_is_in_0_to_1() -> None:
    with pytest.raises(ValueError, match=r"data.synthetic_share is 1.5"):
        replace(CONFIG, synthetic_share=1.5)
