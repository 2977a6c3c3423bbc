"""The drawings of every split, and the concepts that scenes are composed of.

Held out of training: a whole style (Twemoji), a share of the emoji in every style, chosen by a hash of their first
code point, which gender and skin-tone variants share, and the icons of scene concepts.
"""

import hashlib
import re
from collections import defaultdict
from functools import cached_property, lru_cache

from llip.data.corpus import names, sources
from llip.data.corpus.config import CorpusConfig
from llip.data.corpus.names import Concept
from llip.data.corpus.palette import COLOR_WORDS
from llip.data.corpus.sources import EMOJI_STYLES, HELD_OUT_STYLE, ICON_STYLES, Drawing

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
        self._icons: dict[str, list[Drawing]] = defaultdict(list)
        for drawing in sources.phosphor_drawings() + sources.lucide_drawings():
            self._icons[names.icon_noun(self.concepts[drawing.concept])].append(drawing)

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
    def icons(self) -> list[Drawing]:
        """Icons of training: none of a held-out emoji's name, and none of a scene concept."""
        held_out = {c.name.lower() for c in names.emoji_concepts().values() if self.is_held_out(c.key)}
        held_out |= {noun for concept in self.scene_concepts for noun in names.nouns(concept)}
        return [d for noun, drawings in self._icons.items() if noun not in held_out for d in drawings]

    @cached_property
    def by_style(self) -> dict[str, dict[str, Drawing]]:
        """Drawings by style and code points: all emoji, and the icons of scene concepts."""
        found: dict[str, dict[str, Drawing]] = {s: {} for s in (*EMOJI_STYLES, *ICON_STYLES)}
        for drawing in self.emoji:
            found[drawing.source][drawing.concept] = drawing
        for concept in self.scene_concepts:
            for drawing in (d for noun in names.nouns(concept) for d in self._icons.get(noun, ())):
                found[drawing.source].setdefault(concept.key, drawing)
        return found

    def concepts_in(self, style: str) -> list[Concept]:
        """The scene concepts that a style has drawings of: every one, in a style of emoji."""
        return self._concepts_by_style[style]

    @cached_property
    def _concepts_by_style(self) -> dict[str, list[Concept]]:
        return {s: [c for c in self.scene_concepts if c.key in drawn] for s, drawn in self.by_style.items()}

    @cached_property
    def scene_concepts(self) -> list[Concept]:
        """The concepts of scenes: plain names without a colour, drawn in every emoji style, a few of each category;
        those of which there are icons come first.

        Raises ValueError where there are not as many as wanted.
        """
        candidates: dict[str, list[Concept]] = defaultdict(list)
        styles: dict[str, set[str]] = defaultdict(set)
        for drawing in self.emoji:
            styles[drawing.concept].add(drawing.source)
        for concept in sorted(names.emoji_concepts().values(), key=self._scene_order):
            plain = re.fullmatch(r"[A-Za-z]+( [A-Za-z]+)?", concept.name)
            named = plain and concept.name not in names.SUBGROUPS.values()
            named = named and not COLOR_WORDS & set(concept.name.lower().split())
            if named and len(styles[concept.key]) == len(EMOJI_STYLES) and not self.is_held_out(concept.key):
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

    def _scene_order(self, concept: Concept) -> tuple[bool, float]:
        drawn = any(noun in self._icons for noun in names.nouns(concept))
        return not drawn, _fraction("scene/" + concept.key)


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
