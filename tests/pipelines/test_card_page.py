"""The data card: its curve and histograms from hand-made numbers, and its page."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_pools import picture, pool_rows, write_parquet

from llip import storage
from pipelines.curate import Curate, curate
from pipelines.stages import card, card_page


def result(name: str, rows: int, samples: list[tuple[int, int]]) -> dict[str, Any]:
    """What `select_partition` returns for rows of one caption each."""
    counts = {"rows": {"kept": rows, "no captions": 1}, "captions": {"kept": rows, "empty": 2}}
    sizes = {"side": {16: rows}, "bytes": {128: rows}, "captions": {1: rows}, "characters": {0: 1, 5: rows - 1}}
    return {"file": {"name": name, "rows": rows}, "counts": counts, "sizes": sizes, "samples": samples}


def small_card() -> dict[str, Any]:
    counts, kept = np.array([1, 40, 0, 8, 2]), np.array([1, 10, 0, 8, 2])
    entries = ["<b>", "cat", "none", "dog", "sun"]
    results = [result("a", 3, []), result("b", 4, [])]
    return card.make(
        results,
        rows=9,
        entries=entries,
        counts=counts,
        kept_counts=kept,
        thresholds={"": 10},
        languages={"": len(entries)},
        unread={},
    )


def test_the_curve_is_that_of_the_counts_by_rank() -> None:
    assert small_card()["matching"]["curve"] == [
        {"rank": 1, "before": 40, "after": 10},
        {"rank": 2, "before": 8, "after": 8},
        {"rank": 3, "before": 2, "after": 2},
        {"rank": 4, "before": 1, "after": 1},
    ]


def test_a_long_curve_keeps_the_sums() -> None:
    counts = np.sort(np.random.default_rng(0).zipf(1.5, 5000) % 10**6)[::-1]
    kept = np.minimum(counts, 20)
    made = card.make(
        [result("a", 1, [])],
        rows=2,
        entries=[str(i) for i in range(5000)],
        counts=counts,
        kept_counts=kept,
        thresholds={"": 20},
        languages={"": 5000},
        unread={"files .md": 1},
    )
    curve = made["matching"]["curve"]
    widths = np.diff([0, *(point["rank"] for point in curve)])
    assert len(curve) < 100 and curve[-1]["rank"] == np.count_nonzero(counts)
    for name, values in (("before", counts), ("after", kept)):
        assert sum(widths * [point[name] for point in curve]) == pytest.approx(values.sum(), rel=1e-4)


def test_histograms_count_everything_once() -> None:
    made = small_card()
    assert made["caption_characters"]["histogram"] == [[0, 2], [1, 0], [2, 0], [3, 0], [4, 5]]
    assert made["shorter_side_pixels"]["histogram"] == [[16, 7]]
    assert made["captions_per_image"]["histogram"] == [[1, 7]]


def test_the_page_needs_no_other_file_and_shows_the_numbers() -> None:
    shown = [{"image": picture(1), "captions": ["a <i>cat</i>"]}, {"image": b"broken", "captions": ["x"]}]
    page = card_page.make("s3://pool", small_card(), shown)
    assert not re.search(r'(src|href)="(?!data:|#)', page) and page.count("<svg") == 2
    assert "&lt;b&gt;" in page and "<b>," not in page and "a &lt;i&gt;cat&lt;/i&gt;" in page
    assert page.count("data:image/webp") == 1 and "can't be decoded" in page
    rows = re.findall(r'<tr><td>([^<]*)</td><td class="n">([\d,]+)</td><td class="n">([\d,]+)</td>', page)
    assert rows == [("no captions", "2", "7"), ("empty", "4", "7")]
    assert page == card_page.make("s3://pool", small_card(), shown)


@pytest.mark.usefixtures("in_process")
def test_curation_leaves_the_same_samples_and_curve_whatever_the_partitioning(tmp_path: Path) -> None:
    rows = pool_rows(120)
    settings = Curate(pool=write_parquet(tmp_path / "a", rows), output=str(tmp_path / "out/a"), t=20)
    other = replace(settings, pool=write_parquet(tmp_path / "b", rows[::-1], files=5, row_group_size=9))
    other = replace(other, output=str(tmp_path / "out/b"), partition_rows=10)
    pages = []
    for s in (settings, other):
        curate(s)
        assert isinstance(s.pool, str)
        pages.append((Path(s.output) / card_page.NAME).read_text().replace(s.pool, "pool"))
    assert pages[0] == pages[1] and pages[0].count("data:image/webp") == 24
    captions = [text for row in rows for text in row["captions"]]
    curve = storage.read_json(f"{settings.output}/{card.NAME}")["matching"]["curve"]
    words = Counter(w for text in captions for w in set(text.replace(",", " , ").split()) if w.isalnum())
    assert curve[0] == {"rank": 1, "before": words.most_common(1)[0][1], "after": curve[0]["after"]}
    assert all(point["after"] <= point["before"] for point in curve)
