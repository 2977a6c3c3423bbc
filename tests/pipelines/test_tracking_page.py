"""MLflow's pages and our own of three real runs and a sweep, as a browser shows them; a model that is served (slow)."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import recorded_study
from helpers.browser import DESKTOP, PHONE, SHOW_CHILDREN, browser, needs_browser
from helpers.ports import free_ports
from helpers.tracking_page import ROOT, printed_by_ui
from mlflow import MlflowClient
from PIL import Image

import llip
from llip.runs.notebook import comparison_page, experiment_page
from llip.runs.tracking import run_id_of
from pipelines.compare import Compare, compare
from pipelines.pretrain import Pretrain, RunResult, pretrain
from tune.sweep import Sweep, sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SWEEP = "tokens"


@dataclass(frozen=True)
class Project:
    """Runs of SigLIP, Llip and CLIP and a sweep of Llip's tokens in one folder."""

    output: Path
    outcomes: tuple[RunResult, ...]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.output}/mlflow.db")


@pytest.fixture(scope="module")
def project(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    output = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        steps = {"steps": 9, "log_every": 1, "checkpoint_every": 3, "evaluate_every": 3}
        common: dict[str, Any] = {"output": str(output), "corpus_images": 192, "workers": 0}
        recipes = ("siglip_tiny", "llip_tiny_k8", "clip_tiny")
        outcomes = tuple(
            pretrain(Pretrain(**common, overrides=steps, recipe=name, profile=name == "llip_tiny_k8"))
            for name in recipes
        )
        common |= {"overrides": {"steps": 4}, "evaluations": 1, "seeds": 1, "concurrency": 1}
        sweep(Sweep(**common, name=SWEEP, vary=("k=1,4",)))
        yield Project(output, outcomes)


@needs_browser
def test_mlflow_shows_the_loss_first_the_description_data_models_and_a_family_of_trials(
    project: Project, tmp_path: Path
) -> None:
    ids = [run_id_of(outcome.folder) for outcome in project.outcomes]
    runs = [project.client.get_run(i) for i in ids]
    parent = run_id_of(str(project.output / "sweeps" / SWEEP))
    names, experiment = [r.info.run_name for r in runs], runs[0].info.experiment_id
    trials = project.client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    children = sorted(trial.info.run_name for trial in trials)
    assert children == ["llip_dense_mini_k8-k1-seed0", "llip_dense_mini_k8-k4-seed0"]
    with browser() as chromium, printed_by_ui(project.output) as printed:
        url = printed.partition("/#")[0]
        table = chromium.read(
            printed,
            until=[*("curated", "shards", SWEEP, "siglip_tiny", "clip_tiny"), *children],
            click=SHOW_CHILDREN,
            screenshot=tmp_path / "runs.png",
            screen=(1600, 1200),
        )
        run = chromium.read(
            experiment_page(url, experiment, "runs", ids[1]),
            until=["Recipe llip_tiny_k8", "To repeat it", "concept", names[1] + "-step9", "Datasets"],
            screenshot=tmp_path / "run.png",
        )
        charts = chromium.read(
            experiment_page(url, experiment, "runs", ids[1], "model-metrics"),
            until=["Headline", "Loss", "eval/concept"],
            screenshot=tmp_path / "charts.png",
        )
        models = chromium.read(
            experiment_page(url, experiment, "models"),
            until=[f"{name}-step9" for name in names],
            screenshot=tmp_path / "models.png",
        )
        page = comparison_page(url, [experiment], ids)
        compared = chromium.read(
            page, until=[*names, "eval/concept/mean_per_class"], screenshot=tmp_path / "comparison.png"
        )
        family = chromium.read(
            experiment_page(url, experiment, "runs", parent),
            until=[SWEEP, "Metrics (", "Parameters ("],
            screenshot=tmp_path / "sweep.png",
        )

    assert "Run Name" in table and "8 matching runs" in table, "three runs, their data's two, a sweep of two"
    assert "shards" in run and "steps: 1200 → 9" in run
    first = run.index("text_to_image_map_over_types")
    assert run.index("scenes_in_style") < first < run.index("top1"), "the headline is the first row of the description"
    assert charts.index("Headline") < charts.index("Loss") < charts.index("eval/concept")
    assert f"{names[0]}-step6" in models, "every kept checkpoint"
    assert "Comparing 3 Runs from 1 Experiment" in compared
    values = [f"{outcome.metrics['concept/mean_per_class'].value:.3f}".rstrip("0") for outcome in project.outcomes]
    metrics = compared[compared.index("eval/concept/macro_f1") :]
    assert all(re.search(rf"^{re.escape(v)}$", metrics, re.MULTILINE) for v in values), (values, metrics)
    with Image.open(tmp_path / "comparison.png") as screenshot:
        pixels = np.asarray(screenshot.convert("L"))
    assert pixels.shape[1] == 1200 and pixels.std() > 20, "not an empty page"
    description = family[: family.index("Metrics (")]
    assert re.search(r"no point has left chance|best \S+", description) and "samples" in description
    assert description.index("samples") < description.index("pipelines/pretrain.py"), "the table comes first"


BAD = """<!doctype html><meta name="viewport" content="width=device-width"><h1>A page</h1>
<p style="margin-top: 1000px; width: 1300px; color: #aaa; background: #fff">wide and faint</p><img src="nothing.png">
<img src="http://127.0.0.1:9/x.png"><svg><g id="text_1"><text y="20">one</text></g>
<g id="text_2"><text y="22">other</text></g></svg>"""


@needs_browser
def test_our_pages_fit_phones_and_desks_by_day_and_night_and_ask_no_network(project: Project, tmp_path: Path) -> None:
    comparison = tmp_path / "comparison"
    compare(Compare(runs=tuple(o.folder for o in project.outcomes), output=str(comparison)))
    study, bad = tmp_path / "study.html", tmp_path / "bad.html"
    study.write_bytes(recorded_study.files(recorded_study.recorded(str(tmp_path / "studied")))[study.name])
    bad.write_text(BAD)
    llip_run = Path(project.outcomes[1].folder)
    pages = {
        llip_run / "report.html": ".headline div",
        project.output / "curated" / "data_card.html": ".headline",
        project.output / "sweeps" / SWEEP / "sweep.html": ".headline",
        study: ".headline",
        comparison / "comparison.html": "table tr:nth-child(2)",
        llip_run / "profile" / "summary.html": ".headline",
    }
    with browser() as chromium:
        for page, headline in pages.items():
            for name, screen in (("phone", PHONE), ("desk", DESKTOP)):
                for dark in (False, True):
                    screenshot = tmp_path / f"{page.stem}-{name}-{'night' if dark else 'day'}.png"
                    seen = chromium.look(page, screen, dark=dark, headline=headline, screenshot=screenshot)
                    assert seen.width <= screen[0], screenshot.stem
                    assert 0 < seen.headline <= screen[1], screenshot.stem
                    assert (seen.broken, seen.faint, seen.overlaps, seen.requests) == (0, [], [], []), screenshot.stem
                    assert seen.ground < 0.05 if dark else seen.ground > 0.95, screenshot.stem
                    if page.name == "report.html":
                        first = re.search(r"(\w+) (\w+)\n[\d.]+\nchance", seen.text)
                        assert first and first.groups() == ("scenes_in_style", "text_to_image_map_over_types")
        worst = chromium.look(bad, DESKTOP, dark=True, headline="p")
    assert worst.width > DESKTOP[0] and worst.headline > DESKTOP[1] and worst.broken == 2 and worst.ground > 0.95
    assert len(worst.faint) == 1 and worst.overlaps == ["figure 0: text_1, text_2"] and len(worst.requests) == 2


def test_a_model_is_served_by_the_line_on_the_page(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images and texts go in over HTTP, features and scores of the run's own model come out."""
    page = (ROOT / "pipelines" / "README.md").read_text()
    block = next(block for block in re.findall(r"^```\n(.*?)^```", page, re.M | re.S) if "models serve" in block)
    export, serve, ask = block.strip().splitlines()
    run = project.client.get_run(run_id_of(project.outcomes[1].folder))
    models = project.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    last = max(models, key=lambda model: int(model.tags["step"]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.output}/mlflow.db")  # the registry looks there
    project.client.create_registered_model("llip")
    version = project.client.create_model_version("llip", last.artifact_location, model_id=last.model_id)
    project.client.set_registered_model_alias("llip", "best", version.version)

    (tmp_path / "output").symlink_to(project.output)
    (port,) = free_ports(1)
    serve = serve.replace("uv run mlflow", f"exec {sys.executable} -m mlflow").replace("5001", str(port))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = (tmp_path / "log").open("wb")
    command = ["bash", "-c", f"{export}\n{serve}"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
    ) as server:
        try:
            deadline = time.monotonic() + 300
            while not _answers(f"http://127.0.0.1:{port}/ping"):
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.5)
            image = pd.read_parquet(next((project.output / "shards").glob("*.parquet")))["image"][0]
            content = ask.partition("--json '")[2].rstrip("'")
            content = content.replace("'$(base64 -w0 photo.jpg)'", base64.b64encode(image).decode())
            url = f"http://{ask.split()[1]}".replace("5001", str(port))
            both = _ask(url, json.loads(content))
            texts = _ask(url, {"dataframe_split": {"columns": ["text"], "data": [["an apple"], ["a dog"]]}})
        finally:
            os.killpg(server.pid, signal.SIGTERM)

    model, preprocess, tokenize = llip.load(project.outcomes[1].folder)
    with torch.inference_mode():
        images, captions = model.encode_image(preprocess(image)[None]), model.encode_text(tokenize(["an apple"]))
        score = model.pair_scores(images, captions).item()
    (row,) = both
    assert row.keys() == {"image_features", "text_features", "score"} and row["score"] == pytest.approx(score, abs=1e-5)
    assert [list(r) for r in texts] == [["text_features"]] * 2
    assert texts[0]["text_features"] == pytest.approx(row["text_features"], abs=1e-5)


def _answers(url: str) -> bool:
    try:
        with urlopen(url):
            return True
    except (URLError, ConnectionError):
        return False


def _ask(url: str, content: dict[str, Any]) -> list[dict[str, Any]]:
    request = Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return list(json.load(answer)["predictions"])
