"""Names, keywords and categories of what the drawings show, joined on code points."""

import json
import re
from dataclasses import dataclass
from functools import cache

from llip.data.corpus import sources

GROUPS = {
    "Smileys & Emotion": "smileys and emotion",
    "People & Body": "people and body",
    "Animals & Nature": "animals and nature",
    "Food & Drink": "food and drink",
    "Travel & Places": "travel and places",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}

SUBGROUPS = {
    "face-smiling": "smiling face",
    "face-affection": "loving face",
    "face-tongue": "face with tongue",
    "face-hand": "face with hand",
    "face-neutral-skeptical": "skeptical face",
    "face-sleepy": "sleepy face",
    "face-unwell": "unwell face",
    "face-hat": "face with hat",
    "face-glasses": "face with glasses",
    "face-concerned": "concerned face",
    "face-negative": "angry face",
    "face-costume": "costume face",
    "cat-face": "cat face",
    "monkey-face": "monkey face",
    "heart": "heart",
    "emotion": "emotion",
    "hand-fingers-open": "open hand",
    "hand-fingers-partial": "hand sign",
    "hand-single-finger": "pointing hand",
    "hand-fingers-closed": "closed hand",
    "hands": "pair of hands",
    "hand-prop": "hand with an object",
    "body-parts": "body part",
    "person": "person",
    "person-gesture": "gesturing person",
    "person-role": "person with a role",
    "person-fantasy": "fantasy figure",
    "person-activity": "busy person",
    "person-sport": "athlete",
    "person-resting": "resting person",
    "family": "family",
    "person-symbol": "symbol of a person",
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-amphibian": "amphibian",
    "animal-reptile": "reptile",
    "animal-marine": "sea animal",
    "animal-bug": "bug",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "meal",
    "food-asian": "Asian food",
    "food-marine": "seafood",
    "food-sweet": "sweet",
    "drink": "drink",
    "dishware": "dishware",
    "place-map": "map",
    "place-geographic": "landscape",
    "place-building": "building",
    "place-religious": "place of worship",
    "place-other": "place",
    "transport-ground": "land vehicle",
    "transport-water": "boat",
    "transport-air": "aircraft",
    "hotel": "hotel thing",
    "time": "clock",
    "sky & weather": "sky or weather",
    "event": "festivity",
    "award-medal": "award",
    "sport": "sport",
    "game": "game",
    "arts & crafts": "craft",
    "clothing": "piece of clothing",
    "sound": "sound device",
    "music": "music symbol",
    "musical-instrument": "musical instrument",
    "phone": "phone",
    "computer": "computer part",
    "light & video": "light or camera",
    "book-paper": "book or paper",
    "money": "money",
    "mail": "mail",
    "writing": "writing tool",
    "office": "office item",
    "lock": "lock or key",
    "tool": "tool",
    "science": "science instrument",
    "medical": "medical item",
    "household": "household item",
    "other-object": "curious object",
    "transport-sign": "public sign",
    "warning": "warning sign",
    "arrow": "arrow",
    "religion": "religious symbol",
    "zodiac": "zodiac sign",
    "av-symbol": "player button",
    "gender": "gender symbol",
    "math": "math sign",
    "punctuation": "punctuation mark",
    "currency": "currency sign",
    "other-symbol": "symbol",
    "keycap": "key cap",
    "alphanum": "letter or number",
    "geometric": "geometric shape",
    "flag": "flag",
    "country-flag": "country flag",
    "subdivision-flag": "regional flag",
}

MAX_KEYWORDS = 10

OTHER_ICONS = {"mouse"}
"""Names that an icon has in another sense: the mouse of a computer."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """The thing that one or more drawings show."""

    key: str
    """Code points of an emoji (`1F34E`), or `package/name` of an icon."""
    name: str
    """Its usual name: `red apple`."""
    aliases: tuple[str, ...] = ()
    """Other names."""
    keywords: tuple[str, ...] = ()
    groups: tuple[str, ...]
    """Upper categories: `food and drink`. An emoji has one."""
    subgroups: tuple[str, ...] = ()
    """Categories, as nouns: `fruit`. An emoji has one, an icon none."""


def _clean(name: str) -> str:
    """Plain words: `:A_button_(blood_type):` becomes `A button blood type`."""
    name = name.strip(":").replace("_", " ").replace("’", "'").replace("&", "and")
    return " ".join(re.sub(r"[“”()!.,]", " ", name).split())


def _keywords(candidates: list[str], name: str) -> tuple[str, ...]:
    """Distinct words worth saying: letters only (no emoticons), not the name itself."""
    cleaned = [c.replace("_", " ").strip().lower() for c in candidates]
    plain = [c for c in cleaned if re.fullmatch(r"[a-z][a-z' -]{2,}", c) and c != name.lower()]
    return tuple(dict.fromkeys(plain))[:MAX_KEYWORDS]


def _sequence(text: str) -> str:
    return sources.code_points("-".join(f"{ord(c):04X}" for c in text))


@cache
def emoji_concepts() -> dict[str, Concept]:
    """Emoji by code points."""
    folder = sources.package_folder("emoji", "emoji")
    unicode_names = json.loads((folder / "unicode_codes" / "emoji.json").read_text("utf-8"))
    names = {_sequence(k): v["en"] for k, v in unicode_names.items()}
    folder = sources.package_folder("em", "em-keyboard")
    keywords = {_sequence(k): v for k, v in json.loads((folder / "emojis.json").read_text("utf-8")).items()}
    concepts = {}
    for record in sources.emoji_records():
        key = sources.code_points(record["unified"])
        name = _clean(names[key])
        flag = record["subcategory"] in ("country-flag", "subdivision-flag")
        if flag:
            name = f"flag of {name}"
        short = [s.replace("-", " ").replace("_", " ") for s in record["short_names"]]
        aliases = [s for s in short if re.fullmatch(r"[a-z ]{3,}", s) and s != name.lower() and not flag]
        concepts[key] = Concept(
            key=key,
            name=name,
            aliases=tuple(dict.fromkeys(aliases)),
            keywords=_keywords(keywords.get(key, []), name),
            groups=(GROUPS[record["category"]],),
            subgroups=(SUBGROUPS[record["subcategory"]],),
        )
    return concepts


@cache
def icon_concepts() -> dict[str, Concept]:
    """Icons by `package/name`."""
    concepts = {}
    for package, records in (("phosphor", sources.phosphor_records()), ("lucide", sources.lucide_records())):
        for record in records:
            key, name = f"{package}/{record['name']}", record["name"].replace("-", " ") + " icon"
            categories = tuple(c.lower().replace("-", " and ") for c in record["categories"])
            concepts[key] = Concept(
                key=key, name=name, keywords=_keywords(record["tags"], name), groups=categories or ("icons",)
            )
    return concepts


def icon_noun(icon: Concept) -> str:
    """The thing that an icon shows: its name without the word icon."""
    return icon.name.removesuffix(" icon").lower()


def nouns(concept: Concept) -> tuple[str, ...]:
    """Names of a concept, of which an icon of the same thing may have one."""
    found = dict.fromkeys(name.lower() for name in (concept.name, *concept.aliases))
    return tuple(name for name in found if name not in OTHER_ICONS)
