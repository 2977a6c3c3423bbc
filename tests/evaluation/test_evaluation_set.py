"""Evaluation sets: a round trip, and refusals that say what is wrong."""

from pathlib import Path

import pyarrow as pa
import pytest

from llip import storage
from llip.evaluation.sets import evaluation_set
from llip.evaluation.sets.evaluation_set import EvaluationSet


def classification(**changes: object) -> EvaluationSet:
    table = pa.table({"image": pa.array([b"x", b"y"], pa.binary()), "label": pa.array([0, 1], pa.int32())})
    values: dict[str, object] = {"name": "birds", "task": "classification", "table": table, "classes": ("owl", "hen")}
    return EvaluationSet(**(values | {"templates": ("a drawing of a {}.",)} | changes))  # type: ignore[arg-type]


def test_round_trip_and_find(tmp_path: Path) -> None:
    retrieval = EvaluationSet(
        name="scenes",
        task="retrieval",
        table=pa.table(
            {"image": pa.array([b"x"], pa.binary()), "captions": [["a cat", "red"]], "kinds": [["object", "ground"]]}
        ),
    )
    evaluation_set.write(str(tmp_path / "b"), classification())
    evaluation_set.write(str(tmp_path / "a"), retrieval)
    assert evaluation_set.read(str(tmp_path / "b")) == classification()
    assert evaluation_set.read(str(tmp_path / "a")) == retrieval
    assert evaluation_set.find(str(tmp_path)) == [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ranking"}, "task 'ranking' is none of classification, retrieval, context"),
        ({"task": "retrieval"}, "a retrieval set needs the column 'captions'; it has image, label"),
        ({"classes": ("owl",)}, "labels 0 to 1, but 1 classes"),
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
