"""The definitions of curation in plain Python, one text at a time."""

from fractions import Fraction

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def spaced(text: str) -> str:
    for c in ",.;:?!`":
        text = text.replace(c, f" {c} ")
    for c in "\t\n\r":
        text = text.replace(c, " ")
    return f" {text} "


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def plain_hash(seed: int, text: str, index: int) -> int:
    h, data = mix(seed + GOLDEN & MASK), text.encode()
    for i in range(0, len(data), 8):
        h = mix(h ^ int.from_bytes(data[i : i + 8], "little"))
    return mix(mix(h ^ len(data)) ^ (index + GOLDEN & MASK))


def keep(probability: Fraction, seed: int, image: str, index: int) -> bool:
    """The draw of a text: the upper 53 bits of its hash, as a number in [0, 1), against its probability."""
    return Fraction(plain_hash(seed, image, index) >> 11, 2**53) < probability
