"""Token ids, against open_clip's tokenizer."""

import random
import unicodedata

import open_clip
import pytest
import torch

from llip.data.tokenizer import END, START, tokenize

_WORDS = """
a an the photo picture painting of in on with and red Blue GREEN dog cat bicycles skyline mountains 1999 4K it's don't
I'M they've WE'LL she'd O'Neill rock'n'roll café naïve Zürich São façade jalapeño señor 3.14 50% $9.99 #art @home c++
R&B https://example.org/a_b?c=d&e=f e-mail under_score (brackets) [more] "quoted" ... ?! -- w/ 10x12 20th
"""
_ODD = """
&amp; &amp;amp; &lt;b&gt; &eacute; &EACUTE; &#233; &#x1F600; &nbsp; &copy &notit; don’t “q” … – — ﬁ Ａ ＴＥＳＴ İ ı ß ẞ
ΣΑΣ ς é schÃ¶n â€™ âœ” 😀 👍🏽 👨‍👩‍👧 🇨🇭 日本語 中文字 한국어 العربية हिन्दी ไทย ½ ² Ⅷ ① ٣ ३ 𝔸𝕓 ǅ ŉ ﷺ ʼ K Å
a1b2 x²y ' '' 's 's's <start_of_text> <end_of_text> <|startoftext|> ___ !! ! • ™ ® € £
"""
_SPACES = "\t\n\x00\x7f\x85\x1c\x1f\u00a0\u00ad\u0345\u0488\u180e\u200b\u200d\u2028\u3000\ufeff"
WORDS = _WORDS.split()
ODD = [*_ODD.split(), *_SPACES, "\r\n", "\x1b[31m", "e\u0301", "Σ\u0345α"]


def _characters(rng: random.Random) -> str:
    """A character that Unicode had assigned long before either library was made."""
    while True:
        character = chr(
            rng.choice([rng.randrange(0x80, 0x3000), rng.randrange(0x3000, 0xD7FF), rng.randrange(0x20000)])
        )
        if unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs", "Co"):
            return character


def _captions(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)

    def piece() -> str:
        kind = rng.random()
        if kind < 0.6:
            return rng.choice(WORDS)
        if kind < 0.85:
            return rng.choice(ODD)
        if kind < 0.93:
            return _characters(rng)
        return "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 8)))

    return [rng.choice([" ", " ", "", "  "]).join(piece() for _ in range(rng.randrange(12))) for _ in range(count)]


def _assert_identical(captions: list[str]) -> None:
    reference = open_clip.SimpleTokenizer()
    for context_length in (77, 12):
        expected, ids = reference(captions, context_length=context_length), tokenize(captions, context_length)
        length = ids.shape[1]
        different = (ids != expected[:, :length]).any(dim=1) | expected[:, length:].any(dim=1)
        assert not different.any(), [captions[i] for i in different.nonzero().flatten()[:5]]


def test_ids_are_those_of_open_clip() -> None:
    _assert_identical(_captions(5000, seed=0))


@pytest.mark.slow
def test_ids_are_those_of_open_clip_on_many_captions() -> None:
    _assert_identical(_captions(100_000, seed=1))


def test_ids_of_every_piece_alone_inside_and_twice_are_those_of_open_clip() -> None:
    _assert_identical([t for piece in (*WORDS, *ODD) for t in (piece, f"x{piece}y", f"{piece} {piece}")])


def test_a_batch_is_as_long_as_its_longest_caption() -> None:
    ids = tokenize(["a dog", "a dog on a red bicycle", ""])
    assert ids.dtype == torch.int64
    assert ids.shape == (3, 8)
    assert (ids[:, 0] == START).all()
    assert [int((row == END).nonzero()) for row in ids] == [3, 7, 1]
    assert not ids[0, 4:].any()


def test_a_long_caption_is_cut_and_keeps_its_end() -> None:
    ids = tokenize(["dog " * 500, "dog"], context_length=10)
    assert ids.shape == (2, 10)
    assert ids[0, 0] == START
    assert ids[0, -1] == END
    assert len(set(ids[0, 1:-1].tolist())) == 1


def test_the_token_of_id_zero_is_not_taken_for_padding() -> None:
    """The exclamation mark inside a word is token 0."""
    _assert_identical(["!", "!a", "a!", "! ! !", "!!", "!!!!!!!!!"])


def test_no_caption_gives_no_row() -> None:
    assert tokenize([]).shape[0] == 0
