"""Captions a second on one core: EntryMatcher against two Aho-Corasick libraries, interleaved, with ratios.

    uv run python tests/benchmarks/bench_match.py

Entries and captions are drawn from the words of CLIP's vocabulary in proportion to 1 / rank, so that they overlap as
real ones do: 500,000 entries (half of them single words), 200,000 captions of about 54 characters.
"""

import gzip
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest

from pipelines.stages.match import EntryMatcher

ENTRIES, CAPTIONS, ROUNDS = 500_000, 200_000, 5
BAR = 8.0
"""Times as fast as pyahocorasick in a Python loop."""


def words() -> list[str]:
    """Whole words of CLIP's byte-pair vocabulary, frequent ones first."""
    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode()
    found = dict.fromkeys("".join(line.split()) for line in merges.split("\n")[1:48895] if line.endswith("</w>"))
    return [w.removesuffix("</w>") for w in found if w.removesuffix("</w>").isalpha()]


def make_entries(vocabulary: list[str], rng: np.random.Generator) -> list[str]:
    entries = dict.fromkeys(vocabulary)
    entries |= dict.fromkeys(w.capitalize() for w in vocabulary)
    for share, length in ((0.5, 0), (0.85, 2), (1.0, 3)):
        while len(entries) < ENTRIES * share:
            drawn = zipf(vocabulary, rng, 200_000)
            step = length or 2
            entries |= dict.fromkeys(
                (" " if length else "").join(drawn[i : i + step]) for i in range(0, len(drawn) - step, step)
            )
            entries = dict.fromkeys(list(entries)[: int(ENTRIES * share)])
    return list(entries)


def make_captions(vocabulary: list[str], rng: np.random.Generator) -> list[str]:
    drawn = iter(zipf(vocabulary, rng, CAPTIONS * 20))
    captions = []
    for length in rng.integers(4, 17, CAPTIONS):
        parts = [next(drawn) for _ in range(length)]
        for i in range(0, length, 5):
            parts[i] = parts[i].capitalize() if i % 2 else parts[i] + ","
        captions.append(" ".join(parts) + ("." if length % 2 else ""))
    return captions


def zipf(vocabulary: list[str], rng: np.random.Generator, count: int) -> list[str]:
    weights = 1 / np.arange(10, len(vocabulary) + 10)
    return [vocabulary[i] for i in rng.choice(len(vocabulary), count, p=weights / weights.sum())]


def spaced(text: str) -> str:
    for c in ",.;:?!`":
        text = text.replace(c, f" {c} ")
    return f" {text.translate({9: ' ', 10: ' ', 13: ' '})} "


def contestants(entries: list[str]) -> dict[str, Callable[[list[str]], int]]:
    """Name → function that matches captions and returns how many matches there are; prints what building takes."""
    import ahocorasick
    import ahocorasick_rs

    started = time.perf_counter()
    matcher = EntryMatcher(entries)
    print(f"build EntryMatcher    {time.perf_counter() - started:5.2f} s, {matcher.nbytes / 2**20:.0f} MiB")
    started = time.perf_counter()
    automaton = ahocorasick.Automaton()
    for i, entry in enumerate(entries):
        automaton.add_word(f" {entry} ", i)
    automaton.make_automaton()
    print(f"build pyahocorasick   {time.perf_counter() - started:5.2f} s")
    started = time.perf_counter()
    compiled = ahocorasick_rs.AhoCorasick([f" {e} " for e in entries])
    print(f"build ahocorasick_rs  {time.perf_counter() - started:5.2f} s")

    def python(captions: list[str]) -> int:
        return sum(len({i for _, i in automaton.iter(spaced(c))}) for c in captions)

    def rust(captions: list[str]) -> int:
        return sum(len({m[0] for m in compiled.find_matches_as_indexes(spaced(c), overlapping=True)}) for c in captions)

    def ours(captions: pa.StringArray) -> int:
        return len(matcher.match(captions).values)

    return {"EntryMatcher": ours, "pyahocorasick": python, "ahocorasick_rs": rust}


def measure() -> dict[str, list[float]]:
    """Captions a second of each contestant in each round."""
    rng = np.random.default_rng(0)
    vocabulary = words()
    entries, captions = make_entries(vocabulary, rng), make_captions(vocabulary, rng)
    print(
        f"{len(entries):,} entries, {len(captions):,} captions of {statistics.mean(map(len, captions)):.1f} characters"
    )
    array = pa.array(captions)
    functions = contestants(entries)
    rates: dict[str, list[float]] = {name: [] for name in functions}
    totals = set()
    for _ in range(ROUNDS):
        for name, function in functions.items():
            given = array if name == "EntryMatcher" else captions
            started = time.process_time()
            totals.add(function(given))
            rates[name].append(len(captions) / (time.process_time() - started))
    assert len(totals) == 1, f"all find the same matches: {totals}"
    print(f"{totals.pop() / len(captions):.2f} matches a caption")
    return rates


def report(rates: dict[str, list[float]]) -> float:
    """Print medians, spreads and ratios; returns the median ratio to pyahocorasick."""
    for name, values in rates.items():
        ratios = sorted(a / b for a, b in zip(rates["EntryMatcher"], values, strict=True))
        print(
            f"{name:15} {statistics.median(values):12,.0f} captions/s/core ({min(values):,.0f} to {max(values):,.0f})"
            f"   EntryMatcher is {statistics.median(ratios):.1f} times as fast ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        )
    return statistics.median(a / b for a, b in zip(rates["EntryMatcher"], rates["pyahocorasick"], strict=True))


@pytest.mark.bench
def test_the_matcher_is_several_times_as_fast_as_an_automaton_in_a_python_loop() -> None:
    assert report(measure()) >= BAR


if __name__ == "__main__":
    report(measure())
