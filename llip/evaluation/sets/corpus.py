"""Evaluation sets of the built-in corpus: what a trained model knows, on images that training never drew.

| set | task | images |
| --- | --- | --- |
| scenes_in_style | retrieval | new scenes in the styles of training |
| scenes_held_out_style | retrieval | scenes in the held-out style |
| scenes_in_icons | retrieval | scenes of icons: training has these icons nowhere, and no icons in scenes |
| context | context | new scenes in the styles of training, two captions each |
| hard_negatives | choice | new scenes in the styles of training: places, objects, colours, counts |
| group, subgroup, concept | classification | single drawings in the held-out style |
| held_out_concepts | retrieval | single drawings of concepts that training never saw |
| held_out_concepts_group, held_out_concepts_subgroup | classification | the same |
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa

from llip import storage
from llip.data.corpus.catalogue import TRAINING_EMOJI_STYLES, Catalogue, catalogue
from llip.data.corpus.config import CorpusConfig
from llip.data.corpus.names import Concept
from llip.data.corpus.pool import Spread, encode
from llip.data.corpus.scenes import Scene, compose, random_of, render, single
from llip.data.corpus.sources import HELD_OUT_STYLE, ICON_STYLES, Drawing
from llip.data.corpus.statements import hard_negatives, object_statement, statements
from llip.evaluation.sets import evaluation_set, find_sets
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.fields import differences, to_dict
from llip.progress import bar

CONFIG = "corpus.json"

TEMPLATES = ("{}", "a {}", "a drawing of a {}", "a picture of a {}", "an emoji of a {}")
GROUP_TEMPLATES = ("{}", "something of the group {}", "a picture from {}")


def write_evaluation(folder: str, config: CorpusConfig, *, progress: bool = True, spread: Spread = map) -> list[str]:
    """Write every set into its own folder under `folder` and return these folders; finished ones are left as they are.
    `spread` maps what draws sets.

    Raises ValueError where the folder holds sets of other settings, or where a package is missing.
    """
    marker = storage.join(folder, CONFIG)
    if storage.exists(marker):
        if changed := differences(storage.read_json(marker), to_dict(config)):
            raise ValueError(
                f"{folder} was made with other settings ({'; '.join(changed)}); choose another folder or remove it"
            )
        return [found.uri for found in find_sets(folder)]
    made = spread(partial(_made, config=config), BUILDERS)
    for sets in bar(made, total=len(BUILDERS), desc="evaluation sets", unit="set", disable=not progress):
        for data in sets:
            evaluation_set.write(storage.join(folder, data.name), data)
    storage.write_json(marker, to_dict(config))
    return [found.uri for found in find_sets(folder)]


Builder = Callable[[Catalogue, CorpusConfig], list[EvaluationSet]]


def _made(make: Builder, config: CorpusConfig) -> list[EvaluationSet]:
    return make(catalogue(config), config)


def _scenes(drawings: Catalogue, config: CorpusConfig, stream: str, styles: Sequence[str]) -> list[Scene]:
    scenes = []
    for index in range(config.evaluation_images):
        random = random_of(config.seed, stream, index)
        scenes.append(compose(drawings, config, random, random.choice(styles)))
    return scenes


def _singles(drawings: Catalogue, config: CorpusConfig, stream: str, chosen: list[Drawing]) -> list[Scene]:
    random = random_of(config.seed, stream)
    picked = random.sample(chosen, min(len(chosen), config.evaluation_images))
    return [single(drawings, d, random) for d in picked]


def _images(scenes: list[Scene], config: CorpusConfig) -> list[bytes]:
    return [encode(render(s, config.canvas)) for s in scenes]


def _retrieval(name: str, scenes: list[Scene], config: CorpusConfig) -> EvaluationSet:
    facts = [statements(s) for s in scenes]
    of_type: dict[str, set[str]] = {}
    for text, caption_type in (fact for of_scene in facts for fact in of_scene):
        of_type.setdefault(caption_type, set()).add(text)
    used = {text for texts in of_type.values() for text in sorted(texts, key=_order)[: config.evaluation_captions]}
    facts = [[(text, caption_type) for text, caption_type in of_scene if text in used] for of_scene in facts]
    columns = {
        "image": _images(scenes, config),
        "captions": [[text for text, _ in f] for f in facts],
        "caption_types": [[caption_type for _, caption_type in f] for f in facts],
    }
    return EvaluationSet(name=name, task="retrieval", table=pa.table(columns))


def _order(text: str) -> bytes:
    """A place that depends on the words alone, whatever images there are."""
    return hashlib.sha256(text.encode()).digest()


def _classification(
    name: str, scenes: list[Scene], config: CorpusConfig, label: Callable[[Concept], str], templates: tuple[str, ...]
) -> EvaluationSet:
    labels = [label(s.placements[0].concept) for s in scenes]
    classes = tuple(sorted(set(labels)))
    index = {c: i for i, c in enumerate(classes)}
    table = pa.table({"image": _images(scenes, config), "label": pa.array([index[t] for t in labels], pa.int32())})
    return EvaluationSet(name=name, task="classification", table=table, classes=classes, templates=templates)


def _scene_sets(drawings: Catalogue, config: CorpusConfig) -> list[EvaluationSet]:
    in_style = _scenes(drawings, config, "scenes_in_style", TRAINING_EMOJI_STYLES)
    held_out = _scenes(drawings, config, "scenes_held_out_style", (HELD_OUT_STYLE,))
    sets = {"scenes_in_style": in_style, "scenes_held_out_style": held_out}
    icons = [s for s in ICON_STYLES if len(drawings.concepts_in(s)) >= config.max_drawings]
    if icons:
        sets["scenes_in_icons"] = _scenes(drawings, config, "scenes_in_icons", icons)
    return [_retrieval(name, scenes, config) for name, scenes in sets.items()]


def _context_set(drawings: Catalogue, config: CorpusConfig) -> list[EvaluationSet]:
    scenes = [s for s in _scenes(drawings, config, "context", TRAINING_EMOJI_STYLES) if len(s.placements) > 1]
    if not scenes:
        return []
    columns = {
        "image": _images(scenes, config),
        "caption_a": [object_statement(s.placements[0].concept) for s in scenes],
        "caption_b": [object_statement(s.placements[1].concept) for s in scenes],
    }
    return [EvaluationSet(name="context", task="context", table=pa.table(columns))]


def _hard_negative_set(drawings: Catalogue, config: CorpusConfig) -> list[EvaluationSet]:
    """Rows of one kind after the other, each kind once a scene; the true caption stands anywhere."""
    scenes = _scenes(drawings, config, "hard_negatives", TRAINING_EMOJI_STYLES)
    random = random_of(config.seed, "hard_negatives")
    counts = range(config.min_drawings, config.max_drawings + 1)
    rows = []
    for scene, image in zip(scenes, _images(scenes, config), strict=True):
        for kind, (true, *false) in hard_negatives(scene, random, counts):
            place = random.randint(0, len(false))
            rows.append((kind, image, [*false[:place], true, *false[place:]], place))
    if not rows:
        return []
    rows.sort(key=lambda row: row[0])
    kinds, images, captions, places = zip(*rows, strict=True)
    columns = {"image": images, "captions": captions, "true": pa.array(places, pa.int32()), "kind": kinds}
    return [EvaluationSet(name="hard_negatives", task="choice", table=pa.table(columns))]


def _group(concept: Concept) -> str:
    return concept.groups[0]


def _subgroup(concept: Concept) -> str:
    return concept.subgroups[0]


def _name(concept: Concept) -> str:
    return concept.name


def _held_out_style_sets(drawings: Catalogue, config: CorpusConfig) -> list[EvaluationSet]:
    scenes = _singles(drawings, config, "held_out_style", drawings.held_out_style)
    return [
        _classification("group", scenes, config, _group, GROUP_TEMPLATES),
        _classification("subgroup", scenes, config, _subgroup, TEMPLATES),
        _classification("concept", scenes, config, _name, TEMPLATES),
    ]


def _held_out_concept_sets(drawings: Catalogue, config: CorpusConfig) -> list[EvaluationSet]:
    scenes = _singles(drawings, config, "held_out_concepts", drawings.held_out_concepts)
    if not scenes:
        return []
    return [
        _retrieval("held_out_concepts", scenes, config),
        _classification("held_out_concepts_group", scenes, config, _group, GROUP_TEMPLATES),
        _classification("held_out_concepts_subgroup", scenes, config, _subgroup, TEMPLATES),
    ]


BUILDERS = (_scene_sets, _context_set, _hard_negative_set, _held_out_style_sets, _held_out_concept_sets)
