"""Captions of an image: templates by caption type.

Every caption is true. It speaks of one aspect of the image (types `object`, `position`, `relation`, `plate`, `place`,
`category`, `ground`, `count`, `style`, `keywords`) or of more (`several`).

Few images of a batch share a thing, so its name finds the image whatever else a caption says. Captions of where
things are, and of what they stand on, therefore name a thing by its category, or by its plate, as often.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from llip.data.corpus.config import CorpusConfig
from llip.data.corpus.scenes import QUARTERS, Placement, Plate, Scene

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
PLATE = (
    "{a} on {plate}",
    "{a} on {plate}",
    "{a} that stands on {plate}",
    "the {name} is on {plate}",
    "{plate} under {a}",
    "{a}, on {plate}",
)
PLACES = ("things at {places}", "there are things at {places}", "{places}: things", "something at {places}")
SIDE = ("{a} at the {side}", "{a} in the {side} half", "the {name} is at the {side}")
RELATION = {
    "column": ("{a} left of {b}", "{b} right of {a}"),
    "row": ("{a} above {b}", "{b} below {a}"),
}
CATEGORY = ("{c}", "a kind of {category}", "there is {c}", "a picture with {c}", "{c} can be seen")
GROUP = ("something of the group {group}", "{group}", "a picture from {group}")
GROUND = (
    "{colored} background",
    "on {color} ground",
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


def place_name(quarter: tuple[int, int] | None) -> str:
    """The name of a place: `top left` and so on."""
    assert quarter is not None, "a single drawing has no place"
    row, column = quarter
    return f"{ROWS[row]} {COLUMNS[column]}"


def plate_noun(plate: Plate | None, *, color: bool = True, shape: bool = False) -> str:
    """A plate by its colour, its shape or both: `red plate`, `disc`, `red disc`."""
    assert plate is not None, "a single drawing has no plate"
    return f"{plate.color} " * color + (plate.shape if shape else "plate")


def _some_plate(placement: Placement, random: Random) -> str:
    color, shape = random.choice(((True, False), (True, True), (False, True)))
    return with_article(plate_noun(placement.plate, color=color, shape=shape))


def _some_noun(placement: Placement, random: Random, named: float) -> str:
    """A thing by its name, or by its category."""
    return placement.concept.name if random.random() < named else placement.concept.subgroups[0]


def _object(scene: Scene, random: Random) -> str:
    concept = random.choice(scene.placements).concept
    name = random.choice((concept.name, *concept.aliases)) if scene.is_single else concept.name
    return random.choice(OBJECT).format(a=with_article(name), name=name)


def _position(scene: Scene, random: Random) -> str:
    placement = random.choice(scene.placements)
    name = _some_noun(placement, random, named=0.55)
    words = {"a": with_article(name), "name": name}
    if random.random() < 0.35:
        assert placement.quarter is not None
        axis = random.randrange(2)
        return random.choice(SIDE).format(side=(ROWS, COLUMNS)[axis][placement.quarter[axis]], **words)
    return random.choice(POSITION).format(place=place_name(placement.quarter), **words)


def _plate(scene: Scene, random: Random) -> str:
    placement = random.choice(scene.placements)
    name = _some_noun(placement, random, named=0.5)
    return random.choice(PLATE).format(a=with_article(name), name=name, plate=_some_plate(placement, random))


def _relation(scene: Scene, random: Random) -> str:
    """Two things, or two plates, as seen from one another."""
    one, other = random.sample(scene.placements, 2)
    if random.random() < 0.5:
        return related(one, other, random, lambda p: plate_noun(p.plate))
    return related(one, other, random, lambda p: _some_noun(p, random, named=0.4))


def related(one: Placement, other: Placement, random: Random, noun: Callable[[Placement], str]) -> str:
    """Relation of two placements in different quarters, each called by its noun."""
    axis, first, second = in_order(one, other, random)
    template = random.choice(RELATION[("row", "column")[axis]])
    return template.format(a=with_article(noun(first)), b=with_article(noun(second)))


def in_order(one: Placement, other: Placement, random: Random) -> tuple[int, Placement, Placement]:
    """An axis on which two placements differ (0: rows, 1: columns), with that of the lower index first."""
    assert one.quarter is not None and other.quarter is not None
    axis = random.choice([i for i in range(2) if one.quarter[i] != other.quarter[i]])
    return (axis, one, other) if one.quarter[axis] < other.quarter[axis] else (axis, other, one)


def taken(scene: Scene) -> str:
    """Every place where something is, in reading order: `the top left and the bottom right`."""
    places = [f"the {place_name(q)}" for q in QUARTERS if any(p.quarter == q for p in scene.placements)]
    if len(places) == len(QUARTERS):
        return "every corner"
    return " and ".join([*places[:-2], " and ".join(places[-2:])])


def laid_out(placements: Sequence[Placement]) -> str:
    """Places of plates, in reading order: `a red plate at the top left and a blue plate at the bottom right`."""
    ordered = sorted(placements, key=lambda p: QUARTERS.index(p.quarter))
    return " and ".join(f"{with_article(plate_noun(p.plate))} at the {place_name(p.quarter)}" for p in ordered)


def plate_sides(placement: Placement) -> list[str]:
    """On which sides a plate lies: `a red plate at the top`, `a red plate at the left`."""
    assert placement.quarter is not None
    row, column = placement.quarter
    return [f"{with_article(plate_noun(placement.plate))} at the {side}" for side in (ROWS[row], COLUMNS[column])]


def _places(scene: Scene, random: Random) -> str:
    """A caption of the places that are taken, or of plates, whatever stands on them.

    It names all places, or the colours at some: one place says little of an image.
    """
    draw = random.random()
    if draw < 0.2:
        return random.choice(plate_sides(random.choice(scene.placements)))
    if draw < 0.6:
        return laid_out(random.sample(scene.placements, min(len(scene.placements), random.randint(1, 2))))
    return random.choice(PLACES).format(places=taken(scene))


def _category(scene: Scene, random: Random) -> str:
    concept = random.choice(scene.placements).concept
    if not concept.subgroups or random.random() < 0.35:
        return random.choice(GROUP).format(group=random.choice(concept.groups))
    category = random.choice(concept.subgroups)
    if len(scene.placements) > 1 and random.random() < 0.5:
        return two_categories(random.sample(scene.placements, 2))
    return random.choice(CATEGORY).format(category=category, c=with_article(category))


def two_categories(placements: Sequence[Placement]) -> str:
    """The categories of two things, in the order of the alphabet."""
    first, second = sorted(p.concept.subgroups[0] for p in placements)
    return f"a kind of {first} and a kind of {second}"


def _ground(scene: Scene, random: Random) -> str:
    return random.choice(GROUND).format(color=scene.color, colored=with_article(scene.color), texture=scene.texture)


def counted(scene: Scene) -> list[str]:
    """Counts of the plates of each colour, of each shape, and of both together: `two red plates`."""
    kinds = ((True, False), (False, True), (True, True))
    nouns = Counter(plate_noun(p.plate, color=c, shape=s) for c, s in kinds for p in scene.placements)
    return [f"{NUMBERS[count]} {noun}{'s' * (count > 1)}" for noun, count in nouns.items()]


def _count(scene: Scene, random: Random) -> str:
    if random.random() < 0.5:
        return random.choice(counted(scene))
    things = random.choice(("thing", "drawing", "object")) + "s" * (len(scene.placements) > 1)
    return random.choice(COUNT).format(number=NUMBERS[len(scene.placements)], things=things)


def on_plate(placement: Placement, noun: str) -> str:
    """A thing, called by a noun, and the colour that it stands on: `an apple on a red plate`."""
    return f"{with_article(noun)} on {with_article(plate_noun(placement.plate))}"


def _several(scene: Scene, random: Random) -> str:
    """A caption of two things, on their plates or not, or of a thing and the ground."""
    shown = random.sample(scene.placements, min(2, len(scene.placements)))
    nouns = [p.concept.name if scene.is_single else _some_noun(p, random, named=0.5) for p in shown]
    draw = random.random()
    if len(shown) == 1 or draw < 0.2:
        return f"{with_article(nouns[0])} on {with_article(scene.color)} background"
    if draw < 0.4:
        return " and ".join(map(with_article, nouns))
    bound = [on_plate(p, noun) for p, noun in zip(shown, nouns, strict=True)]
    if draw < 0.7:
        return " and ".join(bound)
    axis, first, _ = in_order(shown[0], shown[1], random)
    words = dict(zip("ab", bound if first is shown[0] else bound[::-1], strict=True))
    return random.choice(RELATION[("row", "column")[axis]]).format(**words)


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
    "relation": _relation,
    "plate": _plate,
    "place": _places,
    "category": _category,
    "ground": _ground,
    "count": _count,
    "several": _several,
    "keywords": _keywords,
    "style": _style,
}

SINGLE_TYPES = {"object": 0.35, "keywords": 0.2, "category": 0.2, "style": 0.1, "ground": 0.05, "several": 0.1}
"""Shares of the caption types of a single drawing."""


def describe(scene: Scene, config: CorpusConfig, random: Random) -> list[tuple[str, str]]:
    """Distinct captions of an image with their types, at most `config.captions`. One thing alone has no relation."""
    shares = SINGLE_TYPES if scene.is_single else vars(config.caption_types)
    drawn = random.choices(list(shares), weights=list(shares.values()), k=config.captions)
    captions: dict[str, str] = {}
    for chosen in drawn:
        chosen = "object" if chosen == "relation" and len(scene.placements) < 2 else chosen
        captions.setdefault(SPEAKERS[chosen](scene, random), chosen)
    return list(captions.items())
