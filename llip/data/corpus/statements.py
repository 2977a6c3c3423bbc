"""True statements about an image, one phrasing a fact, and hard negatives: one true caption among false ones."""

from collections.abc import Iterator
from itertools import permutations, product
from random import Random

from llip.data.corpus.captions import (
    COLUMNS,
    NUMBERS,
    RELATION,
    ROWS,
    counted,
    in_order,
    laid_out,
    on_plate,
    place_name,
    plate_noun,
    plate_sides,
    taken,
    two_categories,
    with_article,
)
from llip.data.corpus.names import Concept
from llip.data.corpus.scenes import Placement, Scene


def object_statement(concept: Concept) -> str:
    return with_article(concept.name)


def statements(scene: Scene) -> list[tuple[str, str]]:
    """All facts about an image, one phrasing each, with their caption types: equal strings are equal facts."""
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
    facts[f"{with_article(scene.color)} background"] = "ground"
    facts[f"a {scene.texture} background"] = "ground"
    facts[f"a {scene.texture} {scene.color} background"] = "ground"
    if not scene.is_single:
        facts |= _arrangement(scene)
    return list(facts.items())


def _arrangement(scene: Scene) -> dict[str, str]:
    """Facts about where things are, what they stand on and how many they are."""
    facts = {f"things at {taken(scene)}": "place"}
    count = len(scene.placements)
    facts |= dict.fromkeys([f"{NUMBERS[count]} thing{'s' * (count > 1)}", *counted(scene)], "count")
    for placement in scene.placements:
        name = with_article(placement.concept.name)
        assert placement.quarter is not None
        row, column = placement.quarter
        for place in (place_name(placement.quarter), ROWS[row], COLUMNS[column]):
            facts[f"{name} at the {place}"] = "position"
        facts |= dict.fromkeys([laid_out([placement]), *plate_sides(placement)], "place")
        facts[on_plate(placement, placement.concept.name)] = "plate"
        facts[f"{name} on {with_article(plate_noun(placement.plate, color=False, shape=True))}"] = "plate"
    for one, other in permutations(scene.placements, 2):
        facts[laid_out((one, other))] = "place"
        facts[two_categories((one, other))] = "category"
        facts |= dict.fromkeys(_relations(one, other), "relation")
    return facts


def _relations(one: Placement, other: Placement) -> Iterator[str]:
    """Relations of two placements, by their categories and by their plates; nothing where they share these.

    Names are not used: they would find the image, whatever is said between them. The nouns stand in the order of the
    alphabet, which decides between `left of` and `right of`.
    """
    assert one.quarter is not None and other.quarter is not None
    nouns = (
        [p.concept.subgroups[0] for p in (one, other)],
        [plate_noun(p.plate) for p in (one, other)],
    )
    for (first, second), axis in product(nouns, (0, 1)):
        step = other.quarter[axis] - one.quarter[axis]
        if step and first < second:
            word = (("above", "below"), ("left of", "right of"))[axis][step < 0]
            yield f"{with_article(first)} {word} {with_article(second)}"


def hard_negatives(scene: Scene, random: Random, counts: range) -> list[tuple[str, list[str]]]:
    """Captions with one true one, the first, and the kind of error in the others.

    `swapped_places`: a thing where another one is · `swapped_objects`: two things the other way round ·
    `swapped_colors`: a thing on another one's plate · `wrong_count`: other numbers of things, of `counts`. Every
    word of a false caption of the first three kinds occurs in what is true of the image.
    """
    found = []
    if len(scene.placements) > 1:
        one, other = random.sample(scene.placements, 2)
        name = with_article(one.concept.name)
        found.append(("swapped_places", [f"{name} at the {place_name(p.quarter)}" for p in (one, other)]))
        axis, *pair = in_order(one, other, random)
        template = random.choice(RELATION[("row", "column")[axis]])
        names = [with_article(p.concept.name) for p in pair]
        found.append(("swapped_objects", [template.format(a=a, b=b) for a, b in (names, names[::-1])]))
    pairs = [(a, b) for a, b in permutations(scene.placements, 2) if plate_noun(a.plate) != plate_noun(b.plate)]
    if pairs:
        one, other = random.choice(pairs)
        name = with_article(one.concept.name)
        bound = [f"{name} on {with_article(plate_noun(p.plate))}" for p in (one, other)]
        found.append(("swapped_colors", bound))
    if len(counts) > 1:
        present = len(scene.placements)
        told = [f"{NUMBERS[n]} thing{'s' * (n > 1)}" for n in (present, *(n for n in counts if n != present))]
        found.append(("wrong_count", told))
    return found
