"""What a sweep refuses, what it reports, and (slow) a whole one, stopped half-way by SIGKILL and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.evaluation_samples import make_sets
from mlflow import MlflowClient

from llip.evaluation.sets import evaluation_set
from llip.fields import to_dict
from llip.training import checkpoint
from llip.training.tracking import Tracking, open_run, read_metrics
from tune import experiment, sweep
from tune.report import TrialResult
from tune.sweep import Sweep
from tune.trials import Plan, Trial

METRIC = "scenes_in_style/text_to_image_map"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "--seeds is 0; it has to be at least 1"),
        ({"steps": 3, "evaluations": 4}, "--evaluations 4 is above --steps 3"),
        ({"evaluations": 1}, "leaves asha nothing to decide"),
        ({"shards": "s3://bucket/shards"}, "metrics are compared: name a folder of evaluation sets with --evaluation"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sweep(**settings)


def test_a_space_without_a_possible_point_is_refused_with_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="no point of the space is possible"):
        sweep.sweep(Sweep(heads=(3,), output=str(tmp_path)))
    assert "left out llip-k4-m3: model.head.heads is 3; it has to be a divisor" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    folder = str(tmp_path / "sweeps" / "k_heads")
    experiment.claim(folder, Sweep(), "sweep")
    experiment.claim(folder, Sweep(output="elsewhere"), "sweep")
    with pytest.raises(ValueError, match=r"other settings \(steps: 160 → 80\); choose another --name"):
        experiment.claim(folder, Sweep(steps=80), "sweep")


def test_a_metric_of_no_set_is_refused(tmp_path: Path) -> None:
    for data in make_sets():
        evaluation_set.write(str(tmp_path / data.name), data)
    experiment.check_metric("scenes/text_to_image_map", str(tmp_path))
    with pytest.raises(ValueError, match=r"--metric scene/map: the evaluation sets in .* are pairs, scenes, things"):
        experiment.check_metric("scene/map", str(tmp_path))


def test_a_report_is_written_logged_and_ends_the_runs_of_stopped_trials(
    tmp_path: Path, mlflow_store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Sweep(k=(4,), heads=(1, 2), output=str(tmp_path))
    artifacts = str(tmp_path / "artifacts")
    tracking = Tracking(uri=mlflow_store, experiment="swept", run_name="sweep", artifact_location=artifacts)
    opened = open_run(tracking, str(tmp_path / "sweep"))
    planned = {
        str(point): Trial(point=point, config=configs[0]) for point, configs in sweep._configurations(settings).items()
    }
    plan = Plan(
        trials=planned,
        folder=str(tmp_path / "sweep"),
        shards="",
        evaluation="",
        tracking=tracking,
        parent_run_id=opened[1],
        metric=METRIC,
        asha=True,
        workers=0,
        concurrency=None,
    )
    children = {name: open_run(tracking, plan.trial_folder(name))[1] for name in planned}
    results = {
        name: TrialResult(
            point=trial.point,
            seed=0,
            samples=seen,
            budget=trial.config.samples,
            metrics={METRIC: value},
            chance={METRIC: 0.1},
        )
        for (name, trial), value, seen in zip(planned.items(), (0.4, 0.6), (trial_samples(planned), 64), strict=True)
    }
    sweep._report(settings, plan, results, opened)

    text = capsys.readouterr().out
    assert "0.4000" in text and "64 (stopped)" in text
    assert "--recipe llip_tiny_k8 --objective llip --k 4 --heads 1 --output" in text, (
        "the stopped point is not the best"
    )
    client, run_id = opened
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics[METRIC], run.data.params["heads"]) == ("FINISHED", 0.4, "(1, 2)")
    assert {a.path for a in client.list_artifacts(run_id)} == {"sweep.png", "sweep.txt"}
    assert [client.get_run(c).info.status for c in children.values()] == ["RUNNING", "KILLED"]
    assert json.loads((tmp_path / "sweep" / "results.json").read_text())[1]["samples"] == 64


def trial_samples(planned: dict[str, Trial]) -> int:
    return next(iter(planned.values())).config.samples


def test_trials_share_everything_but_what_is_compared() -> None:
    found = sweep._configurations(
        Sweep(objective=("siglip", "llip"), k=(1, 4), heads=(2,), seeds=2, learning_rate=3e-3)
    )
    assert [str(point) for point in found] == ["siglip", "llip-k1-m2", "llip-k4-m2"]
    assert [c.seed for c in next(iter(found.values()))] == [0, 1]
    wide, narrow = (to_dict(found[p][0]) for p in list(found)[1:])
    assert wide["model"]["vision"].pop("tokens") == 1 and narrow["model"]["vision"].pop("tokens") == 4
    assert wide == narrow
    assert wide["steps"] == 160 and wide["evaluate_every"] == 40 and wide["optimizer"]["learning_rate"] == 3e-3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_sweep_goes_on_and_its_trials_are_children_of_one_run(tmp_path: Path, workers: int) -> None:
    command = [
        sys.executable,
        "tune/sweep.py",
        "--output",
        str(tmp_path),
        "--corpus-images",
        "256",
        "--batch-size",
        "32",
    ]
    command += ["--k", "1", "4", "--heads", "1"]
    command += ["--steps", "16", "--evaluations", "4", "--workers", str(workers)]
    trial_folders = tmp_path / "sweeps" / "k_heads" / "trials"
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        while not list(trial_folders.glob("*/checkpoints/latest.json")):  # the first: ASHA may stop all others early
            assert first.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()

    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert METRIC in second.stdout and "best         uv run pipelines/pretrain.py" in second.stdout
    assert (tmp_path / "sweeps" / "k_heads" / "sweep.png").stat().st_size > 10_000
    names = sorted(f.name for f in trial_folders.iterdir())
    assert names == ["llip-k1-m1-seed0", "llip-k4-m1-seed0"]
    results = json.loads((tmp_path / "sweeps" / "k_heads" / "results.json").read_text())
    assert any(r["samples"] == 16 * 32 for r in results)
    for folder in trial_folders.iterdir():
        steps = [line["step"] for line in read_metrics(str(folder)) if "loss" in line]
        assert steps == sorted(set(steps)), "nothing is trained twice in the record"

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("llip").experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert [r.info.run_name for r in parents] == ["k_heads"]
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parents[0].info.run_id}
    assert sorted(r.info.run_name for r in children) == names
    ended = {r.info.run_name: r.info.status for r in [*parents, *children]}
    saved = {f.name: checkpoint.latest(str(f)) for f in trial_folders.iterdir()}  # none where stopped while saving
    finished = {name for name, folder in saved.items() if folder and checkpoint.step_of(folder) == 16}
    assert {n for n, status in ended.items() if status == "FINISHED"} == finished | {"k_heads"}
    assert set(ended.values()) <= {"FINISHED", "KILLED"}
