"""Fingerprints of images, and the keys by which alike ones meet without comparing all with all.

Every fingerprint has 256 bits. *Exact*: a hash of the file's bytes. *Perceptual*: the signs of the 16 × 16 lowest
frequencies of a 64 × 64 grey copy against their median (pHash, by the library `imagehash`). Images that were encoded
anew, scaled or brightened differ in a few bits.

Two fingerprints that differ in at most d bits agree on at least m of any m + d disjoint bands (the pigeonhole
principle), so one key for each choice of m bands brings every such pair together (Manku, Jain, Das Sarma, WWW 2007).
"""

import hashlib
import math
from itertools import combinations

import imagehash
import numpy as np
from numba import types
from PIL import Image

from pipelines.stages.compiled import In, Out, jit
from pipelines.stages.hashing import GOLDEN, mix
from pipelines.stages.pixels import pixels, read

BITS, WORDS = 256, 4
THUMBNAIL = 256
"""Pixels that a JPEG is decoded to at least: perceptual hashing scales it down to 64."""
ROWS_PER_KEY = 1024
"""Rows that share a key by chance, at most: with more rows a key takes more bands."""


def exact(data: bytes) -> np.ndarray:
    """Hash of the bytes of a file, uint64 [4]."""
    return np.frombuffer(hashlib.blake2b(data, digest_size=BITS // 8).digest(), np.uint64)


def perceptual(data: bytes) -> np.ndarray:
    """Perceptual hash of an image as it is seen, upright and on white, uint64 [4]. Raises UnusableImageError."""

    def small(image: Image.Image, _: bytes) -> Image.Image:
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        return pixels(image)

    seen = read(data, small)
    return np.frombuffer(np.packbits(imagehash.phash(seen, hash_size=16).hash).tobytes(), np.uint64)


def masks(distance: int, rows: int) -> np.ndarray:
    """Bits that make up each key, uint64 [K, 4]: fingerprints of a pool of `rows` that differ in at most `distance`
    bits agree on all bits of at least one mask."""
    if distance == 0:
        return np.full((1, WORDS), np.iinfo(np.uint64).max, np.uint64)
    chosen = 1
    while rows / 2 ** (BITS * chosen / (chosen + distance)) > ROWS_PER_KEY:
        chosen += 1
    bands = chosen + distance
    bits = np.zeros((math.comb(bands, chosen), BITS), np.uint8)
    for key, some in enumerate(combinations(range(bands), chosen)):
        for band in some:
            bits[key, band::bands] = 1  # each band takes bits of all frequencies: the highest ones are noise
    return np.packbits(bits, axis=1).view(np.uint64)


@jit(types.void(In.uint64, In.uint64, Out.uint64))
def _keys(fingerprints, masks, out):
    count = len(masks) // 4
    for i in range(len(fingerprints) // 4):
        for k in range(count):
            h = mix(np.uint64(k) + GOLDEN)
            for w in range(4):
                h = mix(h ^ (fingerprints[4 * i + w] & masks[4 * k + w]))
            out[i * count + k] = h


def keys(fingerprints: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Hashes of (number of the mask, masked fingerprint), uint64 [N, K]. Fingerprints: uint64 [N, 4]."""
    out = np.empty(len(fingerprints) * len(masks), np.uint64)
    _keys(np.ascontiguousarray(fingerprints).ravel(), masks.ravel(), out)
    return out.reshape(len(fingerprints), len(masks))


@jit(types.uint64(types.uint64))
def _ones(x):
    """Number of bits that are set."""
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@jit(types.void(In.uint64, In.int64, In.int64, types.uint64, Out.int64))
def _winners(fingerprints, starts, contenders, distance, out):
    for g in range(len(contenders)):
        for i in range(starts[g], starts[g + 1]):
            out[i] = -1
            for j in range(starts[g], min(i, contenders[g])):
                differing = np.uint64(0)
                for w in range(4):
                    differing += _ones(fingerprints[4 * i + w] ^ fingerprints[4 * j + w])
                if differing <= distance:
                    out[i] = j
                    break


def winners(fingerprints: np.ndarray, starts: np.ndarray, contenders: np.ndarray, distance: int) -> np.ndarray:
    """For each row the first earlier contender of its group that differs in at most `distance` bits, int64 [N]; -1:
    none.

    fingerprints: uint64 [N, 4]; starts: int64 [G + 1], where each group begins, and N; contenders: int64 [G], one past
    the last row of each group that may win.
    """
    out = np.empty(len(fingerprints), np.int64)
    _winners(np.ascontiguousarray(fingerprints).ravel(), starts, contenders, np.uint64(distance), out)
    return out


def representatives(fingerprints: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """For each row the one with the smallest rank among those with the same fingerprint, int64 [N]."""
    order = np.lexsort((ranks, *fingerprints.T))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(fingerprints[order], axis=0) != 0).any(axis=1)
    result = np.empty(len(order), np.int64)
    result[order] = order[first][np.cumsum(first) - 1]
    return result
