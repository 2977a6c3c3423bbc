"""Sentences of long captions: which ones, how often, and the same ones again."""

import itertools
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.shard_folders import row, write_shards
from torch import Tensor

from llip.config import DataConfig
from llip.data.loader import Batch, LaneLoader, draws_of, sub_caption
from llip.data.tokenizer import tokenize

LONG = "A cat sits. Is it red? It has 3.5 legs! The end."
SENTENCES = ["A cat sits.", "Is it red?", "It has 3.5 legs!", "The end."]
CONFIG = DataConfig(batch_size=16, captions_per_image=3, threads=2)


def drawn(text: str, most: int, count: int = 6000) -> Counter[str]:
    numbers = np.random.default_rng(0).random((count, draws_of(most))).tolist()
    return Counter(sub_caption(text, most, of_text) for of_text in numbers)


def test_one_to_so_many_sentences_in_their_order_each_as_likely() -> None:
    found = drawn(LONG, 3)
    expected = {" ".join(c) for n in (1, 2, 3) for c in itertools.combinations(SENTENCES, n)}
    assert set(found) == expected
    by_length = Counter[int]()
    for text, count in found.items():
        by_length[sum(sentence in text for sentence in SENTENCES)] += count
    assert all(abs(by_length[n] - 2000) < 150 for n in (1, 2, 3))
    # neighbours: each pair half of the time as one of three, and one of six pairs else
    assert found["A cat sits. Is it red?"] == pytest.approx(2000 * (1 / 6 + 1 / 12), rel=0.15)
    assert found["A cat sits. The end."] == pytest.approx(2000 / 12, rel=0.25)


def test_short_texts_and_other_scripts() -> None:
    assert set(drawn("a cat", 3, 20)) == {"a cat"} == set(drawn("a cat", 1, 20))
    assert set(drawn("猫がいる。赤い。", 1, 50)) == {"猫がいる。", "赤い。"}
    assert set(drawn(LONG, 1)) == set(SENTENCES)


def batch(folder: str, config: DataConfig, step: int = 0) -> Batch:
    with (
        LaneLoader(folder, config, image_size=16, context_length=32, seed=5) as loader,
        closing(loader.iter_from(step)) as batches,
    ):
        return next(batches)


def words(token_ids: Tensor) -> list[int]:
    """Token ids without padding."""
    return token_ids[token_ids > 0].tolist()


def test_a_batch_has_sentences_of_its_captions_drawn_anew(tmp_path: Path) -> None:
    texts = [[f"Image {i} says {word}." for word in ("one", "two", "three", "four")] for i in range(40)]
    rows = [row(i) | {"captions": [" ".join(texts[i])]} for i in range(40)]
    folder = write_shards(tmp_path / "shards", rows, files=1, row_group_size=10)
    found, again = (batch(folder, replace(CONFIG, sub_captions=1)) for _ in range(2))
    assert found.token_ids.tolist() == again.token_ids.tolist()
    epochs = [batch(folder, replace(CONFIG, sub_captions=1), step) for step in range(8)]
    seen = Counter[int]()
    for of_step in epochs:
        for place, ids in enumerate(of_step.token_ids):
            number = int(of_step.sample_ids[place % CONFIG.batch_size].removeprefix("row-"))
            possible = [words(of_text) for of_text in tokenize(texts[number], 32)]
            seen[possible.index(words(ids))] += 1
    assert len(seen) == 4 and min(seen.values()) > 0.15 * sum(seen.values())
    whole = batch(folder, CONFIG)
    assert whole.token_ids.shape[1] > found.token_ids.shape[1] and whole.sample_ids == found.sample_ids


def test_none_of_them_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.sub_captions is 0; it has to be at least 1, or None"):
        DataConfig(sub_captions=0)
