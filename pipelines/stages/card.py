"""The data card: what came in, what stayed, and by which reason every other row and caption was dropped."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.stages import balance

NAME = "data_card.json"
LISTED = 50
"""Entries listed at either end of the counts."""


def make(
    results: Sequence[dict[str, Any]],
    *,
    rows: int,
    entries: Sequence[str],
    counts: np.ndarray,
    kept_counts: np.ndarray,
    thresholds: dict[str, int],
    languages: dict[str, int],
    unread: Mapping[str, int],
) -> dict[str, Any]:
    """The card of a curated pool from the results of `select_partition`.

    results: a dictionary a partition; rows: rows of the pool; counts, kept_counts: int64 [E], texts that match an entry
    before and after balancing; thresholds, languages: t and number of entries of each language; unread: what was found
    in the pool and not read, by kind. Without entries nothing is said of matching. An image or a caption
    that is neither kept nor dropped for a named reason is a bug, and stops the run.
    """
    row_counts, caption_counts = (_sum(results, name) for name in ("rows", "captions"))
    histograms = {name: _histogram(results, name) for name in ("side", "bytes", "captions", "characters")}
    kept_rows, kept_captions = row_counts.pop("kept", 0), caption_counts.pop("kept", 0)
    captions = kept_captions + sum(caption_counts.values())
    assert rows == kept_rows + sum(row_counts.values()), (
        f"{rows} rows, but {kept_rows} kept and {dict(row_counts)} dropped"
    )
    assert kept_rows == sum(r["file"]["rows"] for r in results), "as many rows are written as kept"
    assert kept_captions == sum(n * times for n, times in histograms["captions"].items()), (
        "as many captions are written as kept"
    )
    matching = {}
    if entries:
        numbers = _matching(entries, counts, kept_counts, balance.by_entry(thresholds, languages))
        matching = {"matching": numbers | _languages(counts, thresholds, languages)}
    return matching | {
        "rows": {"in": rows, "kept": kept_rows, "kept_share": _share(kept_rows, rows), "dropped": dict(row_counts)},
        "not_read": dict(sorted(unread.items())),
        "captions": {
            "in": captions,
            "kept": kept_captions,
            "kept_share": _share(kept_captions, captions),
            "dropped": dict(caption_counts),
        },
        "shorter_side_pixels": _quantiles(histograms["side"]),
        "image_bytes_below": _quantiles(histograms["bytes"]),
        "captions_per_image": _quantiles(histograms["captions"]),
        "caption_characters": _quantiles(histograms["characters"]),
    }


def summary(card: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a card that its manifest repeats."""
    balancing = {name: card["matching"][name] for name in ("t", "tail_share")} if "matching" in card else {}
    return {name: card[name] for name in ("rows", "captions", "not_read")} | balancing


def _languages(counts: np.ndarray, thresholds: dict[str, int], languages: dict[str, int]) -> dict[str, Any]:
    """t, where there are several languages that of the one with the most matches, and numbers of each of several."""
    parts = dict(zip(languages, np.split(counts, np.cumsum([*languages.values()])[:-1]), strict=True))
    numbers = {
        code: {
            "entries": len(part),
            "matches": int(part.sum()),
            "t": thresholds[code],
            "tail_share": balance.tail_share(part, thresholds[code]),
        }
        for code, part in parts.items()
    }
    largest = max(numbers, key=lambda code: numbers[code]["matches"])
    return {"t": thresholds[largest]} | ({"languages": numbers} if len(numbers) > 1 else {})


def _matching(
    entries: Sequence[str], counts: np.ndarray, kept_counts: np.ndarray, t: int | np.ndarray
) -> dict[str, Any]:
    order = np.lexsort((np.arange(len(counts)), -counts))
    present = order[: int(np.count_nonzero(counts))]
    return {
        "entries": len(entries),
        "entries_matched": len(present),
        "matches": int(counts.sum()),
        "tail_entries": int(np.count_nonzero((counts > 0) & (counts < t))),
        "tail_share": balance.tail_share(counts, t),
        "head": {entries[i]: int(counts[i]) for i in present[:LISTED]},
        "tail": {entries[i]: int(counts[i]) for i in present[::-1][:LISTED]},
        "curve": _curve(counts[present], kept_counts[present]),
    }


def _curve(before: np.ndarray, after: np.ndarray) -> list[dict[str, float]]:
    """Texts an entry before and after balancing, as means over ranges of ranks that widen by an eighth of an octave.

    before: int64 [P], falling; `rank` is the last of a range, 1 for the most common entry.
    """
    ends = np.unique(np.append(np.round(2 ** np.arange(0, np.log2(max(1, len(before))), 1 / 8)), len(before)))
    ends = ends[ends > 0].astype(int)
    sums = [np.diff(np.append(0, np.cumsum(x)[ends - 1])) for x in (before, after)]
    sizes = np.diff(np.append(0, ends))
    return [
        {"rank": int(rank), "before": round(float(b / n), 3), "after": round(float(a / n), 3)}
        for rank, n, b, a in zip(ends, sizes, *sums, strict=True)
    ]


def _sum(results: Sequence[dict[str, Any]], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for result in results:
        total.update(result["counts"][name])
    return total


def _histogram(results: Sequence[dict[str, Any]], name: str) -> dict[int, int]:
    total: Counter[int] = Counter()
    for result in results:
        total.update({int(value): times for value, times in result["sizes"][name].items()})
    return total


def _quantiles(histogram: dict[int, int]) -> dict[str, Any]:
    """Minimum, quartiles, 95th percentile, maximum and mean of a histogram, and itself in bins of half an octave:
    (lowest value, how many)."""
    if not histogram:
        return {}
    values, times = (np.array(x) for x in zip(*sorted(histogram.items()), strict=True))
    cumulative = np.cumsum(times)
    at = {name: int(values[np.searchsorted(cumulative, q * cumulative[-1])]) for name, q in QUANTILES.items()}
    edges = np.append(0, np.unique(np.ceil(2 ** np.arange(0, np.log2(values[-1] + 1), 0.5)))).astype(int)
    bins = np.bincount(np.searchsorted(edges, values, side="right") - 1, times, len(edges))
    used = range(int(np.flatnonzero(bins)[0]), int(np.flatnonzero(bins)[-1]) + 1)
    return at | {
        "mean": round(float((values * times).sum() / cumulative[-1]), 3),
        "histogram": [[int(edges[i]), int(bins[i])] for i in used],
    }


QUANTILES = {"min": 0.0, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def _share(part: int, whole: int) -> float:
    return round(part / max(1, whole), 6)
