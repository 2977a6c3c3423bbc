"""What a sweep refuses, what it adds when it is extended, what it reports, and (slow) whole ones that are killed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from llip import lease, storage
from llip.fields import override, to_dict
from llip.recipes import recipe
from llip.runs.tracking import Tracking, open_run, read_metrics
from pipelines import launching
from pipelines.command import parse
from pipelines.pretrain import Pretrain
from tune import experiment, results, sweep, trials
from tune.points import Point
from tune.results import Evaluation, Trial, TrialResult
from tune.sweep import STEPS, Sweep
from tune.trials import TrialPlan

METRIC = "scenes_in_style/text_to_image_map"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "--seeds is 0; it has to be at least 1"),
        ({"trials": 0}, "--trials is 0; it has to be at least 1"),
        ({"overrides": {"steps": 3}}, "--evaluations 4 is above --steps 3"),
        ({"evaluations": 1, "scheduler": "hyperband"}, "leaves hyperband nothing to decide"),
        ({"search": "random"}, "--search random needs --trials"),
        ({"trials": 4}, "--trials is for distributions, of which this grid has none"),
        ({"vary": ("learning_rate=uniform:1e-4:1e-3",)}, "a distribution needs --trials"),
        ({"vary": ("k=1,4",), "overrides": {"k": 8}}, "model.vision.tokens is varied and given as an option"),
        ({"vary": ("heads=3",)}, "no point of the sweep is possible: .* divisor of embed_dim 32"),
        ({"vary": ("recipe=clip_tiny,nothing",)}, "there is no recipe 'nothing'"),
        ({"overrides": {"evaluate_every": 5}}, "evaluate_every is given; leave it out: --evaluations says"),
        ({"shards": "a", "pool": "b"}, "--pool and --shards exclude each other"),
        ({"shards": "s3://bucket/shards"}, "metrics are compared: name a folder of evaluation sets with --evaluation"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        sweep.sweep(Sweep(**settings, output=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_length_of_ones_own_replaces_the_default_one() -> None:
    vary = ["--vary", "recipe=clip_tiny"]
    assert parse(Sweep, vary).training().steps == STEPS["steps"]
    assert parse(Sweep, [*vary, "--steps", "1200"]).training().steps == 1200
    assert parse(Sweep, [*vary, "--epochs", "2"]).training().epochs == 2
    for axis in ("steps=100,200", "epochs=1,2"):
        assert "steps" not in Sweep(vary=(axis,)).space().fixed


def test_an_option_holds_for_every_recipe_also_where_it_is_the_first_ones_own_value() -> None:
    settings = parse(Sweep, ["--vary", "recipe=llip_tiny_k8,clip_b32", "--learning-rate", "1e-3"])
    found = sweep.select(settings, settings.space(), "memory://none").points
    assert [config.optimizer.learning_rate for _, config in found.values()] == [1e-3, 1e-3]


class Faked:
    """Runs trials without Ray and without training: a trial reaches what `value` says, or fails where it says None."""

    def __init__(self, folder: Path, value: Callable[[Trial], float | None]) -> None:
        self.folder, self.value, self.trained = str(folder), value, list[str]()

    def run(self, plan: TrialPlan, suggestions: Any = None) -> Mapping[str, TrialResult]:
        known = {name: results.read(plan.trial_folder(name), trial) for name, trial in plan.trials.items()}
        left = [trial for name, trial in plan.trials.items() if not known[name].ended]
        while left or (suggestions and (left := suggestions.next())):
            trial = left.pop(0)
            value = self.value(trial)
            done = Evaluation(
                step=trial.config.total_steps,
                samples=trial.config.samples,
                metrics={METRIC: value or 0.0},
                chance={METRIC: 0.1},
            )
            result = results.unfinished(trial).evaluated(done)
            state = "failed" if value is None else "finished"
            error = "broken" if value is None else None
            results.write(plan.trial_folder(trial.name), results.replace(result, state=state, error=error))  # type: ignore[attr-defined]
            self.trained.append(trial.name)
            if suggestions:
                suggestions.ended(trial, value)
        everything = {**plan.trials, **(suggestions.planned if suggestions else {})}
        return {name: results.read(plan.trial_folder(name), trial) for name, trial in everything.items()}

    def prepare(self, settings: Sweep, folder: str, kind: str, fixed: Any, heads: Any) -> TrialPlan:
        experiment.check(folder, kind, fixed)
        (Path(folder)).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{kind}.json").write_text(json.dumps(fixed))
        return plan_in(folder)


def plan_in(folder: str, tracking: Tracking | None = None, parent: str | None = None) -> TrialPlan:
    return TrialPlan(
        folder=folder, shards="", evaluation="", tracking=tracking, parent_run_id=parent,  # type: ignore[arg-type]
        metric=METRIC, workers=0, concurrency=None,
    )  # fmt: skip


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Sweeps that train nothing: names of the trials that one would have trained."""

    def one(value: Callable[[Trial], float | None] = lambda trial: 0.5, **settings: Any) -> list[str]:
        faked = Faked(tmp_path, value)
        monkeypatch.setattr(trials, "run", faked.run)
        monkeypatch.setattr(experiment, "prepare", faked.prepare)
        sweep.sweep(Sweep(**settings, output=str(tmp_path)))
        return faked.trained

    return one


