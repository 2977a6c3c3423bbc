"""The data card: what came in, what stayed, and by which reason every other row and caption was dropped."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.stages import balance

NAME = "data_card.json"
LISTED = 50
"""Entries listed at either end of the counts."""


def make(
    results: Sequence[dict[str, Any]], *, rows: int, entries: Sequence[str], counts: np.ndarray, t: int
) -> dict[str, Any]:
    """The card of a curated pool from the results of `select_unit`.

    results: a dictionary a unit; rows: rows of the pool; counts: int64 [E]. An image or a caption that is neither kept
    nor dropped for a named reason is a bug, and stops the run.
    """
    row_tally, caption_tally = (_sum(results, name) for name in ("rows", "captions"))
    histograms = {name: _histogram(results, name) for name in ("side", "bytes", "captions", "characters")}
    kept_rows, kept_captions = row_tally.pop("kept", 0), caption_tally.pop("kept", 0)
    captions = kept_captions + sum(caption_tally.values())
    assert rows == kept_rows + sum(row_tally.values()), (
        f"{rows} rows, but {kept_rows} kept and {dict(row_tally)} dropped"
    )
    assert kept_rows == sum(r["file"]["rows"] for r in results), "as many rows are written as kept"
    assert kept_captions == sum(n * times for n, times in histograms["captions"].items()), (
        "as many captions are written as kept"
    )
    return {
        "rows": {"in": rows, "kept": kept_rows, "kept_share": _share(kept_rows, rows), "dropped": dict(row_tally)},
        "captions": {
            "in": captions,
            "kept": kept_captions,
            "kept_share": _share(kept_captions, captions),
            "dropped": dict(caption_tally),
        },
        "matching": _matching(entries, counts, t),
        "shorter_side_pixels": _quantiles(histograms["side"]),
        "image_bytes_below": _quantiles(histograms["bytes"]),
        "captions_per_image": _quantiles(histograms["captions"]),
        "caption_characters": _quantiles(histograms["characters"]),
    }


def summary(card: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a card that its manifest repeats."""
    matching = card["matching"]
    return {
        "rows": card["rows"],
        "captions": card["captions"],
        "t": matching["t"],
        "tail_share": matching["tail_share"],
    }


def _matching(entries: Sequence[str], counts: np.ndarray, t: int) -> dict[str, Any]:
    order = np.lexsort((np.arange(len(counts)), -counts))
    present = order[: int(np.count_nonzero(counts))]
    return {
        "entries": len(entries),
        "entries_matched": len(present),
        "matches": int(counts.sum()),
        "t": t,
        "tail_entries": int(np.count_nonzero((counts > 0) & (counts < t))),
        "tail_share": balance.tail_share(counts, t),
        "head": {entries[i]: int(counts[i]) for i in present[:LISTED]},
        "tail": {entries[i]: int(counts[i]) for i in present[::-1][:LISTED]},
    }


def _sum(results: Sequence[dict[str, Any]], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for result in results:
        total.update(result["tally"][name])
    return total


def _histogram(results: Sequence[dict[str, Any]], name: str) -> dict[int, int]:
    total: Counter[int] = Counter()
    for result in results:
        total.update({int(value): times for value, times in result["sizes"][name].items()})
    return total


def _quantiles(histogram: dict[int, int]) -> dict[str, float]:
    """Minimum, quartiles, 95th percentile, maximum and mean of a histogram."""
    if not histogram:
        return {}
    values, times = (np.array(x) for x in zip(*sorted(histogram.items()), strict=True))
    cumulative = np.cumsum(times)
    at = {name: int(values[np.searchsorted(cumulative, q * cumulative[-1])]) for name, q in QUANTILES.items()}
    return at | {"mean": round(float((values * times).sum() / cumulative[-1]), 3)}


QUANTILES = {"min": 0.0, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def _share(part: int, whole: int) -> float:
    return round(part / max(1, whole), 6)
