"""The loader: reproducible to the bit, resumable anywhere, the same for every number of ranks, strict about damage."""

import errno
import itertools
import json
import os
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from helpers.shard_folders import row, write_shards

from llip import storage
from llip.config import DataConfig
from llip.data import shards as shards_module
from llip.data.loader import Batch, LaneLoader
from llip.data.tokenizer import tokenize

CONFIG = DataConfig(batch_size=32, captions_per_image=2, lanes=8, threads=2, prefetch=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(
        tmp_path_factory.mktemp("loader") / "shards", [row(i) for i in range(300)], files=3, row_group_size=16
    )


def _loader(
    folder: str, config: DataConfig = CONFIG, *, seed: int = 5, rank: int = 0, world_size: int = 1
) -> LaneLoader:
    return LaneLoader(folder, config, image_size=24, context_length=16, seed=seed, rank=rank, world_size=world_size)


def _batches(folder: str, start: int, count: int, config: DataConfig = CONFIG, **options: int) -> list[Batch]:
    with _loader(folder, config, **options) as loader, closing(loader.iter_from(start)) as batches:
        return list(itertools.islice(batches, count))


def _equal(left: Batch, right: Batch) -> bool:
    return (
        left.step == right.step
        and left.sample_ids == right.sample_ids
        and torch.equal(left.images, right.images)
        and torch.equal(left.token_ids, right.token_ids)
    )


def test_a_batch_has_the_shapes_of_the_contract(folder: str) -> None:
    batch = _batches(folder, 4, 1)[0]
    assert batch.images.shape == (32, 3, 24, 24)
    assert batch.images.dtype == torch.uint8
    assert batch.token_ids.shape == (64, batch.token_ids.shape[1])
    assert batch.token_ids.dtype == torch.int64
    assert batch.token_ids[:, -1].any(), "the batch is as long as its longest caption"
    assert len(set(batch.sample_ids)) == 32
    assert batch.step == 4


def test_captions_are_those_of_their_image_and_caption_major(folder: str) -> None:
    for batch in _batches(folder, 0, 9):
        for i, sample in enumerate(batch.sample_ids):
            number = int(sample.removeprefix("row-"))
            captions = [str(c) for c in row(number)["captions"]]  # type: ignore[attr-defined]
            known = {
                tuple(t for t in ids.tolist() if t): text
                for ids, text in zip(tokenize(captions), captions, strict=True)
            }
            drawn = [known[tuple(t for t in batch.token_ids[c * 32 + i].tolist() if t)] for c in range(2)]
            assert len(set(drawn)) == min(2, len(captions))


@pytest.mark.parametrize("step", [1, 8, 9, 10, 25])
def test_resuming_gives_the_batches_that_continuing_gives(folder: str, step: int) -> None:
    continued = _batches(folder, 0, 28)
    assert all(_equal(a, b) for a, b in zip(continued[step:], _batches(folder, step, 28 - step), strict=True))


def test_threads_and_prefetch_change_nothing(folder: str) -> None:
    other = replace(CONFIG, threads=5, prefetch=7)
    assert all(_equal(a, b) for a, b in zip(_batches(folder, 3, 10), _batches(folder, 3, 10, other), strict=True))


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 8])
def test_ranks_make_up_the_same_global_batch(folder: str, world_size: int) -> None:
    """Lane l is the places l*4 … l*4+3 of a single rank's batch; rank r of R has the lanes r, r + R, …"""
    whole = _batches(folder, 7, 4)
    for rank in range(world_size):
        places = torch.arange(32).view(8, 4)[rank::world_size].flatten()
        for expected, batch in zip(whole, _batches(folder, 7, 4, rank=rank, world_size=world_size), strict=True):
            assert batch.sample_ids == [expected.sample_ids[i] for i in places]
            assert torch.equal(batch.images, expected.images[places])
            length = batch.token_ids.shape[1]
            tokens = expected.token_ids.view(2, 32, -1)[:, places].flatten(0, 1)
            assert torch.equal(batch.token_ids, tokens[:, :length])
            assert not tokens[:, length:].any()


