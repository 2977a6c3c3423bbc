"""What sweeps and studies refuse before any work, and the metrics that they know."""

from pathlib import Path

import pytest
from helpers.evaluation_samples import make_sets

from llip.evaluation.sets import evaluation_set
from tune import experiment
from tune.sweep import Sweep, sweep


def test_gpus_are_those_of_workers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--gpu is about the workers of trials; it needs --workers"):
        Sweep(gpu=True, output=str(tmp_path))


def test_workers_cannot_be_more_than_the_lanes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--workers 9 cannot share the 8 lanes of llip_dense_mini_k8"):
        sweep(Sweep(workers=9, output=str(tmp_path)))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metric", "heads", "message"),
    [
        ("scenes/text_to_image_map", {"class_token"}, None),
        ("scene/map", {"text_query"}, "--metric scene/map: the evaluation sets in .* are pairs, scenes, things"),
        ("scenes/map", {"text_query"}, "--metric scenes/map: scenes gives scenes/image_to_text_r1, "),
        (
            "things/top2",
            {"text_query"},
            "things gives things/macro_f1, things/mean_per_class, things/top1",
        ),
        ("pairs/context_accuracy", {"text_query"}, None),
        ("pairs/context_accuracy", {"text_query", "class_token"}, "is of text_query heads alone"),
    ],
)
def test_a_metric_that_no_trial_would_have_is_refused(
    tmp_path: Path, metric: str, heads: set[str], message: str | None
) -> None:
    for data in make_sets():
        evaluation_set.write(str(tmp_path / data.name), data)
    if message is None:
        experiment.check_metric(metric, str(tmp_path), heads)
        return
    with pytest.raises(ValueError, match=message):
        experiment.check_metric(metric, str(tmp_path), heads)


def test_more_trials_at_once_than_a_database_file_takes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"--concurrency 50: .* at most 8 trials; name an MLflow server on PostgreSQL"):
        sweep(Sweep(concurrency=50, output=str(tmp_path)))
    assert not any(tmp_path.iterdir())
    experiment.check_store("http://tracking:5000", 50)
