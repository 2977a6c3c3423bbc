"""CLIP's byte-pair encoding: captions in, token ids out.

The ids are those of open_clip's `SimpleTokenizer` with its default cleaning, but for characters newer than Unicode 14,
which the two libraries beneath may class differently as letters or symbols.
"""

import html
from collections.abc import Sequence
from functools import cache

import ftfy
import numpy as np
import torch
from instant_clip_tokenizer import Tokenizer
from torch import Tensor

START, END = 49406, 49407


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer()


def clean(text: str) -> str:
    """Mend mis-decoded and control characters, resolve HTML entities twice, collapse white space, lower case."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # nothing to mend, and the encoder passes over white space: 1 µs instead of 50
    text = html.unescape(html.unescape(ftfy.fix_text(text))).lower()
    # This is the one character that open_clip's pattern, which ignores case, matches nowhere.
    text = text.replace("\u0345", " ")
    return " ".join(text.split())


def tokenize(texts: Sequence[str], context_length: int = 77) -> Tensor:
    """Token ids of captions, int64 [T, L]: start of text, tokens, end of text, zeros.

    L is that of the longest caption, at most `context_length`; of a longer caption the first tokens are kept, and its
    end of text.
    """
    if not texts:
        return torch.zeros(0, 2, dtype=torch.int64)
    ids = _tokenizer().tokenize_batch([clean(t) for t in texts], context_length=context_length)
    longest = int(np.flatnonzero(ids.any(axis=0))[-1]) + 1  # the last column with a token is that of an end of text
    return torch.from_numpy(ids[:, :longest].astype(np.int64))