def test_an_extended_sweep_trains_what_is_missing(swept: Callable[..., list[str]]) -> None:
    """With one token, and no patches, all numbers of heads are the same model."""
    of_llip = partial(swept, recipe="llip_tiny_k8")
    assert of_llip(vary=("k=1,4",), seeds=1) == ["llip_tiny_k8-k1-seed0", "llip_tiny_k8-k4-seed0"]
    assert of_llip(vary=("k=1,4",), seeds=1) == []
    assert of_llip(vary=("k=4,1,16",), seeds=1) == ["llip_tiny_k8-k16-seed0"]
    assert of_llip(vary=("k=1,4",), seeds=2) == ["llip_tiny_k8-k1-seed1", "llip_tiny_k8-k4-seed1"]
    assert of_llip(vary=("k=1,4", "heads=1,4"), seeds=1) == ["llip_tiny_k8-k4-heads1-seed0"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trial_holds_the_lease_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    plan = replace(plan_in(str(tmp_path), Tracking(uri="", run_name="")), workers=workers)
    config = override(recipe("llip_tiny_k8"), {"steps": 3})
    trial = Trial(point=Point(name="x", recipe="llip_tiny_k8"), config=config)
    held = []

    def train(job: launching.Run, **_: Any) -> None:
        held.append((Path(job.folder) / lease.NAME).exists())

    monkeypatch.setattr(launching, "train_and_evaluate", train)
    monkeypatch.setattr(launching, "fit", train)
    monkeypatch.setattr("ray.tune.integration.ray_train.TuneReportCallback", object)  # it has to be in a trial
    trials._train({"trial": trial}, plan)
    with (
        lease.sole_writer(plan.trial_folder(trial.name)),
        pytest.raises(ValueError, match=rf"{trial.name} is being written by process {os.getpid()}"),
    ):
        trials._train({"trial": trial}, plan)
    assert held == [True]


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_search_of_more_trials_goes_on(search: str, swept: Callable[..., list[str]]) -> None:
    vary = ("learning_rate=loguniform:1e-4:3e-3", "temperature=uniform:1:10", "k=1,4,16")

    def value(trial: Trial) -> float:
        return 0.9 - abs(trial.config.optimizer.learning_rate - 1e-3) * 100

    first = swept(value, vary=vary, search=search, trials=2, seeds=1)
    assert len(set(first)) == len(first) == 2
    more = swept(value, vary=vary, search=search, trials=4, seeds=1)
    assert len(more) == 2 and not set(more) & set(first)
    third = swept(value, vary=vary, search=search, trials=4, seeds=2)
    assert sorted(third) == sorted({f"{name[:-1]}1" for name in first + more})


def test_a_failed_trial_is_named_and_is_tried_again(
    swept: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(trial: Trial) -> float | None:
        return None if trial.config.model.vision.tokens == 4 else 0.5

    swept(broken, vary=("k=1,4,16",), seeds=1)
    assert "llip_dense_mini_k8-k4-seed0 failed: broken" in (tmp_path / "sweeps/k_heads/sweep.txt").read_text()
    assert swept(vary=("k=1,4,16",), seeds=1) == ["llip_dense_mini_k8-k4-seed0"]


def test_what_is_fixed_may_not_change(swept: Callable[..., list[str]]) -> None:
    swept(vary=("k=1,4",), seeds=1)
    assert swept(vary=("k=1,4",), seeds=1, overrides={"steps": 600, "data.threads": 2}) == []
    with pytest.raises(ValueError, match=r"sweep of other settings \(overrides.steps: 600 → 80\); choose another"):
        swept(vary=("k=1,4",), seeds=1, overrides={"steps": 80})
    with pytest.raises(ValueError, match=r"metric: .*; recipe: 'llip_dense_mini_k8' → 'llip_tiny_k16'"):
        swept(vary=("k=1,4",), metric="a/b", recipe="llip_tiny_k16")


def test_trials_share_everything_but_what_is_compared() -> None:
    settings = Sweep(overrides={"steps": 160, "learning_rate": 3e-3, "seed": 5})
    space = settings.space()
    point, config = space.point({"model.vision.tokens": 4, "model.head.heads": 1})
    one, two = sweep.trials_of(settings, plan_in("x"), point, config, {})
    assert two.name == "llip_dense_mini_k8-k4-heads1-seed6" and two.config == override(one.config, {"seed": 6})
    values = {"k": 4, "heads": 1, "steps": 160, "learning_rate": 3e-3, "seed": 5}
    every = {"evaluate_every": 40, "checkpoint_every": 40}
    assert one.config == override(recipe("llip_dense_mini_k8"), values | every)


def test_the_best_points_command_trains_that_point() -> None:
    vary = ("recipe=llip_tiny_k8,llip_tiny_k16", "model.head.norm=true", "data.crop_scale=0.5/1.0", "logit_bias=-2.5")
    settings = Sweep(vary=vary, output="out folder", shards=("a", "b"), evaluation="c")
    space = settings.space()
    for point, config in sweep.select(settings, space, "memory://none").points.values():
        words = shlex.split(sweep.best_command(settings, space, point))
        assert words[:3] == ["uv", "run", "pipelines/pretrain.py"]
        parsed = parse(Pretrain, words[3:])
        assert parsed.training() == config and (parsed.output, parsed.shards) == ("out folder", ("a", "b"))


def test_a_report_is_logged_and_ends_the_runs_of_stopped_trials(
    tmp_path: Path, mlflow_store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Sweep(vary=("k=4", "heads=1,2"), seeds=1, output=str(tmp_path))
    tracking = Tracking(
        uri=mlflow_store, experiment="swept", run_name="sweep", artifact_location=str(tmp_path / "artifacts")
    )
    client, run_id = open_run(tracking, str(tmp_path / "sweep"))
    plan = plan_in(str(tmp_path / "sweep"), tracking, run_id)
    space = settings.space()
    selection = sweep.select(settings, space, plan.folder)
    of = {name: sweep.trials_of(settings, plan, p, c, {})[0] for name, (p, c) in selection.points.items()}
    children = [open_run(plan.trial_tracking(trial), plan.trial_folder(trial.name))[1] for trial in of.values()]
    found = {}
    for trial, value, state in zip(of.values(), (0.4, 0.6), ("finished", "stopped"), strict=True):
        samples = trial.config.samples if state == "finished" else 64
        e = Evaluation(step=samples // 64, samples=samples, metrics={METRIC: value}, chance={METRIC: 0.1})
        found[trial.name] = results.replace(results.unfinished(trial).evaluated(e), state=state)  # type: ignore[attr-defined]
    configs = {name: config for name, (_, config) in selection.points.items()}
    sweep.report(settings, space, plan, found, configs, ["a note"])

    text = capsys.readouterr().out
    assert "0.4000" in text and "64 (stopped)" in text
    assert "--recipe llip_dense_mini_k8 --steps 600 --model.vision.tokens 4 --model.head.heads 1 --output" in text
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics[f"eval/{METRIC}"], run.data.params["seeds"]) == ("FINISHED", 0.4, "1")
    assert {a.path for a in client.list_artifacts(run_id)} == {
        "sweep.html",
        "sweep.png",
        "sweep.txt",
        "results.json",
    }
    assert "4000" in run.data.tags["mlflow.note.content"]
    assert [client.get_run(c).info.status for c in children] == ["RUNNING", "KILLED"]
    assert client.get_run(children[0]).data.tags["model.head.heads"] == "1"
    assert "a note" in (tmp_path / "sweep" / "sweep.txt").read_text()
    first = next(iter(of.values()))
    storage.write_json(f"{plan.trial_folder(first.name)}/config.json", {"training": to_dict(first.config)})
    words = shlex.split(plan.trial_command(first))
    again = parse(Pretrain, words[3:])
    assert again.training() == first.config and (again.shards, again.evaluation) == (plan.shards, plan.evaluation)
    assert json.loads((tmp_path / "sweep" / "results.json").read_text())[1]["state"] == "stopped"


def test_help_does_not_wait_for_torch_or_ray() -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'matplotlib', 'optuna'}"
    program = f"import sys, tune.sweep, tune.study, tune.scaling; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_workers_of_uv_run_take_the_environment_that_is_there() -> None:
    """Ray reads the variable when it is imported, which planning a sweep does long before it starts Ray."""
    program = "import tune.sweep, tune.trials; from ray._private import ray_constants as c; print(c.{0})"
    variable = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
    bare = {name: value for name, value in os.environ.items() if name != variable}
    run = [sys.executable, "-c", program.format(variable)]
    assert subprocess.run(run, cwd=ROOT, env=bare, capture_output=True, text=True).stdout == "False\n"


def _killed_in_the_middle(command: list[str], log: Path, trial_folders: Path) -> None:
    with log.open("w") as output:
        first = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        while not list(trial_folders.glob("*/checkpoints/latest.json")):
            assert first.poll() is None, log.read_text()
            time.sleep(0.5)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("search", "workers"), [("optuna", 0), pytest.param("random", 1, marks=pytest.mark.soak)])
def test_a_killed_search_goes_on_and_is_extended(tmp_path: Path, search: str, workers: int) -> None:
    command = [sys.executable, "tune/sweep.py", "--output", str(tmp_path), "--corpus-images", "192", "--steps", "8"]
    command += ["--batch-size", "32", "--evaluations", "2", "--seeds", "1", "--search", search, "--name", "rates"]
    command += ["--vary", "learning_rate=loguniform:1e-4:3e-3", "temperature=uniform:1:10", "k=1,4"]
    command += ["--workers", str(workers), "--scheduler", "asha" if workers else "none"]
    folder = tmp_path / "sweeps" / "rates"
    _killed_in_the_middle([*command, "--trials", "1"], tmp_path / "log", folder / "trials")

    run = subprocess.run([*command, "--trials", "2"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert METRIC in run.stdout and "best         uv run pipelines/pretrain.py" in run.stdout
    found = json.loads((folder / "results.json").read_text())
    assert len(found) == 2 and any(r["state"] == "finished" for r in found)
    assert (folder / "sweep.png").stat().st_size > 10_000
    for trial in (folder / "trials").iterdir():
        steps = [line["step"] for line in read_metrics(str(trial)) if "loss" in line]
        assert steps == sorted(set(steps)), "nothing is trained twice in the record"

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("llip")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert sorted(r.info.run_name for r in parents) == ["curated", "rates", "shards"]
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {
        next(r.info.run_id for r in parents if r.info.run_name == "rates")
    }
    assert sorted(r.info.run_name for r in children) == sorted(f.name for f in (folder / "trials").iterdir())
    assert {r.info.status for r in runs} <= {"FINISHED", "KILLED"}
