"""Evaluation sets: a round trip, and refusals that say what is wrong."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llip import storage
from llip.evaluation.retrieval import Captions
from llip.evaluation.sets import evaluation_set, find_sets
from llip.evaluation.sets.evaluation_set import EvaluationSet


def classification(**changes: object) -> EvaluationSet:
    table = pa.table({"image": pa.array([b"x", b"y"], pa.binary()), "label": pa.array([0, 1], pa.int32())})
    values: dict[str, object] = {"name": "birds", "task": "classification", "table": table, "classes": ("owl", "hen")}
    return EvaluationSet(**(values | {"templates": ("a drawing of a {}.",)} | changes))  # type: ignore[arg-type]


def labelled(label: list[object], image: list[bytes | None] | None = None) -> pa.Table:
    return pa.table({"image": pa.array(image or [b"x", b"y"], pa.binary()), "label": pa.array(label)})


def contexts(captions: list[str | None]) -> dict[str, object]:
    table = pa.table({"image": pa.array([b"x", b"y"]), "caption_a": ["a dog"] * 2, "caption_b": captions})
    return {"task": "context", "table": table}


def test_round_trip_and_find(tmp_path: Path) -> None:
    retrieval = EvaluationSet(
        name="scenes",
        task="retrieval",
        table=pa.table(
            {
                "image": pa.array([b"x"], pa.binary()),
                "captions": [["a cat", "red"]],
                "caption_types": [["object", "ground"]],
            }
        ),
    )
    evaluation_set.write(str(tmp_path / "b"), classification())
    evaluation_set.write(str(tmp_path / "a"), retrieval)
    assert evaluation_set.read(str(tmp_path / "b")) == classification()
    assert evaluation_set.read(str(tmp_path / "a")) == retrieval
    assert [found.uri for found in find_sets(str(tmp_path))] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_sets_behind_links_are_found_and_read(tmp_path: Path) -> None:
    """A linked folder of a set, a linked folder of sets, and a set of linked files."""
    evaluation_set.write(str(tmp_path / "elsewhere" / "birds"), classification())
    evaluation_set.write(str(tmp_path / "more" / "below" / "fish"), classification(name="fish"))
    evaluation_set.write(str(tmp_path / "store"), classification(name="ants"))
    sets = tmp_path / "sets"
    (sets / "ants").mkdir(parents=True)
    for file in (tmp_path / "store").iterdir():
        (sets / "ants" / file.name).symlink_to(file)
    (sets / "birds").symlink_to(tmp_path / "elsewhere" / "birds")
    (sets / "others").symlink_to(tmp_path / "more")
    found = {source.name: source.read() for source in find_sets(str(sets))}
    assert found == {name: classification(name=name) for name in ("ants", "birds", "fish")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ranking"}, "task 'ranking' is none of classification, retrieval, context"),
        ({"task": "retrieval"}, "a retrieval set needs the column 'captions'; it has image, label"),
        ({"classes": ("owl",)}, "labels 0 to 1, but 1 classes; too many in 1 rows, first in row 1"),
        ({"classes": ("owl", " ")}, "1 of 2 classes have no name, first class 1"),
        ({"templates": ()}, "it has no templates"),
        ({"table": labelled([0, None])}, "label is null in 1 rows, first in row 1"),
        ({"table": labelled([-1, 0])}, "labels -1 to 0, but 2 classes; too many in 1 rows, first in row 0"),
        ({"table": labelled([0.5, 1.0])}, "label is of type double; it has to hold whole numbers"),
        ({"table": labelled(["owl", "hen"])}, "label is of type string"),
        ({"table": labelled([0, 1], [None, None])}, "image is null in 2 rows, first in row 0"),
        (contexts(["a cat", None]), "caption_b is null in 1 rows, first in row 1"),
        (contexts(["a cat", " \t"]), "caption_b is empty in 1 rows, first in row 1"),
        (contexts(["", "a cat"]), "caption_b is empty in 1 rows, first in row 0"),
        ({"templates": ("a drawing",)}, "template 'a drawing' has to contain {} once"),
        ({"table": classification().table.slice(0, 0)}, "it has no rows"),
    ],
)
def test_refusals(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification(**changes)


def test_a_folder_without_a_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an evaluation set"):
        evaluation_set.read(str(tmp_path))
    evaluation_set.write(str(tmp_path), classification())
    storage.remove(str(tmp_path / "data-00000.parquet"))
    with pytest.raises(ValueError, match="holds no Parquet file"):
        evaluation_set.read(str(tmp_path))


@pytest.mark.parametrize("column", ["label", "image"])
def test_dictionary_encoded_columns_are_read_as_what_they_stand_for(tmp_path: Path, column: str) -> None:
    evaluation_set.write(str(tmp_path), classification())
    table = classification().table
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, table[column].dictionary_encode()), tmp_path / "data-00000.parquet")
    assert evaluation_set.read(str(tmp_path)) == classification()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("evaluation.json", b"{}", "evaluation.json has no 'name'"),
        ("evaluation.json", b'{"name": "x", "task": "context"}', "evaluation.json has no 'classes'"),
        ("data-00000.parquet", b"PAR1", "data-00000.parquet cannot be read as Parquet"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    evaluation_set.write(str(tmp_path), classification())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        evaluation_set.read(str(tmp_path))


def test_classes_that_nothing_tells_apart_or_that_have_no_images_are_named(caplog: pytest.LogCaptureFixture) -> None:
    data = classification(classes=("owl", "hen", "owl", "cow"))
    assert data.classes_without_images == ["owl", "cow"]
    assert "evaluation set birds: several classes are called owl" in caplog.text
    assert "evaluation set birds: 2 of 4 classes have no images (owl, cow)" in caplog.text


@pytest.mark.parametrize(
    ("captions", "types", "says"),
    [
        ([["a", ""], ["b"]], [["x", "x"], ["x"]], "1 empty captions are left out, first in row 0"),
        ([["a"], ["b", " ", None]], [["x"], ["x", "x", "x"]], "2 empty captions are left out, first in row 1"),
        ([["a"], [""]], [["x"], ["x"]], "row 1: 1 captions, 0 of them not empty"),
        ([["a"], []], [["x"], []], "row 1: 0 captions"),
        ([["a", "b"], ["c"]], [["x"], ["x"]], "row 0: 2 captions, 2 of them not empty, and 1 caption types"),
        ([["a"], ["c"]], [["x"], [None]], "row 1: 1 captions"),
    ],
)
def test_empty_captions_are_counted_and_an_image_without_any_is_named(
    captions: list[list[str]], types: list[list[str]], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = pa.table({"image": pa.array([b"x", b"y"], pa.binary()), "captions": captions, "caption_types": types})
    data = EvaluationSet(name="scenes", task="retrieval", table=table)
    if "left out" in says:
        assert Captions.of(data).texts == ["a", "b"]
        assert says in caplog.text
    else:
        with pytest.raises(ValueError, match=says):
            Captions.of(data)