def test_an_epoch_shows_every_sample_once_but_fewer_than_a_batch(folder: str) -> None:
    with _loader(folder) as loader:
        epoch = loader.steps_per_epoch
    assert epoch == 300 // 32
    batches = _batches(folder, 0, 2 * epoch)
    for part in (batches[:epoch], batches[epoch:]):
        seen = [i for b in part for i in b.sample_ids]
        assert len(set(seen)) == len(seen) == epoch * 32
    assert batches[0].sample_ids != batches[epoch].sample_ids


def test_crops_and_captions_differ_between_epochs_and_seeds(folder: str) -> None:
    first, second, other = (
        {i: (b.images[n], b.token_ids[n]) for b in part for n, i in enumerate(b.sample_ids)}
        for part in (_batches(folder, 0, 9), _batches(folder, 9, 9), _batches(folder, 0, 9, seed=6))
    )
    for again in (second, other):
        both = first.keys() & again.keys()
        assert len(both) > 250
        assert sum(not torch.equal(first[i][0], again[i][0]) for i in both) > 0.8 * len(both)


def test_lanes_may_outnumber_the_row_groups(tmp_path: Path) -> None:
    small = write_shards(tmp_path / "shards", [row(i) for i in range(40)], files=1, row_group_size=100)
    seen = [i for b in _batches(small, 0, 1) for i in b.sample_ids]
    assert len(set(seen)) == 32
    with pytest.raises(ValueError, match=r"40 samples; data\.batch_size 64"):
        _loader(small, replace(CONFIG, batch_size=64))


def test_a_broken_image_gives_way_to_the_next_of_its_row_group_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(i, b"broken" if i % 10 == 3 else None) for i in range(64)]
    damaged = write_shards(tmp_path / "shards", rows, files=2, row_group_size=16)
    with _loader(damaged) as loader, closing(loader.iter_from(0)) as batches:
        seen = [i for b in itertools.islice(batches, 2) for i in b.sample_ids]
        assert loader.stats.decode_errors == 7
        next(batches)
    counts = {f"row-{i}": 0 if i % 10 == 3 else 2 if i % 10 == 4 else 1 for i in range(64)}
    counts["row-63"], counts["row-48"] = 0, 2  # the last of its row group gives way to the first
    assert {i: seen.count(i) for i in counts} == counts
    for file, group, place in ((0, 0, 3), (0, 0, 13), (0, 1, 7), (1, 0, 1), (1, 1, 15)):
        where = f"part-{file:05d}.parquet, row group {group}, row {place} cannot be decoded"
        assert sum(where in message for message in caplog.messages) == 1, "once, though every epoch meets it"
    assert not any("\n" in message for message in caplog.messages)


def test_a_row_group_without_an_image_is_named(tmp_path: Path) -> None:
    damaged = write_shards(tmp_path / "shards", [row(i, b"broken") for i in range(64)], files=2, row_group_size=16)
    with pytest.raises(ValueError, match=r"part-0000\d.parquet, row group \d holds no image"):
        _batches(damaged, 0, 1)


def test_a_row_without_captions_is_named(tmp_path: Path) -> None:
    rows = [row(i) | {"captions": []} if i == 37 else row(i) for i in range(64)]
    damaged = write_shards(tmp_path / "shards", rows, files=2, row_group_size=16)
    with pytest.raises(ValueError, match=r"part-00001.parquet, row group 0, row 5 has no caption"):
        _batches(damaged, 0, 2)


def _flip(path: Path, marker: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(marker) + 40] ^= 0xFF
    path.write_bytes(content)


def test_damage_is_refused_at_the_start(tmp_path: Path) -> None:
    damaged = write_shards(tmp_path / "shards", [row(i) for i in range(64)], files=2, row_group_size=16)
    file = tmp_path / "shards" / "part-00001.parquet"
    content = file.read_bytes()
    _flip(file, b"\x89PNG")
    with pytest.raises(ValueError, match=r"part-00001.parquet is damaged: its SHA-256"):
        _loader(damaged)
    file.write_bytes(content + b"x")
    with pytest.raises(ValueError, match=rf"part-00001.parquet has {len(content) + 1} bytes"):
        _loader(damaged)
    file.unlink()
    with pytest.raises(ValueError, match=r"part-00001.parquet is missing"):
        _loader(damaged)


