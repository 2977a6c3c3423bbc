"""Balancing: frequent entries are thinned out, rare ones keep all of their texts (arXiv 2309.16671, section 3.3)."""

import numpy as np
import pyarrow as pa
from numba import types

from pipelines.stages.compiled import In, Out, jit
from pipelines.stages.hashing import finish_lists, uniform


@jit(types.void(In.int32, In.int32, In.float64, Out.float64))
def _log_drop(entries, offsets, log_misses, out):
    for t in range(len(offsets) - 1):
        total = 0.0
        for i in range(offsets[t], offsets[t + 1]):
            total += log_misses[entries[i]]
        out[t] = total


def log_misses(counts: np.ndarray, t: int | np.ndarray) -> np.ndarray:
    """log(1 - p[e]) of every entry, p[e] = t / max(count[e], t), float64 [E].

    counts: int64 [E], texts of the whole pool that match an entry; t: one number, or one for each entry.
    """
    if np.min(t) < 1:
        raise ValueError(f"t is {t}; it has to be at least 1")
    with np.errstate(divide="ignore"):
        above = np.maximum(counts - t, 0) / np.maximum(counts, t)  # 1 - p, without cancellation where p is near 1
        share = t / np.maximum(counts, t)
        return np.where(share < 0.5, np.log1p(-share), np.log(above))


def keep_probability(matches: pa.ListArray, counts: np.ndarray, t: int | np.ndarray) -> np.ndarray:
    """Probability that a text is kept, float64 [T]: `1 - Π_e (1 - p[e])` over the entries e it matches; 0 without a
    match.

    matches: list<int32> [T], distinct entry ids of each text; counts, t: see `log_misses`.
    """
    return keep_probability_of(matches, log_misses(counts, t))


def keep_probability_of(matches: pa.ListArray, log_misses: np.ndarray) -> np.ndarray:
    """`keep_probability` by what `log_misses` gives, once for many parts of a pool."""
    log_drop = np.empty(len(matches))
    offsets = np.ascontiguousarray(matches.offsets.to_numpy(), np.int32)
    _log_drop(matches.values.to_numpy(), offsets, log_misses, log_drop)
    return -np.expm1(log_drop)


def draws(states: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) of texts, float64 [T]: a hash of (seed, id of the image, 0, 1, … for its texts).

    states: uint64 [N], `hashing.states` of the ids and the seed; offsets: int32 [N + 1], where each image's texts
    begin.
    """
    return uniform(finish_lists(states, offsets))


def tail_share(counts: np.ndarray, t: int | np.ndarray) -> float:
    """Share of all matches that fall on entries with fewer than `t` texts (one number, or one for each entry)."""
    return float(counts[counts < t].sum() / max(1, counts.sum()))


def threshold(counts: np.ndarray, share: float) -> int:
    """The largest t whose tail holds at most `share` of all matches. Raises ValueError where nothing matches."""
    values, times = np.unique(counts[counts > 0], return_counts=True)
    if len(values) == 0:
        raise ValueError(
            "no caption of the pool matches any metadata entry; --metadata has to list words that its captions use"
        )
    below = np.concatenate([[0], np.cumsum(values * times)[:-1]])  # matches on entries rarer than values[i]
    return int(values[np.flatnonzero(below <= share * (values * times).sum())[-1]])


def thresholds(counts: np.ndarray, languages: dict[str, int], share: float) -> dict[str, int]:
    """`threshold` of each language's entries, which follow one another; 1 for a language without a match.

    languages: number of entries of each. Raises ValueError where nothing matches at all.
    """
    threshold(counts, share)
    parts = np.split(counts, np.cumsum([*languages.values()])[:-1])
    return {code: threshold(p, share) if p.any() else 1 for code, p in zip(languages, parts, strict=True)}


def by_entry(thresholds: dict[str, int], languages: dict[str, int]) -> int | np.ndarray:
    """t of each entry, int64 [E]; the one number where there is one language."""
    if len(languages) == 1:
        return next(iter(thresholds.values()))
    return np.repeat(np.array([*thresholds.values()], np.int64), [*languages.values()])
