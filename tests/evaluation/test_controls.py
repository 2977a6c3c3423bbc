"""Negative controls, and that no score knows in which order a set lists its rows, classes or captions."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.evaluation_samples import make_sets, picture

from llip import create_model
from llip.contrastive import ContrastiveModel
from llip.evaluation import controls, evaluate_model
from llip.evaluation.metrics import Metric
from llip.evaluation.sets.evaluation_set import EvaluationSet

ROWS = 12


def model_of(name: str) -> ContrastiveModel:
    torch.manual_seed(0)
    return create_model(name).eval()


def choices() -> EvaluationSet:
    columns = {
        "image": [picture(i) for i in range(ROWS)],
        "captions": [[f"thing {i} of {c}" for c in range(3)] for i in range(ROWS)],
        "true": pa.array([i % 3 for i in range(ROWS)], pa.int32()),
    }
    return EvaluationSet(name="choices", task="choice", table=pa.table(columns))


def associations() -> EvaluationSet:
    """Cue i is dealt with the images i, i + 1 and i + 2, of which the first is associated with it."""
    dealt = [[(row - place) % ROWS for place in range(3)] for row in range(ROWS)]
    columns = {
        "image": [picture(i) for i in range(ROWS)],
        "captions": [[f"idea {number}" for number in numbers] for numbers in dealt],
        "instances": dealt,
        "true": [[True, False, False]] * ROWS,
    }
    return EvaluationSet(name="associations", task="association", table=pa.table(columns))


def all_sets() -> list[EvaluationSet]:
    return [*make_sets(ROWS), choices(), associations()]


def renumbered(data: EvaluationSet) -> EvaluationSet:
    """The same set with other numbers: rows, classes, and the captions of each row stand in another order."""
    rng = np.random.default_rng(4)
    table = data.table.take(pa.array(rng.permutation(data.table.num_rows)))
    if data.task == "classification":
        order = rng.permutation(len(data.classes))  # class order[i] becomes class i
        label = np.argsort(order)[table["label"].to_numpy()]
        return EvaluationSet(
            name=data.name,
            task=data.task,
            table=table.set_column(table.column_names.index("label"), "label", pa.array(label, pa.int32())),
            classes=tuple(data.classes[i] for i in order),
            templates=data.templates[::-1],
        )
    rows = table.to_pylist()
    for row in rows:
        if data.task in ("retrieval", "choice"):
            order = rng.permutation(len(row["captions"]))
            row["captions"] = [row["captions"][i] for i in order]
            if data.task == "retrieval":
                row["caption_types"] = [row["caption_types"][i] for i in order]
            else:
                row["true"] = int(np.argsort(order)[row["true"]])
        elif data.task == "association":
            order = rng.permutation(len(row["captions"]))
            row |= {column: [row[column][i] for i in order] for column in ("captions", "instances", "true")}
            row["instances"] = [ROWS - number for number in row["instances"]]
        elif data.task == "context":
            row["caption_a"], row["caption_b"] = row["caption_b"], row["caption_a"]
    return EvaluationSet(name=data.name, task=data.task, table=pa.Table.from_pylist(rows, schema=table.schema))


@pytest.mark.parametrize("recipe", ["llip_tiny_k8", "siglip_tiny"])
def test_no_score_knows_the_numbers_of_rows_classes_and_captions(recipe: str) -> None:
    model, sets = model_of(recipe), all_sets()
    first, second = (evaluate_model(model, of, progress=False) for of in (sets, list(map(renumbered, sets))))
    assert first.keys() == second.keys() and len(first) > 15
    for name, metric in first.items():
        assert metric.value == pytest.approx(second[name].value, abs=1e-6), name
        assert metric.chance == pytest.approx(second[name].chance, abs=1e-12), name


def test_labels_that_are_others_change_the_score() -> None:
    """The test above would see a label that leaks: renumbering the labels without the classes is no renumbering."""
    data = make_sets(ROWS)[0]
    model = model_of("siglip_tiny")
    label = data.table["label"].to_numpy()
    scores = set()
    for shift in range(len(data.classes)):
        table = data.table.set_column(1, "label", pa.array((label + shift) % len(data.classes), pa.int32()))
        moved = EvaluationSet(
            name="things", task="classification", table=table, classes=data.classes, templates=data.templates
        )
        scores.add(evaluate_model(model, [moved], progress=False)["things/top5"].value)
    assert len(scores) > 1


def test_no_image_stays_and_nothing_else_changes() -> None:
    for data in all_sets():
        shuffled, *blind = controls.of(data)
        before, after = (of.table["image"].to_pylist() for of in (data, shuffled))
        assert sorted(before) == sorted(after) and not any(a == b for a, b in zip(before, after, strict=True))
        assert shuffled.table.drop(["image"]).equals(data.table.drop(["image"])) and shuffled.classes == data.classes
        assert shuffled.name == f"{data.name}-shuffled" and controls.of(data)[0].table.equals(shuffled.table)
        assert [of.name for of in blind] == (["choices-blind"] if data.task == "choice" else [])
    assert controls.of(EvaluationSet(name="one", task="choice", table=choices().table.slice(0, 1))) == []


def test_without_an_image_the_captions_alone_decide() -> None:
    """The blind score is that of the captions by one grey image; every row is a unit of its interval."""
    (_, blind) = controls.of(choices())
    model = model_of("siglip_tiny")
    found = evaluate_model(model, [blind], progress=False)["choices-blind/choice_accuracy"]
    reversed_rows = EvaluationSet(name="back", task="choice", table=blind.table.take(pa.array(range(ROWS)[::-1])))
    assert found.over == f"{ROWS} choices"
    assert evaluate_model(model, [reversed_rows], progress=False)["back/choice_accuracy"].value == found.value


def test_what_lies_above_chance_is_named() -> None:
    found = {
        "a/top1": Metric(0.9, 0.1, 0.8, 0.95),
        "a-shuffled/top1": Metric(0.11, 0.1, 0.05, 0.2),
        "b-shuffled/top1": Metric(0.3, 0.1, 0.2, 0.4),
        "c-blind/choice_accuracy": Metric(0.7, 0.5, 0.6, 0.8),
        "d-blind/choice_accuracy": Metric(0.7, 0.5),
    }
    assert controls.above_chance(found) == ["b-shuffled/top1", "c-blind/choice_accuracy"]
