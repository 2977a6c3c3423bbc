"""Languages, DataComp's basic filter, bombs and score columns: what they drop is named in the ledger."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.small_pools import picture, read_all
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llip import storage
from pipelines.curate import Curate, curate
from pipelines.stages.filter import language, rules
from pipelines.stages.filter.rules import ImageRules
from pipelines.stages.options import PRESETS

TEXTS = {
    "en": ["a small dog is running along the beach", "TWO CHILDREN ARE PLAYING IN THE GARDEN\nof their house"],
    "de": ["ein kleiner Hund rennt am Strand entlang", "zwei Kinder spielen im Garten ihres Hauses"],
    "fr": ["un petit chien court sur la plage", "deux enfants jouent dans le jardin de leur maison"],
    "es": ["un perro pequeño corre por la playa", "dos niños juegan en el jardín de su casa"],
    "ru": ["маленькая собака бежит по пляжу", "двое детей играют в саду своего дома"],
    "zh": ["一只小狗在海滩上奔跑", "两个孩子在自家花园里玩耍"],
    "ja": ["小さな犬が浜辺を走っています", "二人の子供が庭で遊んでいます"],
}


@pytest.mark.parametrize("code", TEXTS)
def test_languages_are_told_apart(code: str) -> None:
    assert language.detect(TEXTS[code]) == [code, code]


def test_only_captions_that_are_left_get_another_reason() -> None:
    texts = pa.array([*TEXTS["en"], *TEXTS["de"], "", TEXTS["fr"][0]])
    reasons = rules.caption_reasons(texts, 0, 0)
    found = rules.language_reasons(texts, reasons, ("en", "fr"))
    names = [rules.CAPTION_REASONS[code] for code in found]
    assert names == ["kept", "kept", "another language", "another language", "empty", "kept"]


def plain_reason(text: str | None, min_words: int, min_characters: int) -> str:
    """What the rules say of one text, in plain Python."""
    trimmed = (text or "").strip()
    if not trimmed:
        return "empty"
    if len(re.split("[ \t\n\f\r]+", trimmed)) < min_words:
        return "too few words"
    return "too few characters" if len(trimmed) < min_characters else "kept"


@given(
    st.lists(st.none() | st.text(st.sampled_from("ab9, \t\n\r\x0b\x0c\x85\xa0\u2003\u3000\u200bé漢🙂"), max_size=12))
)
@pytest.mark.parametrize(("min_words", "min_characters"), [(0, 0), (1, 1), (2, 2), (3, 6)])
def test_rules_of_captions_are_those_of_plain_python(
    min_words: int, min_characters: int, texts: list[str | None]
) -> None:
    array = pa.array(["before", *texts, "after"], pa.string()).slice(1, len(texts))
    codes = rules.caption_reasons(array, min_words, min_characters)
    expected = [plain_reason(text, min_words, min_characters) for text in texts]
    assert [rules.CAPTION_REASONS[code] for code in codes] == expected


def test_a_null_caption_is_empty_whatever_bytes_lie_under_it() -> None:
    buffers = [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([0, 3, 6], np.int32)), pa.py_buffer(b"onetwo")]
    texts = pa.StringArray.from_buffers(2, buffers[1], buffers[2], buffers[0])
    assert texts.to_pylist() == ["one", None]
    assert rules.caption_reasons(texts, 0, 0).tolist() == [rules.KEPT, rules.CAPTION["empty"]]


def encoded(size: tuple[int, int], mode: str = "RGB") -> bytes:
    target = io.BytesIO()
    Image.new(mode, size, 1).save(target, "PNG")
    return target.getvalue()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (encoded((300, 200)), "kept"),
        (encoded((300, 199)), "shorter side below the minimum"),
        (encoded((603, 201)), "kept"),
        (encoded((604, 201)), "aspect ratio above the maximum"),
        (encoded((2000, 1001)), "too many pixels"),
        (encoded((20_000, 20_000), "1"), "too many pixels"),  # Pillow itself refuses to open it
        (b"<html>", "unreadable image"),
        (None, "unreadable image"),
    ],
)
def test_images_are_judged_by_their_headers(image: bytes | None, reason: str) -> None:
    images = pa.array([image], pa.binary())
    codes, _ = rules.judge(images, np.array([0]), ImageRules(min_side=200, max_aspect=3.0, max_pixels=2_000_000))
    assert rules.ROW_REASONS[codes[0]] == reason


@pytest.mark.usefixtures("in_process", "undrawn")
def test_the_basic_filter_of_datacomp_with_a_score(tmp_path: Path) -> None:
    good: dict[str, Any] = {"image": picture(1, size=(250, 210)), "text": TEXTS["en"][0], "clip_l14_similarity": 0.3}
    changes: list[dict[str, Any]] = [
        {},
        {"text": "two words"},
        {"text": "a b c"},
        {"text": TEXTS["de"][0]},
        {"image": picture(2, size=(250, 199))},
        {"image": picture(3, size=(700, 210))},
        {"clip_l14_similarity": 0.27},
        {"clip_l14_similarity": None},
        {"image": encoded((20_000, 20_000), "1")},
    ]
    (tmp_path / "pool").mkdir()
    pq.write_table(pa.Table.from_pylist([good | change for change in changes]), tmp_path / "pool/part.parquet")
    (tmp_path / "entries.json").write_text(json.dumps(["a", "two", "ein"]))
    settings = Curate(
        pool=str(tmp_path / "pool"),
        output=str(tmp_path / "curated"),
        metadata=str(tmp_path / "entries.json"),
        preset="datacomp_basic",
        where=("clip_l14_similarity >= 0.28",),
        t=100,
    )
    curate(settings)
    assert [r["captions"] for r in read_all(settings.output)] == [[TEXTS["en"][0]]]
    card = storage.read_json(f"{settings.output}/data_card.json")
    assert card["rows"]["dropped"] == {
        "excluded by a column": 2,
        "no caption kept": 3,
        "shorter side below the minimum": 1,
        "aspect ratio above the maximum": 1,
        "too many pixels": 1,
    }
    assert card["captions"]["dropped"] == {
        "too few words": 1,
        "too few characters": 1,
        "another language": 1,
        "its image was dropped": 5,
    }


def test_what_is_given_takes_the_place_of_the_preset() -> None:
    settings = Curate(pool="pool", preset="datacomp_basic", min_words=0, languages=("de", "en"))
    thresholds = settings.thresholds()
    assert (thresholds.min_words, thresholds.languages, thresholds.min_side) == (0, ("de", "en"), 200)
    assert Curate(pool="pool").thresholds() == PRESETS["none"]


def test_a_language_is_a_code() -> None:
    with pytest.raises(ValueError, match="--languages has 'English'"):
        Curate(pool="pool", languages=("English",))
