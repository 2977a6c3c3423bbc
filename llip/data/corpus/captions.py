"""Captions of an image: templates by kind, and the canonical statements that evaluation compares.

Every caption is true. It speaks of one aspect of the image (kinds `object`, `position`, `place`, `category`,
`ground`, `count`, `style`, `keywords`) or of more (`several`).
"""

from collections.abc import Callable
from random import Random

from llip.data.corpus.config import CorpusConfig
from llip.data.corpus.names import Concept
from llip.data.corpus.scenes import QUARTERS, Placement, Scene

NUMBERS = ("zero", "one", "two", "three", "four")
UNCOUNTED = {
    *("badminton", "basketball", "bread", "broccoli", "butter", "dishware", "emotion", "food", "garlic", "ginger"),
    *("golf", "hockey", "ice", "jeans", "mail", "money", "popcorn", "rice", "rugby", "salt", "seafood", "softball"),
    *("spaghetti", "sushi", "tennis", "volleyball", "weather", "wood", "yarn"),
}
ROWS, COLUMNS = ("top", "bottom"), ("left", "right")

OBJECT = (
    "{a}",
    "{a}",
    "{a}",
    "{name}",
    "there is {a}",
    "a picture of {a}",
    "a drawing of {a}",
    "{a} can be seen",
    "a picture that shows {a}",
    "look at the {name}",
)
POSITION = (
    "{a} at the {place}",
    "{a} in the {place} corner",
    "{a}, {place}",
    "{place}: {a}",
    "at the {place} there is {a}",
    "the {name} is at the {place}",
)
PLACES = ("things at {places}", "there are things at {places}", "{places}: things", "something at {places}")
SIDE = ("{a} at the {side}", "{a} in the {side} half", "the {name} is at the {side}")
RELATION = {
    "column": ("{a} left of {b}", "{a} to the left of {b}", "{b} right of {a}", "{b} to the right of {a}"),
    "row": ("{a} above {b}", "{b} below {a}", "{a} over {b}", "{b} under {a}"),
}
CATEGORY = ("{c}", "a kind of {category}", "there is {c}", "a picture with {c}", "{c} can be seen")
GROUP = ("something of the group {group}", "{group}", "a picture from {group}")
GROUND = (
    "{colored} background",
    "on {color}",
    "the background is {color}",
    "a {texture} background",
    "the background is {texture}",
    "a {texture} {color} background",
    "a {texture} {color} ground",
)
COUNT = ("{number} {things}", "{number} {things} in one picture", "a picture with {number} {things}")
STYLE = ("{look}", "{look}, {name}", "{a}: {look}")
ICON_STYLE = ("{look} in {ink}", "a {ink} {name}", "{name} in {ink}")


def with_article(noun: str) -> str:
    """A name with its article: `an apple`, `the flag of Chad`; plurals and what cannot be counted have none."""
    if noun.startswith("flag of "):
        return f"the {noun}"
    plural = noun.endswith("s") and not noun.endswith(("ss", "us", "is"))
    if plural or noun.split()[-1] in UNCOUNTED:
        return noun
    vowel = noun[0].lower() in "aeiou" and not noun.lower().startswith(("uni", "use", "uku", "eu"))
    return f"{'an' if vowel else 'a'} {noun}"


def _place(quarter: tuple[int, int]) -> str:
    """The name of a place: `top left` and so on."""
    row, column = quarter
    return f"{ROWS[row]} {COLUMNS[column]}"


def _object(scene: Scene, random: Random) -> str:
    concept = random.choice(scene.placements).concept
    name = random.choice((concept.name, *concept.aliases)) if scene.is_single else concept.name
    return random.choice(OBJECT).format(a=with_article(name), name=name)


def _position(scene: Scene, random: Random) -> str:
    """Where one thing is: by its name, by its category alone, or as seen from another.

    Few images of a batch share a thing, so a name finds the image without its place; a category does not.
    """
    draw = random.random()
    placement = random.choice(scene.placements)
    others = [p for p in scene.placements if p is not placement]
    if others and draw < 0.12:
        return _relation(placement, random.choice(others), random)
    assert placement.quarter is not None
    name = placement.concept.name if draw < 0.62 else placement.concept.subgroups[0]
    words = {"a": with_article(name), "name": name}
    if random.random() < 0.2:
        axis = random.randrange(2)
        return random.choice(SIDE).format(side=(ROWS, COLUMNS)[axis][placement.quarter[axis]], **words)
    return random.choice(POSITION).format(place=_place(placement.quarter), **words)


def _taken(scene: Scene) -> str:
    """Every place where something is, in reading order: `the top left and the bottom right`."""
    places = [f"the {_place(q)}" for q in QUARTERS if any(p.quarter == q for p in scene.placements)]
    if len(places) == len(QUARTERS):
        return "every corner"
    return " and ".join([*places[:-2], " and ".join(places[-2:])])


def _places(scene: Scene, random: Random) -> str:
    """A caption of the places that are taken, whatever is there. It names all: one place says little of an image."""
    return random.choice(PLACES).format(places=_taken(scene))


def _relation(one: Placement, other: Placement, random: Random) -> str:
    assert one.quarter is not None and other.quarter is not None
    axis = random.choice([i for i in range(2) if one.quarter[i] != other.quarter[i]])
    first, second = sorted((one, other), key=lambda p: p.quarter[axis])  # type: ignore[index]
    templates = RELATION[("row", "column")[axis]]
    return random.choice(templates).format(a=with_article(first.concept.name), b=with_article(second.concept.name))