def test_damage_of_a_large_folder_is_noticed_on_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "_CHECKSUMS_BELOW", 0)
    damaged = write_shards(tmp_path / "shards", [row(i) for i in range(64)], files=2, row_group_size=16)
    _flip(tmp_path / "shards" / "part-00001.parquet", b"\x89PNG")
    with pytest.raises(ValueError, match=r"part-00001.parquet, row group 0 cannot be read: .*CRC"):
        _batches(damaged, 0, 2)


@pytest.mark.parametrize("failures", [2, 99])
def test_a_storage_that_fails_for_a_while_changes_nothing(
    failures: int, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer, it is the storage's error, not a damaged file."""
    expected = _batches(folder, 3, 2)
    table, left = shards_module.Shards._table, [failures]

    def failing(self: shards_module.Shards, *of_group: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "the service is away")
        return table(self, *of_group)

    monkeypatch.setattr(shards_module.Shards, "_table", failing)
    monkeypatch.setattr(storage, "DELAYS", (0.0, 0.0))
    if failures > 2:
        with pytest.raises(OSError, match="the service is away"):
            _batches(folder, 3, 2)
    else:
        assert all(map(_equal, _batches(folder, 3, 2), expected))


def test_files_that_do_not_fit_the_manifest_are_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [row(i) for i in range(64)], files=2, row_group_size=16)
    path = tmp_path / "shards" / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"row_group_size": 20}))
    with pytest.raises(ValueError, match=r"row groups of \[16, 16\] rows where the manifest says \[20, 12\]"):
        _batches(folder, 0, 1)
    path.write_text(json.dumps(values | {"kind": "curated"}))
    with pytest.raises(ValueError, match="'curated' folder; a 'shards' folder is needed"):
        _loader(folder)


def test_more_ranks_than_lanes_are_refused(folder: str) -> None:
    with pytest.raises(ValueError, match=r"there are 9 ranks; data\.lanes 8 has to be at least that"):
        _loader(folder, world_size=9)


def _threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith(("decode", "read"))}


def test_closing_ends_every_thread(folder: str) -> None:
    assert not _threads()
    loader = _loader(folder)
    batches = loader.iter_from(0)
    next(batches)
    assert _threads()
    batches.close()
    loader.close()
    assert not _threads()


def test_an_iterator_can_be_left_and_another_begun(folder: str) -> None:
    with _loader(folder) as loader:
        for start in (0, 5, 2):
            with closing(loader.iter_from(start)) as batches:
                assert next(batches).step == start


def test_reading_ahead_is_bounded(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups are let go, and none is read twice in an epoch but those on lane borders."""
    reads: list[int] = []
    read = shards_module.Shards.read

    def counted(self: shards_module.Shards, group: int) -> shards_module.RowGroup:
        reads.append(group)
        return read(self, group)

    monkeypatch.setattr(shards_module.Shards, "read", counted)
    with _loader(folder) as loader, closing(loader.iter_from(0)) as batches:
        list(itertools.islice(batches, 90))
    groups = 21  # 7 in each of 3 files
    assert len(reads) <= (10 + 2) * (groups + 8)


def test_an_object_store_is_read_like_a_folder(folder: str, s3_bucket: str) -> None:
    fsspec.filesystem("s3").put(folder, f"{s3_bucket}/shards", recursive=True)
    remote = _batches(f"{s3_bucket}/shards", 5, 12)
    assert all(_equal(a, b) for a, b in zip(_batches(folder, 5, 12), remote, strict=True))


def test_decoding_starts_no_threads_of_its_own(tmp_path: Path) -> None:
    """A team of OpenMP threads for each thread that decodes would take the cores of training."""
    program = f"""
import os, sys, torch
from itertools import islice
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from helpers.shard_folders import encode, picture, row, write_shards
from llip.config import DataConfig
from llip.data.loader import LaneLoader

torch.set_num_threads(16)
images = [encode(picture(i, 300, 400), ("JPEG", "PNG", "WEBP")[i % 3]) for i in range(64)]
rows = [row(i, p) for i, p in enumerate(images)]
folder = write_shards({str(tmp_path)!r} + "/shards", rows, files=1, row_group_size=64)
config = DataConfig(batch_size=32, lanes=8, threads=2, prefetch=2)
with LaneLoader(folder, config, image_size=224, context_length=16, seed=0) as loader:
    before = len(os.listdir("/proc/self/task"))
    list(islice(loader.iter_from(0), 4))
    print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) <= 2 + 8 + 8, "decoding, reading, and those of Arrow"
