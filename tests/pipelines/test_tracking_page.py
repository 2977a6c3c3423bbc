"""MLflow's pages of three real runs, and our own, as a browser shows them."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import DESKTOP, PHONE, seen
from helpers.tracking_page import look, serve
from PIL import Image

from llip.training.notebook import comparison_page, experiment_page
from llip.training.tracking import open_run, tracking_of
from pipelines.compare import Compare, compare
from pipelines.pretrain import Pretrain, pretrain


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pages_show_the_loss_first_the_description_data_models_and_the_metrics_of_all_runs(
    ray_session: None, tmp_path: Path
) -> None:
    steps = {"steps": 6, "log_every": 1, "checkpoint_every": 3, "evaluate_every": 3}
    outcomes = [
        pretrain(Pretrain(output=str(tmp_path), corpus_images=192, overrides=steps, workers=0, recipe=name))
        for name in ("siglip_tiny", "llip_tiny_k8", "clip_tiny")
    ]
    runs = []
    for outcome in outcomes:
        tracking = tracking_of(outcome.folder)
        assert tracking is not None
        client, run_id = open_run(tracking, outcome.folder)
        runs.append(client.get_run(run_id))
        client.set_terminated(run_id)
    picture = tmp_path / "comparison.png"
    names, experiment = [r.info.run_name for r in runs], runs[0].info.experiment_id
    last = runs[1].info.run_id
    with serve(f"sqlite:///{tmp_path}/mlflow.db") as url:
        look(
            experiment_page(url, experiment, "runs"), until=[*names, "curated", "shards"], picture=tmp_path / "runs.png"
        )
        run = look(
            experiment_page(url, experiment, "runs", last),
            until=["Recipe llip_tiny_k8", "To repeat it", "concept", names[1] + "-step6", "Datasets"],
            picture=tmp_path / "run.png",
        )
        charts = look(
            experiment_page(url, experiment, "runs", last, "model-metrics"),
            until=["Headline", "Loss", "eval/concept"],
            picture=tmp_path / "charts.png",
        )
        models = look(
            experiment_page(url, experiment, "models"),
            until=[f"{name}-step6" for name in names],
            picture=tmp_path / "models.png",
        )
        page = comparison_page(url, [experiment], [r.info.run_id for r in runs])
        text = look(page, until=[*names, "eval/concept/top5"], picture=picture)

    assert "shards" in run and "steps: 1200 → 6" in run
    assert charts.index("Headline") < charts.index("Loss") < charts.index("eval/concept")
    assert f"{names[0]}-step3" in models
    assert "Comparing 3 Runs from 1 Experiment" in text
    values = [f"{outcome.metrics['concept/top5'].value:.3f}".rstrip("0") for outcome in outcomes]
    metrics = text[text.index("eval/concept/mean_per_class") :]
    assert all(re.search(rf"^{re.escape(v)}$", metrics, re.MULTILINE) for v in values), (values, metrics)
    pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("L"))
    assert pixels.shape[1] == 1200 and pixels.std() > 20, "not an empty page"

    compare(Compare(runs=tuple(o.folder for o in outcomes), output=str(tmp_path / "comparison")))
    pages = [tmp_path / "comparison/comparison.html", tmp_path / "curated/data_card.html"]
    pages += [Path(outcomes[1].folder) / "report.html"]
    for file in pages:
        for width in (PHONE, DESKTOP):
            fits, shown, _ = seen(file.read_text(), tmp_path, width)
            assert fits and shown, (file.name, width)
