"""Runs side by side: what differs, who is ahead, and what cannot be compared."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.evaluation_samples import make_sets

from llip import recipe, storage
from llip.config import TrainingConfig
from llip.evaluation import zero_shot
from llip.evaluation.bootstrap import judge
from llip.evaluation.evaluate import Outcome
from llip.evaluation.item_scores import ItemScores
from llip.fields import to_dict
from llip.runs.tracking import Tracker, Tracking, read_metrics, run_id_of
from pipelines.compare import Compare, compare
from pipelines.comparison import Comparison, RunRecord
from pipelines.evaluation_cache import EvaluationCache, read_items, scores_file, scores_of


def write_run(
    folder: Path,
    training: TrainingConfig,
    values: dict[str, float],
    losses: tuple[float, ...] = (5.0, 4.0, 3.0),
    sets: dict[str, str] | None = None,
) -> str:
    metrics = {name: {"value": value, "chance": 0.1} for name, value in values.items()}
    storage.write_json(f"{folder}/metrics.json", {"metrics": metrics} | ({"inputs": {"sets": sets}} if sets else {}))
    storage.write_json(f"{folder}/config.json", {"training": to_dict(training)})
    lines = "".join(f'{{"step": {10 * i}, "loss": {loss}}}\n' for i, loss in enumerate(losses))
    storage.write_bytes(f"{folder}/metrics.jsonl", lines.encode())
    return str(folder)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    return (
        write_run(tmp_path / "llip", recipe("llip_tiny_k8"), {"s/top1": 0.5, "s/top5": 0.8, "c/context_accuracy": 0.9}),
        write_run(tmp_path / "siglip", recipe("siglip_tiny"), {"s/top1": 0.6, "s/top5": 0.8}),
    )


def test_settings_that_differ_and_metrics_stand_side_by_side(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(Compare(runs=runs, output=str(tmp_path / "out")))
    differences = found.differences()
    assert differences["model.head.kind"] == ["text_query", "class_token"]
    assert differences["model.vision.tokens"] == [8, 1]
    assert "optimizer.learning_rate" not in differences
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| s/top1 | 0.100 | 0.500 | **0.600** |" in text
    assert "| s/top5 | 0.100 | **0.800** | **0.800** |" in text
    assert "| c/context_accuracy | 0.100 | **0.900** | – |" in text
    assert text in capsys.readouterr().out


def test_seeds_of_one_configuration_become_a_mean_with_its_spread(runs: tuple[str, str], tmp_path: Path) -> None:
    again = write_run(tmp_path / "llip-seed1", replace(recipe("llip_tiny_k8"), seed=1), {"s/top1": 0.7, "s/top5": 0.8})
    found = Comparison([RunRecord.read(run) for run in (*runs, again)])
    assert [name for name, _ in found.repeated()] == ["llip (2)", "siglip (1)"]
    assert found.spreads()["s/top1"] == ["0.600 ± 0.141", "0.600"]
    assert found.spreads()["c/context_accuracy"] == ["0.900", "–"]
    assert "| s/top1 | 0.100 | 0.600 ± 0.141 | 0.600 |" in found.markdown()
    assert "0.600 ± 0.141" in found.html()
    assert Comparison([RunRecord.read(run) for run in runs]).repeated() == []


def test_the_page_has_bars_of_shared_sets_and_the_curves(runs: tuple[str, str], tmp_path: Path) -> None:
    page = Comparison([RunRecord.read(run) for run in runs]).html()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<svg") == 2  # the curves, and the set that both have
    assert "<h3>s</h3>" in page and "<h3>c</h3>" not in page


def test_a_run_is_found_by_its_id_in_mlflow(runs: tuple[str, str], tmp_path: Path, mlflow_store: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_store)
    made = client.create_run("0", tags={"run_folder": runs[1]}).info.run_id
    other = client.create_run("0").info.run_id
    found = compare(Compare(runs=(runs[0], made), output=str(tmp_path / "out"), tracking=mlflow_store))
    assert [run.name for run in found.runs] == ["llip", "siglip"]
    with pytest.raises(ValueError, match="has no tag run_folder"):
        compare(Compare(runs=(runs[0], other), tracking=mlflow_store))
    with pytest.raises(ValueError, match="nowhere is neither a folder nor the id of a run at sqlite"):
        compare(Compare(runs=(runs[0], "nowhere"), tracking=mlflow_store))


def test_what_cannot_be_compared_is_refused(runs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two or more runs of distinct names"):
        compare(Compare(runs=runs[:1]))
    with pytest.raises(ValueError, match="these are llip, llip"):
        compare(Compare(runs=(runs[0], runs[0])))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has not been evaluated"):
        compare(Compare(runs=(runs[0], str(tmp_path / "empty"))))


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ({"s": "a", "c": "x"}, {"s": "b", "c": "x"}, ["s"]),
        ({"s": "a", "c": "x"}, {"s": "b", "c": "y"}, ["s", "c"]),
        ({"s": "a", "c": "x"}, {"s": "a", "c": "x"}, []),
        ({"s": "a"}, {"c": "x"}, []),
        ({"s": "a"}, None, []),
    ],
)
def test_numbers_of_other_sets_are_marked_and_not_ranked(
    tmp_path: Path, first: dict[str, str], second: dict[str, str] | None, differ: list[str]
) -> None:
    values = {"s/top1": 0.5, "c/context_accuracy": 0.9}, {"s/top1": 0.6, "c/context_accuracy": 0.8}
    names = ("llip_tiny_k8", "siglip_tiny")
    runs = [
        write_run(tmp_path / name, recipe(name), of_run, sets=sets)
        for name, of_run, sets in zip(names, values, (first, second), strict=True)
    ]
    found = Comparison([RunRecord.read(run) for run in runs])
    assert set(found.of_other_sets()) == set(differ)
    for text in (found.markdown(), found.html().replace("<wbr>", "")):
        assert ("Not the same evaluation set in all runs" in text) == bool(differ)
        assert ("s/top1 †" in text) == ("s" in differ) and ("c/context_accuracy †" in text) == ("c" in differ)
    best = "| s/top1 † | 0.100 | 0.500 | 0.600 |" if "s" in differ else "| s/top1 | 0.100 | 0.500 | **0.600** |"
    assert best in found.markdown()
    assert ("<h3>s</h3>" in found.html()) == ("s" not in differ)


def write_items(folder: Path, right: np.ndarray) -> dict[str, float]:
    """A run with an evaluation of 120 images whose scores are given."""
    outcome = outcome_of(right)
    EvaluationCache(str(folder), {"things": "any"}).save(outcome)
    return {"things/top1": outcome.item_scores["top1"].value}


def outcome_of(right: np.ndarray) -> Outcome:
    scores = ItemScores(score_I=right, chance=0.1, units={"images": np.arange(len(right))})
    return Outcome(make_sets()[0], judge({"top1": scores}), {"top1": scores}, {"predicted": np.zeros(3)})


@pytest.fixture
def seeds(tmp_path: Path) -> tuple[str, ...]:
    """Three seeds of a method and three of another that is right where the first is, and on a tenth more."""
    rng, folders = np.random.default_rng(0), []
    hard = rng.random(120)
    for method, gain in (("llip_tiny_k8", 0.0), ("siglip_tiny", 0.15)):
        for seed in range(3):
            name = f"{method}-seed{seed}"
            right = (hard < 0.5 + gain + 0.01 * rng.normal()).astype(float)
            values = write_items(tmp_path / name, right)
            folders.append(write_run(tmp_path / name, replace(recipe(method), seed=seed), values, sets={"things": "d"}))
    return tuple(folders)


def test_groups_of_seeds_are_tested_item_by_item(
    seeds: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(Compare(runs=seeds, output=str(tmp_path / "out")))
    (pair, (test,)), *others = found.tests.items()
    assert not others and pair == "siglip_tiny − llip_tiny_k8" and test.metric == "things/top1"
    assert test.difference is not None and test.difference.seeds == (3, 3)
    assert 0 < test.difference.low < 0.15 < test.difference.high < 0.3
    assert "siglip_tiny is ahead of llip_tiny_k8 by" in test.sentence and "other seeds" in test.sentence
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert f"| things/top1 | {test.difference.value:+.3f} |" in text and test.sentence in capsys.readouterr().out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert test.sentence in page and page.count("<svg") == 3  # the curves, the set, the intervals


def test_trials_are_compared_by_what_training_left_of_its_last_evaluation(seeds: tuple[str, ...]) -> None:
    expected = Comparison([RunRecord.read(folder) for folder in seeds]).tests
    for folder in seeds:
        outcome = outcome_of(read_items(folder, "things")["top1"].score_I)
        storage.write_bytes(f"{folder}/item_scores.npz", scores_file([outcome]))
        Path(folder, "metrics.json").unlink()
        shutil.rmtree(Path(folder, "evaluated"))
    assert Comparison([RunRecord.read(folder) for folder in seeds]).tests == expected


def test_runs_are_compared_from_mlflow_alone(
    seeds: tuple[str, ...], tmp_path: Path, mlflow_store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the folders give, after the folders are gone; a metric is read from the log's history by its step."""
    from mlflow import MlflowClient

    expected = Comparison([RunRecord.read(folder) for folder in seeds])
    text, page = expected.markdown(), expected.html()
    client, ids = MlflowClient(mlflow_store), []
    for folder in seeds:
        content = storage.read_json(f"{folder}/metrics.json")
        tracking = Tracking(uri=mlflow_store, run_name=Path(folder).name, artifact_location=str(tmp_path / "artifacts"))
        with Tracker(tracking, folder) as tracker:
            tracker.artifact("config.json", storage.read_json(f"{folder}/config.json")["training"])
            tracker.artifact("metrics.json", content)
            tracker.artifact("item_scores.npz", scores_file([outcome_of(read_items(folder, "things")["top1"].score_I)]))
            for line in read_metrics(folder):
                tracker.log(line["step"], {"loss": line["loss"]})
        ids.append(run_id_of(folder))
    for folder in seeds:
        shutil.rmtree(folder)
    job = Compare(runs=tuple(f"runs:/{i}" for i in ids), output=str(tmp_path / "out"), tracking=mlflow_store)
    found = compare(job)
    assert found.markdown() == text and found.html() == page
    assert [run.curve for run in found.runs] == [run.curve for run in expected.runs]
    bare = client.create_run("0", run_name="bare").info.run_id
    with pytest.raises(ValueError, match=r"runs:/\w+ \(bare\) has no metrics.json and item_scores.npz"):
        compare(replace(job, runs=(f"runs:/{ids[0]}", f"runs:/{bare}")))
    with pytest.raises(ValueError, match="runs:/nothing is not the id of a run at sqlite"):
        compare(replace(job, runs=("runs:/nothing", f"runs:/{bare}")))


