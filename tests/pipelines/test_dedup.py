"""Duplicates of images: found as the definition says, whatever the partitioning; precision and recall on a corpus with
injected duplicates."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.plain_reference import plain_hash
from helpers.small_pools import read_all, write_parquet
from PIL import Image, ImageEnhance

from llip import storage
from llip.data.corpus.config import CorpusConfig
from llip.data.corpus.pool import rows as corpus_rows
from llip.evaluation.sets import evaluation_set
from llip.evaluation.sets.evaluation_set import EvaluationSet
from pipelines.curate import Curate, curate
from pipelines.stages.dedup import duplicates, fingerprint
from pipelines.stages.hashing import RANK
from pipelines.stages.options import Dedup

DISTANCE = 12


def distances(prints: np.ndarray) -> np.ndarray:
    """Differing bits of all pairs, [N, N]."""
    bits = np.unpackbits(prints.view(np.uint8), axis=1)
    return (bits[:, None] != bits[None]).sum(-1)


def flipped(prints: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    bits = np.unpackbits(prints.view(np.uint8), axis=1)
    for row in bits:
        row[rng.choice(256, count, replace=False)] ^= 1
    return np.packbits(bits, axis=1).view(np.uint64)


@pytest.mark.parametrize(("distance", "rows", "bands"), [(0, 10, 1), (3, 10, 4), (12, 10**4, 13), (12, 10**10, 91)])
def test_alike_fingerprints_share_a_key(distance: int, rows: int, bands: int) -> None:
    rng = np.random.default_rng(0)
    prints = rng.integers(0, 2**64, (200, 4), np.uint64)
    masks = fingerprint.masks(distance, rows)
    assert len(masks) == bands
    same = fingerprint.keys(prints, masks) == fingerprint.keys(flipped(prints, distance, rng), masks)
    assert same.any(axis=1).all()
    other = fingerprint.keys(prints, masks) == fingerprint.keys(flipped(prints, 128, rng), masks)
    assert other.any(axis=1).mean() < 0.1


def test_winners_are_those_of_the_literal_double_loop() -> None:
    rng = np.random.default_rng(1)
    prints = flipped(np.repeat(rng.integers(0, 2**64, (10, 4), np.uint64), 12, axis=0), 8, rng)
    prints = prints[rng.permutation(len(prints))]
    starts, contenders = np.array([0, 50, 50, 51, 120]), np.array([50, 50, 51, 80])
    far = distances(prints)
    expected = np.full(len(prints), -1)
    for group in range(4):
        for i in range(starts[group], starts[group + 1]):
            before = [j for j in range(starts[group], min(i, contenders[group])) if far[i, j] <= 14]
            expected[i] = before[0] if before else -1
    assert fingerprint.winners(prints, starts, contenders, 14).tolist() == expected.tolist()
    assert -1 in expected and (expected >= 0).sum() > 20


def test_representatives_have_the_smallest_rank() -> None:
    prints = np.array([[1, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 9], [2, 0, 0, 0]], np.uint64)
    ranks = np.array([5, 1, 3, 0, 2], np.uint64)
    assert fingerprint.representatives(prints, ranks).tolist() == [2, 1, 2, 3, 1]
    assert fingerprint.representatives(prints[:0], ranks[:0]).tolist() == []


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def variants(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What happens to images on their way through the web."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    yield "same", data
    yield "jpeg", encoded(image, "JPEG", quality=75)
    yield "webp", encoded(image, "WEBP", quality=80)
    yield "smaller", encoded(image.resize((96, 96), Image.Resampling.LANCZOS), "PNG")
    yield "larger", encoded(image.resize((256, 256), Image.Resampling.BICUBIC), "JPEG", quality=85)
    yield "brighter", encoded(ImageEnhance.Brightness(image).enhance(1.1), "PNG")


@pytest.fixture(scope="module")
def originals() -> list[dict[str, Any]]:
    found = corpus_rows(CorpusConfig(rows=120, canvas=128, seed=3), 0, 120)
    return [
        {"id": r["id"], "image": r["image"], "captions": r["captions"], "caption_types": r["caption_types"]}
        for r in found
    ]


@pytest.fixture(scope="module")
def pool(originals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The originals, each second one with a variant of every kind."""
    made = [
        row | {"id": f"{row['id']}-{kind}", "image": data}
        for row in originals[::2]
        for kind, data in variants(row["image"])
    ]
    return originals + made


def original_of(row: dict[str, Any]) -> str:
    return "-".join(row["id"].split("-")[:3])


@pytest.fixture
def settings(tmp_path: Path, pool: list[dict[str, Any]]) -> Curate:
    (tmp_path / "entries.json").write_text(json.dumps(["a", "on", "the", "with"]))
    folder = write_parquet(tmp_path / "pool", pool, files=3, row_group_size=60)
    entries = str(tmp_path / "entries.json")
    return Curate(pool=folder, output=str(tmp_path / "out/all"), metadata=entries, t=10**6, partition_rows=100)


def closed(output: str) -> dict[str, int]:
    """The rows' drop reasons; the sums of the ledger have to close."""
    card = storage.read_json(f"{output}/data_card.json")
    for name in ("rows", "captions"):
        assert card[name]["kept"] + sum(card[name]["dropped"].values()) == card[name]["in"]
    return dict(card["rows"]["dropped"])


