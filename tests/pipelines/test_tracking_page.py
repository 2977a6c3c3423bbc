"""MLflow's comparison page of two real runs, as a browser shows it."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.tracking_page import comparison, look, serve
from PIL import Image

from llip.training.tracking import open_run, tracking_of
from pipelines.pretrain import Pretrain, pretrain


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_comparison_page_shows_the_metrics_of_both_runs(ray_session: None, tmp_path: Path) -> None:
    outcomes = [
        pretrain(Pretrain(output=str(tmp_path), corpus_images=192, overrides={"steps": 4}, workers=0, recipe=name))
        for name in ("siglip_tiny", "llip_tiny_k8")
    ]
    runs = []
    for outcome in outcomes:
        tracking = tracking_of(outcome.folder)
        assert tracking is not None
        client, run_id = open_run(tracking, outcome.folder)
        runs.append(client.get_run(run_id))
        client.set_terminated(run_id)
    picture = tmp_path / "comparison.png"
    names = [r.info.run_name for r in runs]
    with serve(f"sqlite:///{tmp_path}/mlflow.db") as url:
        page = comparison(url, [r.info.run_id for r in runs], [runs[0].info.experiment_id])
        text = look(page, until=[*names, "concept/top5"], picture=picture)

    assert "Comparing 2 Runs from 1 Experiment" in text
    values = [f"{outcome.metrics['concept/top5'].value:.3f}".rstrip("0") for outcome in outcomes]
    metrics = text[text.index("concept/mean_per_class") :]
    assert all(re.search(rf"^{re.escape(v)}$", metrics, re.MULTILINE) for v in values), (values, metrics)
    pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("L"))
    assert pixels.shape[1] == 1200 and pixels.std() > 20, "not an empty page"