def test_macro_f1_is_compared_from_what_the_cache_stored(tmp_path: Path) -> None:
    rng, runs = np.random.default_rng(1), []
    label = rng.integers(0, 5, 200)
    for name, share in (("llip_tiny_k8", 0.3), ("siglip_tiny", 0.8)):
        scores = zero_shot.macro_f1(label, np.where(rng.random(200) < share, label, rng.integers(0, 7, 200)), 7)
        outcome = Outcome(make_sets()[0], judge({"macro_f1": scores}), {"macro_f1": scores}, {"predicted": np.zeros(3)})
        EvaluationCache(str(tmp_path / name), {"things": "any"}).save(outcome)
        runs.append(write_run(tmp_path / name, recipe(name), {"things/macro_f1": scores.value}, sets={"things": "d"}))
        for stored in (read_items(runs[-1], "things"), scores_of(scores_file([outcome]))["things"]):
            assert stored["macro_f1"].same_items(scores) and stored["macro_f1"].value == scores.value
    found = compare(Compare(runs=tuple(runs), tested=("things/macro_f1",), output=str(tmp_path / "out")))
    ((test,),) = found.tests.values()
    assert test.metric == "things/macro_f1" and test.difference is not None and test.difference.decided
    assert "siglip_tiny is ahead of llip_tiny_k8 by" in test.sentence and test.difference.over == "200 images"