class TestDedup:
    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_duplicates_are_found_with_high_precision_and_recall(
        self, settings: Curate, pool: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        curate(settings)
        candidates = {r["id"] for r in read_all(settings.output)}
        assert len(candidates) > 0.95 * len(pool)
        single = replace(settings, output=str(tmp_path / "out/dedup"), dedup=Dedup(duplicates=True, distance=DISTANCE))
        curate(single)
        kept = {r["id"] for r in read_all(single.output)}
        dropped = [r for r in pool if r["id"] in candidates - kept]
        groups = {original_of(r) for r in pool if r["id"] in candidates}
        true = len(candidates) - len(groups)  # all but one of each group
        alive = {original_of(r) for r in pool if r["id"] in kept}
        wrong = len(groups - alive)  # images of which nothing is left
        recall, precision = (len(dropped) - wrong) / true, 1 - wrong / len(dropped)
        print(f"{len(pool)} rows, {true} duplicates: precision {precision:.4f}, recall {recall:.4f}")
        assert precision == 1 and recall > 0.97
        reasons = closed(single.output)
        assert reasons["duplicate"] + reasons["near_duplicate"] == len(dropped) and reasons["duplicate"] > 20

    @pytest.mark.usefixtures("ray_session")
    def test_the_kept_set_is_that_of_the_definition_whatever_the_partitioning(
        self, settings: Curate, pool: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = replace(settings, metadata=None, metadata_min_count=1)  # every caption matches
        prints = np.stack([fingerprint.perceptual(r["image"]) for r in pool])
        alike = distances(prints) <= DISTANCE
        rank = np.array([plain_hash(0, r["id"], RANK) for r in pool], np.uint64)
        expected = [r["id"] for i, r in enumerate(pool) if not (alike[i] & (rank < rank[i])).any()]
        near = replace(settings, output=str(tmp_path / "out/near"), dedup=Dedup(duplicates=True, distance=DISTANCE))
        curate(near)
        assert [r["id"] for r in read_all(near.output)] == expected
        monkeypatch.setattr(duplicates, "BIN_RECORDS", 500)
        moved = write_parquet(tmp_path / "moved", pool[::-1], files=2, row_group_size=37)
        other = replace(near, pool=moved, output=str(tmp_path / "out/moved"), partition_rows=37)
        curate(other)
        assert {r["id"] for r in read_all(other.output)} == set(expected)
        assert closed(near.output) == closed(other.output)

    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_files_with_the_same_bytes_are_duplicates(
        self, settings: Curate, pool: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        exact = replace(settings, metadata=None, output=str(tmp_path / "out/exact"), dedup=Dedup(duplicates=True))
        curate(exact)
        assert closed(exact.output) == {"duplicate": 60}
        images = [r["image"] for r in read_all(exact.output)]
        assert len(images) == len(set(images)) == len({r["image"] for r in pool})

    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_pictures_of_evaluation_sets_are_dropped(
        self, settings: Curate, originals: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        shown = originals[:10]
        images = [dict(variants(r["image"]))["jpeg" if i % 2 else "same"] for i, r in enumerate(shown)]
        data = EvaluationSet.of_captions("shown", pa.array(images), [["x"]] * 10)
        evaluation_set.write(str(tmp_path / "evaluation/shown"), data)
        settings = replace(settings, metadata=None)
        where = (str(tmp_path / "evaluation"),)
        clean = replace(settings, output=str(tmp_path / "out/clean"), dedup=Dedup(evaluation=where, distance=DISTANCE))
        curate(clean)
        gone = {original_of(r) for r in shown}
        assert closed(clean.output) == {"evaluation": 5 * 7 + 5}  # each second original has six variants
        assert not gone & {original_of(r) for r in read_all(clean.output)}
        both = replace(settings, output=str(tmp_path / "out/both"), dedup=replace(clean.dedup, duplicates=True))
        curate(both)
        assert closed(both.output)["evaluation"] == 40 and not gone & {original_of(r) for r in read_all(both.output)}
        exact = replace(settings, output=str(tmp_path / "out/same"), dedup=Dedup(evaluation=where))
        curate(exact)
        assert closed(exact.output) == {"evaluation": 10}  # five originals and the variant of each with the same bytes

    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_a_picture_that_the_rules_drop_wins_nothing(
        self, settings: Curate, pool: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        chosen = replace(settings, metadata=None, min_side=100, output=str(tmp_path / "out/large"))
        chosen = replace(chosen, dedup=Dedup(duplicates=True, distance=DISTANCE))
        curate(chosen)
        assert closed(chosen.output)["shorter side below the minimum"] == 60
        assert {original_of(r) for r in read_all(chosen.output)} == {original_of(r) for r in pool}


@pytest.mark.parametrize(
    ("values", "message"),
    [({"distance": 12}, "needs --dedup.duplicates or"), ({"duplicates": True, "distance": 33}, "distance is 33")],
)
def test_contradicting_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dedup(**values)


def test_a_folder_without_evaluation_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no evaluation set"):
        Dedup(evaluation=(str(tmp_path),)).sets()
