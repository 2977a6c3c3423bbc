"""Options of the stages as commands show them, apart from the stages: --help loads no compiler and no library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llip.evaluation.sets import FoundSet

Semantics = Literal["v1", "v2"]
Format = Literal["keep", "jpeg", "webp", "png"]
MIN_PMI = 3.0
"""Bits by which a pair of words has to be more frequent than its words are together by chance."""
MOST_ENTRIES = 500_000
"""Entries of a list: its size in the method's release."""
MOST_DISTANCE = 32


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Rules for captions and images of any pool."""

    min_words: int = 0
    min_characters: int = 0
    languages: tuple[str, ...] = ()
    min_side: int = 0
    max_aspect: float = float("inf")


PRESETS = {
    "none": Thresholds(),
    "datacomp_basic": Thresholds(min_words=3, min_characters=6, languages=("en",), min_side=200, max_aspect=3.0),
}
"""datacomp_basic: the basic filter of DataComp (Gadre et al., NeurIPS 2023, section 3.4 and appendix)."""


@dataclass(frozen=True, kw_only=True)
class Dedup:
    """Kinds of duplicate images that are dropped."""

    duplicates: bool = False
    """Keep one of the rows of the pool with the same image: the one whose id has the smallest hash."""
    evaluation: tuple[str, ...] = ()
    """Drop duplicates of the images of the evaluation sets under these folders."""
    distance: int | None = None
    """Near-duplicates count too: images whose perceptual hashes differ in at most so many of their 256 bits. 12 finds
    what was encoded anew or scaled. Where not given, only files with the same bytes are duplicates."""

    def __post_init__(self) -> None:
        if self.distance is not None and not 0 <= self.distance <= MOST_DISTANCE:
            raise ValueError(f"--dedup.distance is {self.distance}; it has to be in 0 to {MOST_DISTANCE}")
        if self.distance is not None and not self.active:
            raise ValueError(
                "--dedup.distance says what a near-duplicate is; it needs --dedup.duplicates or --dedup.evaluation"
            )

    @property
    def active(self) -> bool:
        return self.duplicates or bool(self.evaluation)

    def sets(self) -> list[FoundSet]:
        """The evaluation sets. Raises ValueError for a folder that holds none."""
        from llip.evaluation.sets import find_sets

        found = {uri: find_sets(uri) for uri in self.evaluation}
        if empty := [uri for uri, sources in found.items() if not sources]:
            raise ValueError(f"--dedup.evaluation {empty[0]} holds no evaluation set")
        return [source for sources in found.values() for source in sources]
