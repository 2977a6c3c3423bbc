"""The matcher against the definition in plain Python."""

import pickle
from collections.abc import Sequence

import pyarrow as pa
import pytest
from helpers.plain_reference import spaced
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.stages.match import EntryMatcher
from pipelines.stages.options import Semantics

UNSPACED = "猫本ไลབကក។、。！།"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def pattern(entry: str, semantics: str) -> str:
    if semantics == "v1" or not entry:
        return f" {entry} "
    left, right = (" " if c not in UNSPACED + PUNCTUATION else "" for c in (entry[0], entry[-1]))
    return left + entry + right


def reference(entries: list[str], texts: Sequence[str | None], semantics: str) -> list[list[int] | None]:
    patterns = [pattern(e, semantics) for e in entries]
    return [None if t is None else [i for i, p in enumerate(patterns) if p in spaced(t)] for t in texts]


def found(entries: list[str], texts: Sequence[str | None], semantics: Semantics = "v1") -> list[list[int] | None]:
    return EntryMatcher(entries, semantics).match(pa.array(texts, pa.string())).to_pylist()


@pytest.mark.parametrize(
    ("entry", "text", "matches"),
    [
        ("cat", "a cat", True),
        ("cat", "cat", True),
        ("cat", "Cat", False),
        ("cat", "cats", False),
        ("cat", "a cat, sleeping", True),
        ("cat", "cat!dog", True),
        ("cat", "cat`s", True),
        ("cat", "cat's", False),
        ("cat", "(cat)", False),
        ("cat", "cat-like", False),
        ("cat", "cat/dog", False),
        ("cat", '"cat"', False),
        ("cat", "a\tcat\r\nsat", True),
        ("cat", "a\u00a0cat", False),
        ("black cat", "a black cat", True),
        ("black cat", "a black  cat", False),
        ("black cat", "a black\ncat", True),
        ("black cat", "a black\r\ncat", False),
        ("St. Louis", "in St. Louis", False),
        ("a . b", "a.b", True),
        ("a . b", "a . b", False),
        ("a  b", "a  b", True),
        ("a ,  b", "a, b", True),
        (",", "a, b", True),
        ("", "a b", False),
        ("", "a, b", True),
        ("", "", True),
        (" ", "a  b", False),
        (" ", "a. .b", True),
        ("abcdefgh", "abcdefgh", True),
        ("abcdefghi", "abcdefgh", False),
        ("abcdefgh\0", "abcdefgh", False),
        ("a\0", "a", False),
        ("é", "e\u0301", False),
        ("cat\t", "cat\t", False),
    ],
)
def test_v1_rules(entry: str, text: str, matches: bool) -> None:
    assert found([entry], [text]) == [[0] if matches else []] == reference([entry], [text], "v1")


@pytest.mark.parametrize(
    ("entry", "text", "matches"),
    [
        ("C++", "I like C++11", True),
        ("C++", "I like ObjC++", False),
        ("#1", "rank#1 of", True),
        ("#1", "rank#12", False),
        ("猫", "黒猫です", True),
        ("猫cat", "黒猫cat dog", True),
        ("猫cat", "黒猫cats", False),
        ("cat", "黒cat", False),
        ("。", "猫。犬", True),
        ("a.", "a.", False),  # the text's full stop has a space before it
        ("𠀀", "x𠀀y", True),
        ("แมว", "เห็นแมวดำ", True),
    ],
)
def test_v2_rules(entry: str, text: str, matches: bool) -> None:
    assert found([entry], [text], "v2") == [[0] if matches else []]


def test_ids_are_ascending_and_distinct_over_overlapping_entries() -> None:
    entries = ["c", "b c", "a b", "b", "a b c", "a"]
    assert found(entries, ["a b c a b c"]) == [[0, 1, 2, 3, 4, 5]]


symbols = st.sampled_from(
    [*"abB ,.;:?!`\t\n\r\0-'\"é猫本།。+", "longer-than-eight", "longer-than-eighty", "  ", "😀", "e\u0301"]
)
strings = st.lists(symbols, max_size=12).map("".join)


@settings(max_examples=150)
@given(
    entries=st.lists(strings | st.text(max_size=4), max_size=40, unique=True),
    texts=st.lists(st.none() | strings | st.text(max_size=20), max_size=20),
)
def test_random_text_equals_the_definition(entries: list[str], texts: list[str | None]) -> None:
    assert found(entries, texts) == reference(entries, texts, "v1")


@settings(max_examples=100)
@given(entries=st.lists(strings, max_size=40, unique=True), texts=st.lists(strings, max_size=20))
def test_random_text_equals_the_definition_of_v2(entries: list[str], texts: list[str]) -> None:
    assert found(entries, texts, "v2") == reference(entries, texts, "v2")


def test_a_slice_and_nulls_are_matched_in_place() -> None:
    texts = pa.array(["cat", None, "dog cat", "", "dog"])
    assert EntryMatcher(["dog", "cat"]).match(texts[1:4]).to_pylist() == [None, [0, 1], []]
    assert EntryMatcher(["dog"]).match(pa.array([], pa.string())).to_pylist() == []


def test_result_is_a_list_of_int32() -> None:
    assert EntryMatcher(["dog"]).match(pa.array(["dog"])).type == pa.list_(pa.int32())


def test_many_matches_of_a_long_text() -> None:
    entries = [f"w{i}" for i in range(5000)]
    text = " ".join(reversed(entries)) + " " + " ".join(entries)
    assert found(entries, [text, "w3", text]) == [list(range(5000)), [3], list(range(5000))]


def test_the_index_travels_as_arrays() -> None:
    matcher = EntryMatcher(["cat", "black cat", "C++"], "v2")
    buffers: list[pickle.PickleBuffer] = []
    copy = pickle.loads(pickle.dumps(matcher, protocol=5, buffer_callback=buffers.append), buffers=buffers)
    assert len(copy) == 3 and sum(b.raw().nbytes for b in buffers) == matcher.nbytes
    assert copy.match(pa.array(["a black cat C++"])).to_pylist() == [[0, 1, 2]]


def test_repeated_entries_are_refused() -> None:
    with pytest.raises(ValueError, match="entry 2 repeats entry 0: 'cat'"):
        EntryMatcher(["cat", "dog", "cat"])


def test_unknown_semantics_are_refused() -> None:
    with pytest.raises(ValueError, match="v1 or v2"):
        EntryMatcher(["cat"], "v3")  # type: ignore[arg-type]