def _category(scene: Scene, random: Random) -> str:
    concept = random.choice(scene.placements).concept
    if not concept.subgroups or random.random() < 0.35:
        return random.choice(GROUP).format(group=random.choice(concept.groups))
    category = random.choice(concept.subgroups)
    return random.choice(CATEGORY).format(category=category, c=with_article(category))


def _ground(scene: Scene, random: Random) -> str:
    return random.choice(GROUND).format(color=scene.color, colored=with_article(scene.color), texture=scene.texture)


def _count(scene: Scene, random: Random) -> str:
    things = random.choice(("thing", "drawing", "object")) + "s" * (len(scene.placements) > 1)
    return random.choice(COUNT).format(number=NUMBERS[len(scene.placements)], things=things)


def _several(scene: Scene, random: Random) -> str:
    """A caption of two things, or of a thing and the ground."""
    shown = random.sample(scene.placements, min(2, len(scene.placements)))
    things = [with_article(p.concept.name) for p in shown]
    if len(things) == 1 or random.random() < 0.4:
        return f"{things[0]} on {with_article(scene.color)} background"
    return f"{things[0]} and {things[1]}"


def _keywords(scene: Scene, random: Random) -> str:
    concept = scene.placements[0].concept
    words = random.sample(concept.keywords, min(len(concept.keywords), random.randint(1, 4)))
    named = [concept.name] if not words or random.random() < 0.5 else []
    return ", ".join(named + words)


def _style(scene: Scene, random: Random) -> str:
    placement = scene.placements[0]
    name = placement.concept.name
    templates = STYLE + ICON_STYLE if placement.drawing.is_icon else STYLE
    return random.choice(templates).format(
        look=random.choice(scene.source.looks), ink=placement.ink, name=name, a=with_article(name)
    )


SPEAKERS: dict[str, Callable[[Scene, Random], str]] = {
    "object": _object,
    "position": _position,
    "place": _places,
    "category": _category,
    "ground": _ground,
    "count": _count,
    "several": _several,
    "keywords": _keywords,
    "style": _style,
}

SINGLE_KINDS = {"object": 0.35, "keywords": 0.2, "category": 0.2, "style": 0.1, "ground": 0.05, "several": 0.1}
"""Shares of the caption kinds of a single drawing."""


def describe(scene: Scene, config: CorpusConfig, random: Random) -> list[tuple[str, str]]:
    """Distinct captions of an image with their kinds, at most `config.captions`."""
    kinds = SINGLE_KINDS if scene.is_single else vars(config.kinds)
    drawn = random.choices(list(kinds), weights=list(kinds.values()), k=config.captions)
    captions: dict[str, str] = {}
    for kind in drawn:
        captions.setdefault(SPEAKERS[kind](scene, random), kind)
    return list(captions.items())


def hard_negatives(scene: Scene, random: Random, counts: range) -> list[tuple[str, list[str]]]:
    """Captions of which the first alone is true, with the kind of what is wrong in the others.

    `swapped_places`: a thing where another one is · `swapped_objects`: two things the other way round ·
    `wrong_count`: other numbers of things, of `counts`. Every word of a false caption of the first two kinds occurs in
    what is true of the image.
    """
    found = []
    if len(scene.placements) > 1:
        one, other = random.sample(scene.placements, 2)
        assert one.quarter is not None and other.quarter is not None
        name = with_article(one.concept.name)
        places = [f"{name} at the {_place(quarter)}" for quarter in (one.quarter, other.quarter)]
        found.append(("swapped_places", places))
        axis = random.choice([i for i in range(2) if one.quarter[i] != other.quarter[i]])
        first, second = sorted((one, other), key=lambda p: p.quarter[axis])  # type: ignore[index]
        template = random.choice(RELATION[("row", "column")[axis]])
        names = [with_article(p.concept.name) for p in (first, second)]
        swapped = [template.format(a=a, b=b) for a, b in (names, names[::-1])]
        found.append(("swapped_objects", swapped))
    if len(counts) > 1:
        present = len(scene.placements)
        told = [f"{NUMBERS[n]} thing{'s' * (n > 1)}" for n in (present, *(n for n in counts if n != present))]
        found.append(("wrong_count", told))
    return found


def object_statement(concept: Concept) -> str:
    return with_article(concept.name)


def statements(scene: Scene) -> list[tuple[str, str]]:
    """Everything that is true of an image in one phrasing a fact, with the kinds: equal strings are equal facts."""
    facts: dict[str, str] = {}
    for placement in scene.placements:
        concept = placement.concept
        facts[object_statement(concept)] = "object"
        for category in concept.subgroups:
            facts.setdefault(f"a kind of {category}", "category")
        for group in concept.groups:
            facts.setdefault(f"something of the group {group}", "category")
        if scene.is_single:
            for keyword in concept.keywords:
                facts.setdefault(keyword, "keywords")
        if placement.quarter is not None:
            facts[f"{with_article(concept.name)} at the {_place(placement.quarter)}"] = "position"
    facts[f"{with_article(scene.color)} background"] = "ground"
    facts[f"a {scene.texture} background"] = "ground"
    if not scene.is_single:
        facts[f"things at {_taken(scene)}"] = "place"
        count = len(scene.placements)
        facts[f"{NUMBERS[count]} thing{'s' * (count > 1)}"] = "count"
    return list(facts.items())
