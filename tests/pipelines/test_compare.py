"""Runs side by side: what differs, who is ahead, and what cannot be compared."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llip import recipe, storage
from llip.config import TrainingConfig
from llip.fields import to_dict
from pipelines.compare import Compare, compare
from pipelines.comparison import Comparison, Run


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
    found = Comparison([Run.read(run) for run in (*runs, again)])
    assert [name for name, _ in found.repeated()] == ["llip (2)", "siglip (1)"]
    assert found.spreads()["s/top1"] == ["0.600 ± 0.141", "0.600"]
    assert found.spreads()["c/context_accuracy"] == ["0.900", "–"]
    assert "| s/top1 | 0.100 | 0.600 ± 0.141 | 0.600 |" in found.markdown()
    assert "0.600 ± 0.141" in found.html()
    assert Comparison([Run.read(run) for run in runs]).repeated() == []


def test_the_page_has_bars_of_shared_sets_and_the_curves(runs: tuple[str, str], tmp_path: Path) -> None:
    page = Comparison([Run.read(run) for run in runs]).html()
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
    found = Comparison([Run.read(run) for run in runs])
    assert set(found.of_other_sets()) == set(differ)
    for text in (found.markdown(), found.html()):
        assert ("Not the same evaluation set in all runs" in text) == bool(differ)
        assert ("s/top1 †" in text) == ("s" in differ) and ("c/context_accuracy †" in text) == ("c" in differ)
    best = "| s/top1 † | 0.100 | 0.500 | 0.600 |" if "s" in differ else "| s/top1 | 0.100 | 0.500 | **0.600** |"
    assert best in found.markdown()
    assert ("<h3>s</h3>" in found.html()) == ("s" not in differ)
