"""Several sets mixed by weights: exact shares, pure, resumable anywhere, the same for every number of ranks."""

import itertools
import json
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.shard_folders import row, write_shards

from llip.config import DataConfig
from llip.data.loader import Batch, LaneLoader
from llip.data.order import BLOCK, MixedOrder, apportion
from llip.fields import from_dict, to_dict

SETS = [np.array([50] * 10 + [7]), np.array([16] * 5), np.array([128] * 9)]
WEIGHTS = (0.5, 0.2, 0.3)


def _order(seed: int = 3, **options: Any) -> MixedOrder:
    return MixedOrder(SETS, WEIGHTS, **{"batch_size": 64, "lanes": 8, "seed": seed} | options)


def _set_of(groups: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum([len(rows) for rows in SETS]), groups, side="right")


def test_shares_are_exact_over_a_block_and_near_in_every_batch() -> None:
    order, steps, lanes = _order(), BLOCK // 8, np.arange(8)
    first = np.concatenate([order.samples(step, lanes[:1]).group for step in range(steps)])
    assert np.bincount(_set_of(first)).tolist() == [500, 200, 300]
    counts = np.array([np.bincount(_set_of(order.samples(step, lanes).group), minlength=3) for step in range(steps)])
    assert abs(counts.mean(axis=0) - 64 * np.array(WEIGHTS)).max() < 0.1
    assert abs(counts - 64 * np.array(WEIGHTS)).max() <= 8


def test_a_lane_goes_through_its_part_of_a_set_without_gap_or_repetition() -> None:
    """In as many samples of a set as its lanes have together, every place of the lanes comes once."""
    order = _order(batch_size=8)
    for index, rows in enumerate(SETS):
        part = rows.sum() // 8
        seen: list[list[tuple[int, int, int]]] = [[] for _ in range(8)]
        for step in range(int(3.5 * part / WEIGHTS[index])):
            samples = order.samples(step, np.arange(8))
            for lane in np.flatnonzero(_set_of(samples.group) == index).tolist():
                seen[lane].append((int(samples.epoch[lane]), int(samples.group[lane]), int(samples.row[lane])))
        for epoch in (1, 2):  # all lanes have left the first and begun the last
            counts = Counter(place for lane in seen for place in lane if place[0] == epoch)
            assert max(counts.values()) == 1 and len(counts) == 8 * part
        for places in seen:
            epochs = [e for e, *_ in places]
            assert epochs == sorted(epochs)
            assert all(epochs.count(e) == part for e in set(epochs) - {epochs[0], epochs[-1]})


@pytest.mark.parametrize("world_size", [2, 8])
def test_ranks_share_the_lanes_and_any_step_is_reached_at_once(world_size: int) -> None:
    for step in (0, 1, 17, 123_456_789):
        whole = _order().samples(step, np.arange(8))
        for rank in range(world_size):
            part = _order().samples(step, np.arange(rank, 8, world_size))
            for name in ("epoch", "group", "row"):
                expected = getattr(whole, name).reshape(8, 8)[rank::world_size].ravel()
                np.testing.assert_array_equal(getattr(part, name), expected)


def test_weights_are_rounded_to_a_whole_block() -> None:
    assert apportion((1, 1, 1), 3).tolist() == [334, 333, 333]
    assert apportion((99.9, 0.1), 2).tolist() == [999, 1]
    with pytest.raises(ValueError, match="less than 1 of 1000"):
        apportion((1e6, 1), 2)
    with pytest.raises(ValueError, match="have to be 3 positive numbers"):
        apportion((1, 2), 3)
    with pytest.raises(ValueError, match="shards 2 hold 5 samples"):
        MixedOrder([SETS[0], np.array([5])], (1, 1), batch_size=8, lanes=8, seed=0)


def test_an_order_does_not_change_between_versions() -> None:
    samples = MixedOrder([np.array([5, 5]), np.array([4])], (3, 1), batch_size=4, lanes=2, seed=11).samples(
        5, np.arange(2)
    )
    assert list(zip(*(x.tolist() for x in (samples.epoch, samples.group, samples.row)), strict=True)) == [
        (1, 2, 1),
        (1, 1, 1),
        (1, 0, 3),
        (1, 0, 2),
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    place = tmp_path_factory.mktemp("sets")
    first = write_shards(place / "a", [row(i) for i in range(100)], files=2, row_group_size=16)
    return first, write_shards(place / "b", [row(1000 + i) for i in range(60)], files=1, row_group_size=8)


CONFIG = DataConfig(batch_size=32, captions_per_image=2, weights=(3, 1), lanes=8, threads=2, prefetch=2)


def _batches(folders: tuple[str, ...], start: int, count: int, config: DataConfig = CONFIG, **rank: Any) -> list[Batch]:
    with (
        LaneLoader(folders, config, image_size=24, context_length=16, seed=5, **rank) as loader,
        closing(loader.iter_from(start)) as batches,
    ):
        return list(itertools.islice(batches, count))


def test_the_loader_mixes_folders_and_resumes(folders: tuple[str, str]) -> None:
    batches = _batches(folders, 0, 40)
    numbers = np.array([[int(i.removeprefix("row-")) for i in b.sample_ids] for b in batches])
    assert (numbers >= 1000).mean() == pytest.approx(0.25, abs=0.01)
    assert set(numbers.ravel().tolist()) >= {*range(96), *range(1000, 1056)} - {*range(84, 100), *range(1048, 1060)}
    again = _batches(folders, 25, 15)
    assert all(
        a.sample_ids == b.sample_ids and torch.equal(a.images, b.images)
        for a, b in zip(batches[25:], again, strict=True)
    )
    for rank in range(2):
        places = torch.arange(32).view(8, 4)[rank::2].flatten().tolist()
        part = _batches(folders, 7, 2, rank=rank, world_size=2)
        assert [b.sample_ids for b in part] == [[b.sample_ids[i] for i in places] for b in batches[7:9]]


def test_without_weights_folders_count_by_their_rows(folders: tuple[str, str]) -> None:
    batches = _batches(folders, 0, 40, replace(CONFIG, weights=None))
    share = np.mean([int(i.removeprefix("row-")) >= 1000 for b in batches for i in b.sample_ids])
    assert share == pytest.approx(60 / 160, abs=0.01)


def test_weights_that_do_not_fit_the_folders_are_refused(folders: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have to be 1 positive numbers"):
        _batches(folders[:1], 0, 1)
    with pytest.raises(ValueError, match=r"data\.weights is \(1, 0\)"):
        replace(CONFIG, weights=(1, 0))
    assert from_dict(DataConfig, json.loads(json.dumps(to_dict(CONFIG)))) == CONFIG
