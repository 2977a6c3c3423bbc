"""The drawings of every split, and the concepts that scenes are composed of.

Held out of training: a whole style (Twemoji), and a share of the emoji in every style, chosen by a hash of their first
code point, which gender and skin-tone variants share.
"""

import hashlib
import re
from collections import defaultdict
from functools import cached_property, lru_cache

from llip.data.corpus import names, sources
from llip.data.corpus.config import CorpusConfig
from llip.data.corpus.names import Concept
from llip.data.corpus.sources import EMOJI_STYLES, HELD_OUT_STYLE, Drawing

TRAINING_EMOJI_STYLES = tuple(s for s in EMOJI_STYLES if s != HELD_OUT_STYLE)

SCENE_CATEGORIES = (
    "mammal", "fruit", "land vehicle", "musical instrument", "sport", "bird", "vegetable", "building",
    "piece of clothing", "bug", "meal", "aircraft", "tool", "sea animal", "sweet", "boat", "household item",
    "plant", "drink", "festivity", "flower", "game", "office item", "science instrument",
)  # fmt: skip
"""Categories of things that can stand in a scene, so ordered that neighbours differ in their group."""

CONCEPTS_PER_CATEGORY = 4


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


class Catalogue:
    """Concepts and drawings under the splits of a configuration."""

    def __init__(self, held_out_share: float, scene_concepts: int) -> None:
        self._held_out_share = held_out_share
        self._scene_concepts = scene_concepts
        self.concepts: dict[str, Concept] = names.emoji_concepts() | names.icon_concepts()
        self.emoji = sources.emoji_drawings()
        held_out_names = {f"{c.name} icon".lower() for c in names.emoji_concepts().values() if self.is_held_out(c.key)}
        icons = sources.phosphor_drawings() + sources.lucide_drawings()
        self.icons = [d for d in icons if self.concepts[d.concept].name.lower() not in held_out_names]

    def is_held_out(self, key: str) -> bool:
        """Whether an emoji, given by its code points, is seen in no style in training."""
        return _fraction("held out/" + key.split("-")[0]) < self._held_out_share

    @cached_property
    def training_emoji(self) -> list[Drawing]:
        return [d for d in self.emoji if d.source != HELD_OUT_STYLE and not self.is_held_out(d.concept)]

    @cached_property
    def held_out_style(self) -> list[Drawing]:
        """Concepts that training knows, in the style that it does not."""
        return [d for d in self.emoji if d.source == HELD_OUT_STYLE and not self.is_held_out(d.concept)]

    @cached_property
    def held_out_concepts(self) -> list[Drawing]:
        """Concepts that training does not know, in the styles that it does."""
        return [d for d in self.emoji if d.source != HELD_OUT_STYLE and self.is_held_out(d.concept)]

    @cached_property
    def by_style(self) -> dict[str, dict[str, Drawing]]:
        """Emoji drawings by style and code points."""
        found: dict[str, dict[str, Drawing]] = {s: {} for s in EMOJI_STYLES}
        for drawing in self.emoji:
            found[drawing.source][drawing.concept] = drawing
        return found

    @cached_property
    def scene_concepts(self) -> list[Concept]:
        """The concepts of scenes: plain names, drawn in every emoji style, a few of each category.

        Raises ValueError where there are not as many as wanted.
        """
        candidates: dict[str, list[Concept]] = defaultdict(list)
        for concept in sorted(names.emoji_concepts().values(), key=lambda c: _fraction("scene/" + c.key)):
            drawn = all(concept.key in self.by_style[s] for s in EMOJI_STYLES)
            plain = re.fullmatch(r"[A-Za-z]+( [A-Za-z]+)?", concept.name)
            if drawn and plain and concept.name not in names.SUBGROUPS.values() and not self.is_held_out(concept.key):
                candidates[concept.subgroups[0]].append(concept)
        chosen: list[Concept] = []
        while len(chosen) < self._scene_concepts:
            before = len(chosen)
            for category in SCENE_CATEGORIES:
                for concept in _take(candidates[category], CONCEPTS_PER_CATEGORY, chosen):
                    if len(chosen) < self._scene_concepts:
                        chosen.append(concept)
            if len(chosen) == before:
                raise ValueError(
                    f"scene_concepts is {self._scene_concepts}; the packages have {before} concepts that suit a scene"
                )
        return chosen


def _take(candidates: list[Concept], count: int, chosen: list[Concept]) -> list[Concept]:
    """Remove up to `count` concepts from the front, but no name that contains another: a `dog face` is a `dog`."""
    taken: list[Concept] = []
    while candidates and len(taken) < count:
        concept = candidates.pop(0)
        words = set(concept.name.lower().split())
        others = [set(c.name.lower().split()) for c in chosen + taken]
        if not any(words <= o or o <= words for o in others):
            taken.append(concept)
    return taken


@lru_cache(maxsize=4)
def _catalogue(held_out_share: float, scene_concepts: int) -> Catalogue:
    return Catalogue(held_out_share, scene_concepts)


def catalogue(config: CorpusConfig) -> Catalogue:
    """The catalogue of a configuration, read once a process."""
    return _catalogue(config.held_out_share, config.scene_concepts)
