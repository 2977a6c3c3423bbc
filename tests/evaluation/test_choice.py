"""Choices among hard negatives against literal loops, the published formats, and what is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.evaluation_samples import picture
from PIL import Image

from llip import create_model
from llip.data.tokenizer import tokenize
from llip.data.transforms import normalize
from llip.evaluation import choice, evaluate_model
from llip.evaluation.choice import Choice
from llip.evaluation.encode import InProcess, decode
from llip.evaluation.evaluate import evaluate_sets, named
from llip.evaluation.examples import CONTEXTS
from llip.evaluation.report import Report
from llip.evaluation.sets import evaluation_set, find_sets, image_references
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.headline import headline
from llip.model.features import batch_slice


def make_set(rows: int = 9) -> EvaluationSet:
    captions = [[f"thing {i} of {c}" for c in range(2 + i % 3)] for i in range(rows)]
    columns = {
        "image": [picture(i // 2) for i in range(rows)],
        "captions": captions,
        "true": pa.array([i % len(of) for i, of in enumerate(captions)], pa.int32()),
        "kind": ["even" if i % 2 == 0 else "odd" for i in range(rows)],
    }
    return EvaluationSet(name="choices", task="choice", table=pa.table(columns))


@pytest.mark.parametrize("recipe", ["llip_tiny_k8", "llip_dense_tiny_k8", "siglip_tiny", "image_query_tiny_k8"])
@torch.inference_mode()
def test_accuracy_is_that_of_a_literal_loop(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "FEWEST", 2)
    torch.manual_seed(0)
    model, data = create_model(recipe).eval(), make_set()
    right: dict[str, list[bool]] = {"even": [], "odd": []}
    for row in data.table.to_pylist():
        pixels = normalize(decode(row["image"], 48, "here")[None])
        scores = [
            model.pair_scores(
                model.encode_image(pixels), model.encode_text(tokenize([text], model.config.text.context_length))
            ).item()
            for text in row["captions"]
        ]
        right[row["kind"]].append(scores.index(max(scores)) == row["true"])
    found = evaluate_model(model, [data], batch_size=4, progress=False)
    value = {name.removeprefix("choices/"): metric.value for name, metric in found.items()}
    assert value == pytest.approx(
        {
            "choice_accuracy": np.mean(right["even"] + right["odd"]),
            "choice_accuracy/even": np.mean(right["even"]),
            "choice_accuracy/odd": np.mean(right["odd"]),
            "choice_accuracy_over_kinds": (np.mean(right["even"]) + np.mean(right["odd"])) / 2,
        }
    )
    assert found["choices/choice_accuracy"].chance == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4]))
    assert found["choices/choice_accuracy"].over == "5 images", "rows of one image are one unit"


UNITS = {"images": np.arange(80)}


def literal_groups(score: np.ndarray) -> tuple[float, float, float]:
    """Text, image and group score of one group, over all orders in which its four scores may be told apart."""
    found = []
    for order in itertools.permutations(range(4)):
        told = np.lexsort((np.array(order), score.ravel())).argsort().reshape(2, 2)  # image, caption
        text = told[0, 0] > told[0, 1] and told[1, 1] > told[1, 0]
        image = told[0, 0] > told[1, 0] and told[1, 1] > told[0, 1]
        found.append((text, image, text and image))
    return tuple(np.mean(found, axis=0).tolist())


@pytest.mark.parametrize("levels", [1, 2, 3, 1000])
def test_two_by_two_is_that_of_a_literal_loop_and_ties_are_a_random_order(levels: int) -> None:
    score = np.random.default_rng(levels).integers(0, levels, (40, 2, 2)).astype(np.float32)
    true = np.tile([0, 1], 40)
    groups = np.repeat(np.arange(40), 2).tolist()
    found = choice.metrics(score.reshape(80, 2), true, [2] * 80, kinds=[""] * 80, groups=groups, units=UNITS)
    expected = np.array([literal_groups(of) for of in score])
    for place, name in enumerate(("text_score", "image_score", "group_score")):
        np.testing.assert_allclose(found[name].score_I, expected[:, place], err_msg=name)
    if levels == 1:
        values = [found[n].value for n in ("text_score", "image_score", "group_score")]
        assert values == pytest.approx([1 / 4, 1 / 4, 1 / 6])
        assert [metric.value for metric in found.values()] == pytest.approx([m.chance for m in found.values()])
    assert found["group_score"].over == "40 groups"


def test_the_order_of_captions_in_a_group_does_not_matter() -> None:
    score = np.random.default_rng(0).random((40, 2, 2)).astype(np.float32)
    groups = np.repeat(np.arange(40), 2).tolist()

    def group_score(score: np.ndarray, true: list[int]) -> list[float]:
        options = {"kinds": [""] * 80, "groups": groups, "units": UNITS}
        found = choice.metrics(score.reshape(80, 2), np.array(true), [2] * 80, **options)  # type: ignore[arg-type]
        return found["group_score"].score_I.tolist()

    assert group_score(score, [0, 1] * 40) == group_score(score[:, :, ::-1], [1, 0] * 40)
    assert group_score(score, [0, 1] * 40) == group_score(score[:, ::-1], [1, 0] * 40)


def test_a_report_shows_choices_with_their_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "FEWEST", 2)
    torch.manual_seed(0)
    model = create_model("siglip_tiny")
    outcomes = list(evaluate_sets(model, [make_set()], InProcess(model=model, progress=False)))
    page = Report(title="Choices", facts={}, outcomes=outcomes).html()
    assert page.count("data:image/webp") == CONTEXTS and "true caption among hard negatives" in page
    shown = [caption for captions in make_set().table["captions"].to_pylist() for caption in captions]
    assert 2 * CONTEXTS <= sum(f"<td>{caption}</td>" in page for caption in shown) <= 4 * CONTEXTS
    assert headline(named(outcomes)) == ["choices/choice_accuracy"]


def write_pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).write_bytes(picture(seed, side=60))


def the_set(folder: Path) -> EvaluationSet:
    (source,) = find_sets(str(folder))
    return source.read()


@torch.inference_mode()
def test_sugarcrepe_is_one_set_whose_kinds_are_its_lists(tmp_path: Path) -> None:
    write_pictures(tmp_path / "sugarcrepe" / "val2017", ["000000085329.jpg", "000000010092.jpg"])
    for kind in ("swap_obj", "add_att"):
        entries = {
            str(3 * i): {"filename": name, "caption": f"true {kind} {i}", "negative_caption": f"false {kind} {i}"}
            for i, name in enumerate(("000000085329.jpg", "000000010092.jpg"))
        }
        (tmp_path / "sugarcrepe" / f"{kind}.json").write_text(json.dumps(entries))
    data = the_set(tmp_path)
    assert (data.name, data.task) == ("sugarcrepe", "choice")
    assert data.table["kind"].to_pylist() == ["add_att"] * 2 + ["swap_obj"] * 2
    assert data.table["captions"].to_pylist()[2] == ["true swap_obj 0", "false swap_obj 0"]
    assert set(data.table["true"].to_pylist()) == {0} and data.table["group"].null_count == 4
    shown = image_references.encoded(data.table["image"][3].as_py())
    assert shown == (tmp_path / "sugarcrepe" / "val2017" / "000000010092.jpg").read_bytes()
    torch.manual_seed(0)
    model = create_model("siglip_tiny").eval()
    task = Choice(model, data)
    (arrays,) = InProcess(model=model, progress=False)([task.task])
    assert arrays["score"].shape == (4, 2) and task.finish(arrays)[0]["choice_accuracy"].over == "2 images"


def test_aro_shows_the_box_of_a_relation(tmp_path: Path) -> None:
    write_pictures(tmp_path / "relations" / "images", ["2354786.jpg"])
    entry = {
        "image_path": "2354786.jpg",
        "true_caption": "the door is to the left of the shirt",
        "false_caption": "the shirt is to the left of the door",
        "relation_name": "to the left of",
        **{"bbox_x": 10, "bbox_y": 20, "bbox_w": 30, "bbox_h": 15},
    }
    (tmp_path / "relations" / "visual_genome_relation.json").write_text(json.dumps([entry]))
    data = the_set(tmp_path)
    assert data.table["kind"].to_pylist() == ["to the left of"]
    cell = data.table["image"][0].as_py()
    (tmp_path / "seen.png").write_bytes(image_references.encoded(cell))
    with Image.open(tmp_path / "seen.png") as seen, Image.open(cell["uri"]) as whole:
        assert np.array_equal(np.asarray(seen), np.asarray(whole)[20:35, 10:40])


def test_winoground_gives_two_rows_a_group(tmp_path: Path) -> None:
    write_pictures(tmp_path / "wino" / "images", [f"ex_{i}_img_{j}.png" for i in range(3) for j in range(2)])
    lines = [
        {
            **{"id": i, "collapsed_tag": "Object"},
            **{"image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1"},
            **{"caption_0": f"{i} over some", "caption_1": f"some over {i}"},
        }
        for i in range(3)
    ]
    (tmp_path / "wino" / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = the_set(tmp_path)
    assert data.table["group"].to_pylist() == [0, 0, 1, 1, 2, 2] and data.table["true"].to_pylist() == [0, 1] * 3
    torch.manual_seed(0)
    found = evaluate_model(create_model("llip_tiny_k8"), [data], progress=False)
    assert {"wino/text_score", "wino/image_score", "wino/group_score", "wino/choice_accuracy"} == set(found)
    # written and read again, it is the same set
    evaluation_set.write(
        str(tmp_path / "ours"),
        EvaluationSet(
            name="ours",
            task="choice",
            table=data.table.set_column(
                0, "image", pa.array([image_references.encoded(cell) for cell in data.table["image"].to_pylist()])
            ),
        ),
    )
    again = evaluation_set.read(str(tmp_path / "ours"))
    assert again.table.drop(["image"]).equals(data.table.drop(["image"]))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("swap_obj.json", {"0": {"filename": "a.jpg", "caption": "x"}}, r"swap_obj.json, entry 0: .*negative_caption"),
        (
            "swap_obj.json",
            {"0": {"filename": "b.jpg", "caption": "x", "negative_caption": "y"}},
            r"entry 0: image b.jpg is nowhere beside or below the list",
        ),
        (
            "my.negatives.json",
            [{"filename": "a.jpg", "caption": "x", "negative_caption": " "}],
            r"row 0: \['x', ' '\]; a choice needs two captions or more, none empty",
        ),
        ("visual_genome_relation.json", ["text"], r"entry 0: it is no entry of such a list"),
    ],
)
def test_lists_that_are_none_are_named(tmp_path: Path, name: str, content: object, says: str) -> None:
    write_pictures(tmp_path, ["a.jpg"])
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=says):
        the_set(tmp_path)


def test_lists_of_several_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.jpg"])
    for name in ("visual_genome_relation.json", "visual_genome_attribution.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(ValueError, match="lists of several sets; give each a folder of its own"):
        the_set(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"true": [0, 2]}, "row 1: true is 2, of 2 captions"),
        ({"captions": [["a"], ["a", "b"]]}, r"row 0: \['a'\]; a choice needs two captions"),
        ({"true": ["a", "b"]}, "true is of type string; it has to hold whole numbers"),
        ({"group": [0, None]}, "group 0 has 1 rows"),
        ({"group": [0, 0], "true": [0, 0]}, "group 0 has 2 rows; it has to have two, which list the same two captions"),
    ],
)
def test_choices_without_a_meaning_are_refused(change: dict[str, list[Any]], says: str) -> None:
    columns = {"image": [b"", b""], "captions": [["a", "b"]] * 2, "true": [0, 1]} | change
    with pytest.raises(ValueError, match=f"evaluation set x.*{says}"):
        EvaluationSet(name="x", task="choice", table=pa.table(columns))


@torch.inference_mode()
def test_features_of_a_batch_are_cut_where_its_images_end() -> None:
    """A guard of the slices: the second image's captions follow the first one's."""
    torch.manual_seed(0)
    model, data = create_model("siglip_tiny").eval(), make_set(3)
    (arrays,) = InProcess(model=model, batch_size=3, progress=False)([Choice(model, data).task])
    texts = [text for of in data.table["captions"].to_pylist() for text in of]
    features = model.encode_text(tokenize(texts, model.config.text.context_length))
    pixels = torch.stack([decode(blob, 48, "here") for blob in data.table["image"].to_pylist()])
    images = model.encode_image(normalize(pixels))
    second = model.pair_scores(batch_slice(images, slice(1, 2)), batch_slice(features, slice(2, 5)))
    np.testing.assert_allclose(arrays["score"][1, :3], second[0].numpy(), atol=1e-5)
    assert arrays["score"][0, 2:].tolist() == [-np.inf, -np.inf]
