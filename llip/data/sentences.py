"""Sub-captions: some sentences of a long caption, drawn anew each time (FLAIR, arXiv 2412.03561, diverse sampling)."""

import re
from collections.abc import Sequence

_END = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])")
"""Between sentences: white space after a full stop, or the end of a sentence of a script that has none."""


def draws_of(most: int) -> int:
    """Uniform numbers that `sub_caption` takes."""
    return 2 + most


def sub_caption(text: str, most: int, numbers: Sequence[float]) -> str:
    """One to `most` sentences of a text, as likely neighbours as any, in their order.

    `numbers` are `draws_of(most)` uniform draws in [0, 1): how many sentences, of which kind, and which.
    """
    sentences = [sentence for sentence in _END.split(text.strip()) if sentence]
    if len(sentences) < 2:
        return text
    count = 1 + int(numbers[0] * min(most, len(sentences)))
    if numbers[1] < 0.5:
        first = int(numbers[2] * (len(sentences) - count + 1))
        return " ".join(sentences[first : first + count])
    left = list(range(len(sentences)))
    chosen = sorted(left.pop(int(number * len(left))) for number in numbers[2 : 2 + count])
    return " ".join(sentences[i] for i in chosen)