def test_one_seed_each_says_nothing_of_others(seeds: tuple[str, ...]) -> None:
    (test,) = Comparison([RunRecord.read(run) for run in (seeds[0], seeds[3])]).tests[
        "siglip_tiny-seed0 − llip_tiny_k8-seed0"
    ]
    assert "says nothing of other seeds" in test.sentence
    assert test.difference is not None and test.difference.seeds == (1, 1)


def test_other_sets_other_items_and_missing_scores_are_not_tested(seeds: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(seeds[0], tmp_path / "apart")
    apart = str(tmp_path / "apart")
    content = storage.read_json(f"{apart}/metrics.json")
    storage.write_json(f"{apart}/metrics.json", content | {"inputs": {"sets": {"things": "other"}}})
    storage.write_json(f"{apart}/config.json", {"training": to_dict(recipe("clip_tiny"))})

    def sentence() -> str:
        ((test,),) = Comparison([RunRecord.read(seeds[3]), RunRecord.read(apart)]).tests.values()
        assert test.difference is None
        return test.sentence

    assert "the evaluation sets of this name differ" in sentence()
    storage.write_json(f"{apart}/metrics.json", content)
    write_items(tmp_path / "apart", np.ones(121))
    assert "apart stored no scores of single items with it" in sentence()
    content["metrics"]["things/top1"]["value"] = 1.0
    storage.write_json(f"{apart}/metrics.json", content)
    assert "not of the same items" in sentence()
    storage.write_json(f"{apart}/metrics.json", content | {"metrics": {}})
    assert "apart has no such metric" in sentence()


def test_a_metric_that_no_run_has_is_refused(runs: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"no run has the metric s/top9; there are c/context_accuracy, s/top1"):
        compare(Compare(runs=runs, tested=("s/top9",)))
