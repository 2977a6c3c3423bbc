"""Scenes of the built-in corpus: what captions and statements say is true, and what they speak of can be seen."""

import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from llip.data.corpus import CorpusConfig, captions, palette, scenes, sources, statements
from llip.data.corpus.catalogue import Catalogue, catalogue
from llip.data.corpus.pool import captioned, encode
from llip.evaluation.encode import decode

CONFIG = CorpusConfig()


@pytest.fixture(scope="module")
def drawings() -> Catalogue:
    return catalogue(CONFIG)


@pytest.mark.parametrize("style", sources.EMOJI_STYLES)
def test_things_lie_in_the_quarter_that_is_told(drawings: Catalogue, style: str) -> None:
    for index in range(30):
        scene = scenes.compose(drawings, CONFIG, scenes.random_of(7, index), style)
        image = scenes.render(scene, 64).astype(int)
        bare = scenes.render(replace(scene, placements=()), 64).astype(int)
        changed = np.abs(image - bare).sum(-1) > 0
        told = {text for text, kind in statements.statements(scene) if kind == "position"}
        (taken,) = (text for text, _ in statements.statements(scene) if text.startswith("things at"))
        for row, column in scenes.QUARTERS:
            quarter = changed[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
            place = f"at the {captions.ROWS[row]} {captions.COLUMNS[column]}"
            assert quarter.any() == any(text.endswith(place) for text in told)
            named = place.removeprefix("at ") in taken or taken == "things at every corner"
            assert quarter.any() == named, taken


def test_captions_of_positions_are_true(drawings: Catalogue) -> None:
    """Each caption is read back with a small grammar of its own and compared with the placements."""
    edges = {"left": 1, "right": 1, "top": 0, "bottom": 0}
    second = {"right", "bottom"}
    for index in range(400):
        scene = scenes.compose(drawings, CONFIG, scenes.random_of(11, index), "openmoji")
        caption = captions.SPEAKERS[("position", "relation")[index % 2]](scene, scenes.random_of(12, index))
        things = [p for p in scene.placements if _mentions(caption, p.concept.name)]
        if index % 2:
            if len(things) < 2:
                continue  # by categories or plates: see the test of statements
            first, other = sorted(things, key=lambda p: caption.index(p.concept.name))
            relation = caption[caption.index(first.concept.name) : caption.index(other.concept.name)]
            axis = 1 if "left" in relation or "right" in relation else 0
            before = any(word in relation.split() for word in ("left", "above"))
            assert first.quarter is not None and other.quarter is not None
            assert (first.quarter[axis] < other.quarter[axis]) == before, caption
            assert first.quarter[axis] != other.quarter[axis], caption
            continue
        words = set(caption.replace(":", " ").replace(",", " ").split())
        told = {word: int(word in second) for word in edges if word in words}
        assert told
        candidates = things or [p for p in scene.placements if p.concept.subgroups[0] in caption]
        assert any(
            all(p.quarter is not None and p.quarter[edges[w]] == side for w, side in told.items()) for p in candidates
        ), caption


def _mentions(caption: str, name: str) -> bool:
    return f" {name} " in f" {caption.replace(',', ' ').replace(':', ' ')} "


def test_captions_of_a_kind_are_true(drawings: Catalogue) -> None:
    for index in range(300):
        scene, said = captioned(drawings, replace(CONFIG, scene_share=0.7), index)
        shown = [p.concept for p in scene.placements]
        for caption, kind in said:
            if kind == "count" and any(noun in caption for noun in ("thing", "drawing", "object")):
                assert captions.NUMBERS[len(shown)] in caption.split()
            elif kind == "count":
                assert _is_true(caption, "count", scene)
            if kind == "ground":
                assert scene.color in caption or scene.texture in caption
            if kind == "object":
                assert any(n in caption for c in shown for n in (c.name, *c.aliases))
            if kind == "category":
                assert any(n in caption for c in shown for n in (*c.groups, *c.subgroups))


def test_statements_are_complete(drawings: Catalogue) -> None:
    """What any scene states is listed by exactly those scenes of which a literal reading says that it is true."""
    made = [scenes.compose(drawings, CONFIG, scenes.random_of(3, i), "noto") for i in range(40)]
    listed = [dict(statements.statements(scene)) for scene in made]
    said = {text: kind for of_scene in listed for text, kind in of_scene.items()}
    assert set(said.values()) == {"object", "position", "place", "relation", "plate", "category", "ground", "count"}
    for text, kind in said.items():
        for scene, of_scene in zip(made, listed, strict=True):
            assert (text in of_scene) == _is_true(text, kind, scene), text


def _is_true(text: str, kind: str, scene: scenes.Scene) -> bool:
    placements = scene.placements

    def called(phrase: str) -> list[scenes.Placement]:
        noun = phrase.removeprefix("a kind of ")
        noun = noun if noun != phrase else re.sub("^(an?|the) ", "", phrase)
        return [p for p in placements if noun in _nouns(p)]

    def lies(p: scenes.Placement, place: str) -> bool:
        assert p.quarter is not None
        return set(place.split()) <= {captions.ROWS[p.quarter[0]], captions.COLUMNS[p.quarter[1]]}

    match kind:
        case "object":
            return bool(called(text))
        case "position":
            noun, place = text.split(" at the ")
            return any(lies(p, place) for p in called(noun))
        case "place" if not text.startswith("things"):
            return all(
                any(lies(p, place) for p in called(noun))
                for noun, place in (half.split(" at the ") for half in text.split(" and "))
            )
        case "place":
            told = text.removeprefix("things at ").replace(", ", " and ").split(" and ")
            return (
                told == ["every corner"]
                if len(placements) == 4
                else len(told) == len(placements)
                and all(any(lies(p, place.removeprefix("the ")) for p in placements) for place in told)
            )
        case "relation":
            word = next(w for w in ("left of", "right of", "above", "below") if f" {w} " in text)
            first, second = text.split(f" {word} ")
            axis, sign = (1 if "of" in word else 0), (1 if word in ("left of", "above") else -1)
            return any(
                sign * a.quarter[axis] < sign * b.quarter[axis]  # type: ignore[index]
                for a in called(first)
                for b in called(second)
            )
        case "plate":
            noun, plate = text.split(" on ")
            return any(p in called(plate) for p in called(noun))
        case "category" if " and a kind of " in text:
            first, second = text.split(" and a kind of ")
            return any(a is not b for a in called(first) for b in called(f"a kind of {second}"))
        case "category":
            group = text.removeprefix("something of the group ")
            return bool(called(text)) or any(group in p.concept.groups for p in placements)
        case "ground":
            return set(text.split()[1:-1]) <= {scene.color, scene.texture}
        case _:
            number, _, noun = text.partition(" ")
            noun = noun if number == "one" else noun.removesuffix("s")
            found = placements if noun == "thing" else called(f"a {noun}")
            return captions.NUMBERS[len(found)] == number


def _nouns(placement: scenes.Placement) -> set[str]:
    plate = placement.plate
    assert plate is not None
    of_plate = {f"{plate.color} plate", plate.shape, f"{plate.color} {plate.shape}"}
    return of_plate | {placement.concept.name, *placement.concept.subgroups}


def test_captions_of_plates_are_true(drawings: Catalogue) -> None:
    """Every colour and shape that a caption says of a thing is that of its plate, and relations of plates hold."""
    for index in range(400):
        scene = scenes.compose(drawings, CONFIG, scenes.random_of(13, index), "noto")
        caption = captions.SPEAKERS["plate"](scene, scenes.random_of(14, index))
        told = {word for word in caption.replace(",", "").split() if word in (*palette.PLATES, *palette.SHAPES)}
        assert told
        assert any(
            told <= {p.plate.color, p.plate.shape} and any(noun in caption for noun in _nouns(p))
            for p in scene.placements
            if p.plate is not None
        ), caption
        several = captions.SPEAKERS["several"](scene, scenes.random_of(15, index))
        if "plate" not in several:
            continue
        words = "and|left of|right of|above|below"
        halves = re.split(rf"(?<=plate) (?:{words}) ", several)
        assert len(halves) == 2, several
        assert all(_is_true(half, "plate", scene) for half in halves), several
        word = several[len(halves[0]) : -len(halves[1])].strip()
        if word != "and":
            nouns = [half.split(" on ")[0] for half in halves]
            assert _is_true(f"{nouns[0]} {word} {nouns[1]}", "relation", scene), several


def test_plates_have_the_colour_and_the_shape_that_are_told(drawings: Catalogue) -> None:
    seen = set()
    for index in range(60):
        scene = scenes.compose(drawings, CONFIG, scenes.random_of(17, index), "noto")
        scene = replace(scene, texture="plain")
        image, bare = scenes.render(scene, 256), scenes.render(replace(scene, placements=()), 256)
        for p in scene.placements:
            assert p.plate is not None
            middle, margin = round((p.top + p.size / 2) * 256), scenes.PLATE_MARGIN
            assert tuple(image[middle, round((p.left - 0.3 * margin) * 256)]) == palette.PLATES[p.plate.color]
            corner = (round((edge - 0.8 * margin) * 256) for edge in (p.top, p.left))
            place = tuple(corner)
            assert (image[place] == bare[place]).all() == (p.plate.shape == "disc")
            seen.add((p.plate.color, p.plate.shape))
    assert len(seen) == len(palette.PLATES) * len(palette.SHAPES)


def _as_a_tower_sees(scene: scenes.Scene) -> np.ndarray:
    """Pixels [48, 48, 3] of the tiny towers, float."""
    return decode(encode(scenes.render(scene, 64)), 48, "here").permute(1, 2, 0).numpy().astype(float)


LUMINANCE = np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("color", palette.GROUNDS)
def test_grounds_are_visible_at_the_tiny_towers_size(color: str) -> None:
    """Contrast of a pattern in each patch of 12 pixels, and differences of patterns, of 255 levels."""
    patches = {}
    for texture in palette.TEXTURES:
        seen = _as_a_tower_sees(scenes.Scene(placements=(), color=color, texture=texture)) @ LUMINANCE
        patches[texture] = seen.reshape(4, 12, 4, 12).swapaxes(1, 2).reshape(16, 12, 12)
        low, high = np.percentile(patches[texture], [15, 85], axis=(1, 2))
        assert (high - low >= 35).all() if texture != "plain" else (high - low < 1).all()
    for one, other in combinations(palette.TEXTURES, 2):
        assert np.abs(patches[one] - patches[other]).mean() >= 10


def test_grounds_show_between_plates_and_plates_on_grounds(drawings: Catalogue) -> None:
    config = replace(CONFIG, min_drawings=4)
    for index in range(20):
        scene = scenes.compose(drawings, config, scenes.random_of(19, index), "noto")
        bare = _as_a_tower_sees(replace(scene, placements=()))
        covered = np.abs(_as_a_tower_sees(scene) - bare).max(-1) > 12
        assert 0.2 < covered.mean() < 0.87
    for plate in palette.PLATES.values():
        for ground in palette.GROUNDS.values():
            for shade in (1, palette.SHADE):
                assert np.abs(np.array(plate) - np.array(ground) * shade).max() >= 40


def test_grounds_differ_from_each_other_in_colour() -> None:
    for one, other in combinations(palette.GROUNDS.values(), 2):
        assert np.abs(np.subtract(one, other)).max() >= 30


def test_hard_negatives_are_false_and_say_nothing_new(drawings: Catalogue) -> None:
    kinds = set()
    for index in range(100):
        scene = scenes.compose(drawings, CONFIG, scenes.random_of(23, index), "noto")
        for kind, (true, *false) in statements.hard_negatives(scene, scenes.random_of(24, index), range(2, 5)):
            kinds.add(kind)
            assert false and true not in false
            for caption in (true, *false):
                match kind:
                    case "swapped_places":
                        held = _is_true(caption, "position", scene)
                    case "swapped_objects":
                        held = _is_true(caption, "relation", scene)
                    case "swapped_colors":
                        held = _is_true(caption, "plate", scene)
                    case _:
                        held = _is_true(caption, "count", scene)
                assert held == (caption == true), caption
                if kind == "swapped_objects":
                    assert sorted(caption.split()) == sorted(true.split())
    assert kinds == {"swapped_places", "swapped_objects", "swapped_colors", "wrong_count"}


def test_one_thing_is_in_the_singular(drawings: Catalogue) -> None:
    config = replace(CONFIG, min_drawings=1, max_drawings=1)
    for index in range(30):
        scene = scenes.compose(drawings, config, scenes.random_of(29, index), "noto")
        counts = {text for text, kind in statements.statements(scene) if kind == "count"}
        counts |= {text for text, kind in captions.describe(scene, config, scenes.random_of(index)) if kind == "count"}
        assert "one thing" in counts
        assert not [text for text in counts if re.search(r"\bone (\w+ )?\w+s\b", text)]
        assert "relation" not in {kind for _, kind in captions.describe(scene, config, scenes.random_of(index))}
