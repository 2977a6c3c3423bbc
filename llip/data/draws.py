"""Random draws that are pure functions of their keys, equal on every machine, thread and version of numpy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# What a draw is for: the first key after the seed, so that no two uses share their bits.
ROW_GROUPS, ROWS, CROP, CAPTIONS, SYNTHETIC, SOURCE, ONLINE, MIXTURE, SETS, SENTENCES = range(10)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _FACTORS[0]
    x = (x ^ (x >> np.uint64(27))) * _FACTORS[1]
    return x ^ (x >> np.uint64(31))


def bits(*keys: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for every combination of the keys, which broadcast: non-negative integers or arrays of them."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _mix(state ^ _mix(np.asarray(key).astype(np.uint64).reshape(np.shape(key) or 1) + _GOLDEN))
    return state


def uniform(*keys: ArrayLike) -> NDArray[np.float64]:
    """Uniform in [0, 1), 53 bits."""
    return np.multiply(bits(*keys) >> np.uint64(11), 2.0**-53, dtype=np.float64)


def permutation(n: int, *keys: int) -> NDArray[np.int64]:
    """A random order of `range(n)`."""
    return np.argsort(bits(*keys, np.arange(n)), kind="stable")


def choices(sizes: NDArray[np.int64], count: int, *keys: ArrayLike) -> NDArray[np.int64]:
    """`count` of `range(size)` for every size, [N, count]: all distinct where the size allows it, else cycling.

    Keys are numbers, or arrays with one number for every size.
    """
    places = np.arange(sizes.max())
    order = np.where(places < sizes[:, None], bits(*(column(k) for k in keys), places), np.iinfo(np.uint64).max)
    drawn = np.argsort(order, axis=1, kind="stable")
    return np.take_along_axis(drawn, np.arange(count) % sizes[:, None], axis=1)


def column(key: ArrayLike) -> NDArray[np.int64]:
    """A key with one number for every row, so that it broadcasts against keys along a row."""
    return np.asarray(key)[..., None] if np.ndim(key) else np.asarray(key)
