"""Captions a second: the tokenizer against open_clip's, interleaved, with ratios.

    uv run python tests/benchmarks/bench_tokenizer.py

Captions of CLIP's own vocabulary, words in proportion to 1 / rank, about ten each, which open_clip has all cached when
the rounds begin. In the second row one caption in ten has an accent, an emoji or an HTML entity. Batches of 256.
"""

import gzip
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest

from llip.data.tokenizer import tokenize

CAPTIONS, BATCH, ROUNDS = 4096, 256, 7
BARS = {0.0: 10.0, 0.1: 5.0}
"""Times as fast as open_clip's, by the share of odd captions: these are mended by ftfy, as open_clip mends all."""


def captions(odd_share: float) -> list[str]:
    """About ten ASCII words each, but for a share of odd ones."""
    packed = (Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = ("".join(line.split()) for line in gzip.decompress(packed).decode().split("\n")[1:30000])
    words = [w for w in (m.removesuffix("</w>") for m in merges if m.endswith("</w>")) if w.isascii() and w.isalpha()]
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, len(words) + 1)
    drawn = [
        " ".join(words[i] for i in rng.choice(len(words), size, p=share / share.sum()))
        for size in rng.integers(5, 16, CAPTIONS)
    ]
    odd = rng.random(CAPTIONS) < odd_share
    return [f"{c} {rng.choice(['café', '😀', '&amp;'])}" if o else c for c, o in zip(drawn, odd, strict=True)]


def seconds(encode: Callable[[list[str]], object], texts: list[str]) -> float:
    start = time.process_time()
    for i in range(0, len(texts), BATCH):
        encode(texts[i : i + BATCH])
    return time.process_time() - start


def measure(odd_share: float) -> list[tuple[float, float]]:
    """Seconds of ours and of open_clip's, round by round, once both are warm."""
    texts, reference = captions(odd_share), open_clip.SimpleTokenizer()
    rounds = [(seconds(tokenize, texts), seconds(reference, texts)) for _ in range(ROUNDS + 1)]
    return rounds[1:]


def report(odd_share: float) -> float:
    rounds = measure(odd_share)
    ratios = sorted(theirs / ours for ours, theirs in rounds)
    ours, theirs = (CAPTIONS / statistics.median(times) for times in zip(*rounds, strict=True))
    median = statistics.median(ratios)
    print(f"{odd_share:>9.0%} {ours:>12,.0f} {theirs:>12,.0f}   {ratios[0]:5.1f} {median:5.1f} {ratios[-1]:5.1f}")
    return median


def main() -> dict[float, float]:
    """Median ratios by the share of odd captions."""
    print(f"{'odd':>9} {'ours /s':>12} {'open_clip /s':>12}   ratio min / median / max of {ROUNDS} rounds")
    return {odd_share: report(odd_share) for odd_share in BARS}


@pytest.mark.bench
def test_tokenizing_is_many_times_as_fast_as_open_clip() -> None:
    assert all(ratio >= BARS[odd_share] for odd_share, ratio in main().items())


if __name__ == "__main__":
    main()
