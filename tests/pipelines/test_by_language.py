"""Entries by language: which captions meet which, and t for each."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.small_pools import picture, read_all

from llip import storage
from pipelines.curate import Curate, curate
from pipelines.stages import balance
from pipelines.stages.match import EntryMatcher, by_language
from pipelines.stages.match.by_language import LanguageMatcher

ENGLISH = ["a cat is sitting on the chair by the window", "a dog is running across the green field today"]
GERMAN = ["die Katze sitzt auf dem Stuhl neben dem Fenster", "der Hund läuft heute schnell über die grüne Wiese"]
JAPANESE = ["窓のそばの椅子に猫が座っています", "犬が今日は緑の野原を走っています"]
FRENCH = ["le chat est assis sur la chaise près de la fenêtre"]


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries/en.json").write_text(json.dumps(["cat", "dog", "the", "die"]))
    (tmp_path / "entries/de.txt").write_text("Katze\ndie\n")
    (tmp_path / "entries/ja.json").write_text(json.dumps(["猫", "犬"]))
    return tmp_path / "entries"


def test_a_text_meets_the_entries_of_its_language(lists: Path) -> None:
    found = by_language.load(str(lists))
    assert found == {"de": ["Katze", "die"], "en": ["cat", "dog", "the", "die"], "ja": ["猫", "犬"]}
    matcher = LanguageMatcher(found, "v2")
    texts = pa.array([*ENGLISH, *GERMAN, None, *JAPANESE, *FRENCH])
    codes = pa.array(["en", "en", "de", "de", "de", "ja", "ja", "fr"])
    got = matcher.match(texts, codes).to_pylist()
    names = by_language.labels(found)
    for text, code, ids in zip(texts.to_pylist(), codes.to_pylist(), got, strict=True):
        if text is None or code not in found:
            assert ids is None
        else:
            alone = EntryMatcher(found[code], "v2").match(pa.array([text])).to_pylist()[0]
            assert [names[i] for i in ids] == [f"{code}:{found[code][i]}" for i in alone]
    assert [names[i] for i in got[5]] == ["ja:猫"]


def test_t_of_an_entry_is_that_of_its_language() -> None:
    counts, sizes = np.array([100, 10, 1, 0, 8, 2, 0]), {"a": 3, "b": 1, "c": 3}
    chosen = balance.thresholds(counts, sizes, 0.2)
    assert chosen == {"a": balance.threshold(counts[:3], 0.2), "b": 1, "c": balance.threshold(counts[4:], 0.2)}
    t = balance.by_entry(chosen, sizes)
    matches = pa.array([[0], [1, 4], [], [2, 5, 6]], pa.list_(pa.int32()))
    got = balance.keep_probability(matches, counts, t)
    p = t / np.maximum(counts, t)
    literal = [1 - np.prod([1 - p[e] for e in entries]) for entries in matches.to_pylist()]
    np.testing.assert_allclose(got, literal, atol=1e-12)


@pytest.mark.usefixtures("in_process", "undrawn")
def test_curation_by_language(tmp_path: Path, lists: Path) -> None:
    captions = [ENGLISH * 20, GERMAN * 3, JAPANESE, [*FRENCH, *ENGLISH]]
    columns = {
        "id": list("abcd"),
        "image": [picture(i) for i in range(4)],
        "captions": captions,
        "language": ["en", "de", "fr", None],
    }
    (tmp_path / "pool").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "pool/a.parquet")
    identified = Curate(
        pool=str(tmp_path / "pool"), output=str(tmp_path / "out"), metadata=str(lists), semantics="v2", tail_share=0.0
    )
    curate(identified)
    card = storage.read_json(f"{identified.output}/data_card.json")
    assert card["captions"]["dropped"]["no entries for its language"] == 1
    numbers = card["matching"]["languages"]
    assert {code: n["matches"] for code, n in numbers.items()} == {"de": 9, "en": 84, "ja": 2}
    assert numbers["ja"] == {"entries": 2, "matches": 2, "t": 1, "tail_share": 0.0}
    assert numbers["de"]["t"] == 3 and card["matching"]["t"] == numbers["en"]["t"] == 21
    assert card["matching"]["head"]["en:the"] == 42

    given = replace(identified, output=str(tmp_path / "given"), language_column="language", t=10**6, tail_share=None)
    curate(given)
    assert [r["captions"] for r in read_all(given.output)] == captions[:2]


def test_unusable_settings_are_refused(tmp_path: Path, lists: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "caption": ["a"]}), tmp_path / "a.parquet")
    settings = Curate(pool=str(tmp_path / "a.parquet"), output=str(tmp_path / "out"), language_column="language")
    with pytest.raises(ValueError, match="--metadata has to be a folder"):
        curate(settings)
    with pytest.raises(ValueError, match="the pool has no column 'language'"):
        curate(replace(settings, metadata=str(lists)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.md").write_text("x")
    with pytest.raises(ValueError, match="holds no lists of entries"):
        by_language.load(str(tmp_path / "empty"))


def test_lists_of_others_are_read_and_never_replace_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An object's keys as Meta CLIP 2 has them, names with versions, folders, a list for all other languages."""
    for name, content in {
        "en.v1.json": '\ufeff{"cat": 3, " dog ": 1, "dog": 2}',
        "zh-min-nan/metadata.json": '["\u72ac"]',
        "other.txt": "\ufeffchien\r\n\nle\u2028chat\n",
        "manifest.json": "{}",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = by_language.load(str(tmp_path))
    assert found == {"en": ["cat", "dog"], "other": ["chien", "le\u2028chat"], "zh-min-nan": ["\u72ac"]}
    assert "1 entries have space around them" in capsys.readouterr().out
    texts, codes = pa.array(["a cat", "le chien", None, "cat"]), pa.array(["en", "fr", None, "fr"])
    names = by_language.labels(found)
    got = LanguageMatcher(found, "v2").match(texts, codes).to_pylist()
    assert [ids and [names[i] for i in ids] for ids in got] == [["en:cat"], ["other:chien"], None, []]
    for other in ("en.v2.json", "en/metadata.json", "en.txt"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text('["x"]')
        with pytest.raises(ValueError, match="are both lists of 'en'"):
            by_language.load(str(tmp_path))
        (tmp_path / other).unlink()
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(ValueError, match="'readme' is no code of a language"):
        by_language.load(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3", "holds a int; a list of strings or an object"),
        ('{"a": 1, "a": 2}', "entry 1 repeats entry 0: 'a'"),
        ('["a", "\\ud800"]', "entry 1 is"),
        ('["a", ""]', "entry 1 is ''"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "metadata.json").write_text(content)
    with pytest.raises(ValueError, match=f"metadata.json.*{message}"):
        by_language.load(str(tmp_path))
