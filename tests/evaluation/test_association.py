"""Associations against literal loops, WinoGAViL's files, and what is refused."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.evaluation_samples import picture, write_winogavil
from sklearn.metrics import jaccard_score

from llip import create_model
from llip.data.tokenizer import tokenize
from llip.data.transforms import normalize
from llip.evaluation import association
from llip.evaluation.encode import InProcess, decode
from llip.evaluation.evaluate import evaluate_sets, named
from llip.evaluation.examples import INSTANCES
from llip.evaluation.report import Report
from llip.evaluation.sets import evaluation_set, find_sets, image_references
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.headline import headline


def naive(chosen: set[int], true: set[int]) -> float:
    return len(chosen & true) / len(chosen | true)


@pytest.mark.parametrize("levels", [1, 2, 3, 1000])
def test_ties_are_a_random_order_and_without_them_it_is_the_plain_index(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(30):
        score, true = rng.integers(0, levels, 5), rng.permutation([True, True, bool(rng.integers(2)), False, False])
        orders = [sorted(range(5), key=lambda i: (-score[i], order[i])) for order in itertools.permutations(range(5))]
        wanted = set(np.flatnonzero(true).tolist())
        expected = np.mean([naive(set(order[: len(wanted)]), wanted) for order in orders])
        found = association.jaccard(score.astype(np.float32), true)
        assert found == pytest.approx(expected, abs=1e-12)
        if len(set(score.tolist())) == 5:
            chosen = np.isin(np.arange(5), np.argsort(score)[-len(wanted) :])
            assert found == pytest.approx(jaccard_score(true, chosen)), "as DataComp computes it"
        if levels == 1:
            assert found == pytest.approx(association.drawn_jaccard(5, len(wanted)))


def test_chance_is_that_of_a_random_choice() -> None:
    # by hand, of 5 images: 2 associated, no hit 3/10, one 6/10, both 1/10; 3 associated, one hit 3/10, two 6/10
    assert association.drawn_jaccard(5, 2) == pytest.approx(0.6 / 3 + 0.1)
    assert association.drawn_jaccard(5, 3) == pytest.approx(0.3 / 5 + 0.6 / 2 + 0.1)
    every = [naive(set(chosen), {0, 1, 2, 3}) for chosen in itertools.combinations(range(12), 4)]
    assert association.drawn_jaccard(12, 4) == pytest.approx(np.mean(every))


@pytest.mark.parametrize("recipe", ["llip_tiny_k8", "siglip_tiny"])
@torch.inference_mode()
def test_winogavil_is_read_and_scored_as_a_literal_loop_does(recipe: str, tmp_path: Path) -> None:
    rows = write_winogavil(tmp_path / "winogavil")
    (source,) = find_sets(str(tmp_path))
    data = source.read()
    assert (data.name, data.task, data.table.num_rows) == ("winogavil", "association", 13)
    torch.manual_seed(0)
    model = create_model(recipe).eval()
    expected = []
    for row in rows:
        article = "An" if row["cue"] == row["cue"].capitalize() else "A"  # the cues are "Idea …" and "notion …"
        text = model.encode_text(tokenize([f"{article} {row['cue'].lower()}"], model.config.text.context_length))
        scores = []
        for name in row["candidates"]:
            content = (tmp_path / "winogavil" / "winogavil_images" / f"{name}.jpg").read_bytes()
            pixels = normalize(decode(content, model.config.vision.image_size, name)[None])
            scores.append(model.pair_scores(model.encode_image(pixels), text).item())
        best = sorted(row["candidates"], key=lambda name: -scores[row["candidates"].index(name)])
        chosen, true = set(best[: len(row["associations"])]), set(row["associations"])
        expected.append(len(chosen & true) / len(chosen | true))
    (outcome,) = evaluate_sets(model, [data], InProcess(model=model, batch_size=4, progress=False))
    metrics = outcome.metrics
    np.testing.assert_allclose(outcome.item_scores["jaccard"].score_I, expected)
    assert metrics.keys() == {"jaccard", "jaccard_of_10_and_more"} and len(expected) == 8
    assert metrics["jaccard"].value == pytest.approx(np.mean(expected)) and metrics["jaccard"].over == "4 groups"
    assert metrics["jaccard_of_10_and_more"].value == pytest.approx(np.mean(expected[-2:]))
    chance = [association.drawn_jaccard(len(row["candidates"]), len(row["associations"])) for row in rows]
    assert metrics["jaccard"].chance == pytest.approx(np.mean(chance))
    assert metrics["jaccard_of_10_and_more"].chance == pytest.approx(association.drawn_jaccard(10, 3))
    assert headline(named([outcome])) == ["winogavil/jaccard"]


@torch.inference_mode()
def test_a_report_shows_instances_with_their_images(tmp_path: Path) -> None:
    write_winogavil(tmp_path / "winogavil", sizes=(5, 5))
    (source,) = find_sets(str(tmp_path))
    model = create_model("siglip_tiny")
    outcomes = list(evaluate_sets(model, [source.read()], InProcess(model=model, progress=False)))
    page = Report(title="Associations", facts={}, outcomes=outcomes).html()
    assert page.count("data:image/webp") == INSTANCES * 5 and "2 of 5 images are associated with it" in page
    assert "An idea 1 1" in page and "jaccard_of" not in page


def test_our_own_format_holds_it(tmp_path: Path) -> None:
    write_winogavil(tmp_path / "winogavil", sizes=(5, 6))
    (source,) = find_sets(str(tmp_path))
    data = source.read()
    image = pa.array([image_references.encoded(of) for of in data.table["image"].to_pylist()], pa.binary())
    whole = EvaluationSet(name=data.name, task=data.task, table=data.table.set_column(0, "image", image))
    evaluation_set.write(str(tmp_path / "ours"), whole)
    assert evaluation_set.read(str(tmp_path / "ours")) == whole


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('a,"[""x"", ""y""]","[""z""]"', r"row 0: cue 'a', candidates \[.*needs a cue, and some of its candidates"),
        ('a,"[""x"", ""y""]","[""x"", ""y""]"', "some of its candidates, not all, as associations"),
        (' ,"[""x"", ""y""]","[""x""]"', "row 0: cue ''"),
        ('a,"[""x"", ""x""]","[""x""]"', "row 0: candidates is .*a JSON list of distinct names"),
        ('a,x y,"[""x""]"', "row 0: candidates is 'x y'; it has to be a JSON list"),
        ('a,"[""x"", ""y""]",[]', "row 0: associations is"),
        ('a,"[""x"", ""w""]","[""x""]"', r"names w, whose image \(w.jpg\) is nowhere .* \(1 of 2 miss\)"),
    ],
)
def test_rows_of_the_list_that_are_none_are_named(tmp_path: Path, row: str, message: str) -> None:
    for name in "xyz":
        (tmp_path / f"{name}.jpg").write_bytes(picture(0))
    (tmp_path / "winogavil_dataset.csv").write_text(f"cue,candidates,associations\n{row}\n")
    (source,) = find_sets(str(tmp_path))
    with pytest.raises(ValueError, match=rf"winogavil_dataset.csv.*{message}"):
        source.read()


def test_a_list_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "winogavil_dataset.csv").write_text("cue,candidates\na,b\n")
    (source,) = find_sets(str(tmp_path))
    with pytest.raises(ValueError, match="needs the columns cue, candidates, associations; associations is missing"):
        source.read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"true": [[True], [True]]}, "instance 0 has the cues 'a' and 2 of 2 images associated"),
        ({"true": [[False], [False]]}, "0 of 2 images associated; it needs one cue, and some of its images, not all"),
        ({"captions": [["a"], ["b"]]}, "instance 0 has the cues 'a', 'b'"),
        ({"instances": [[0], [0, 1]]}, r"row 1: 1 captions, instances \[0, 1\], true \[False\]; an image needs one of"),
        ({"instances": [["0"], ["0"]]}, "instances of type .* cannot be read as .*they are no whole numbers"),
        ({"true": [[1], [0]]}, "they are no marks of true and false"),
        ({"captions": [["a"], [None]]}, r"row 1: .*none null"),
    ],
)
def test_sets_that_are_none_are_refused(changes: dict[str, Any], message: str) -> None:
    columns = {"captions": [["a"], ["a"]], "instances": [[0], [0]], "true": [[True], [False]]} | changes
    with pytest.raises(ValueError, match=message):
        EvaluationSet(name="x", task="association", table=pa.table({"image": [picture(0), picture(1)]} | columns))
