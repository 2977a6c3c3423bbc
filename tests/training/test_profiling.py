"""The trace of a few steps and the page about them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llip.config import TrainingConfig
from llip.runs.tracking import Tracker, Tracking, open_run
from llip.training.loop import train
from llip.training.parallel import current_world
from llip.training.profiling import FIRST, HTML, PAGE, PHASES, STEPS, TRACE, WARMUP


def _rows(page: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_trace_and_a_page_are_left_and_logged(
    accumulation: int, small: TrainingConfig, shards: str, tmp_path: Path, mlflow_store: str
) -> None:
    config = replace(small, steps=12, objective=replace(small.objective, accumulation=accumulation))
    tracking = Tracking(
        uri=mlflow_store,
        experiment=f"profile-{tmp_path.name}",
        run_name="x",
        artifact_location=str(tmp_path / "artifacts"),
    )
    folder = str(tmp_path / "run")
    with Tracker(tracking, folder) as tracker:
        train(config, shards=shards, folder=folder, world=current_world(), tracker=tracker, profile=True)

    page, trace = ((tmp_path / "run" / name).read_text() for name in (PAGE, TRACE))
    rows = _rows(page)
    shares = {name: float(rows[name][1].removesuffix("%")) for name in (*PHASES, "rest")}
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert all(shares[name] > 0 for name in (*PHASES, "rest"))
    assert rows["backward"][2] == "█" * round(40 * shares["backward"] / 100)
    assert sum(name.startswith("aten::") for name in rows) >= 5
    steps = {e["name"] for e in json.loads(trace)["traceEvents"] if e.get("name", "").startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{FIRST + WARMUP + n}" for n in range(STEPS)}

    client, run_id = open_run(tracking, folder)
    assert [a.path for a in client.list_artifacts(run_id, "profile")] == [HTML, PAGE, TRACE]
    assert "<td>backward</td>" in Path(client.download_artifacts(run_id, HTML)).read_text()
    assert Path(client.download_artifacts(run_id, PAGE)).read_text() == page
    assert "Collectives are under way in 0.0% of the time" in page


def test_profiling_changes_no_number(small: TrainingConfig, shards: str, tmp_path: Path) -> None:
    models = []
    for profile in (False, True):
        folder = str(tmp_path / str(profile))
        with Tracker(None, folder) as tracker:
            models.append(
                train(
                    replace(small, steps=10),
                    shards=shards,
                    folder=folder,
                    world=current_world(),
                    tracker=tracker,
                    profile=profile,
                )
            )
    assert not (tmp_path / "False" / "profile").exists()
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
