"""The evaluation job: same numbers in one process and on actors, and done once."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.evaluation_job import write_checkpoint, write_sets
from helpers.evaluation_samples import make_sets

from llip import create_model, recipe, storage
from llip.contrastive import ContrastiveModel
from llip.evaluation import evaluate_model
from llip.evaluation.bootstrap import judge
from llip.evaluation.encode import Runner
from llip.evaluation.evaluate import Outcome, evaluate_sets
from llip.evaluation.sets import evaluation_set
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.headline import headline
from llip.interop import save_model
from llip.runs.tracking import Tracking, open_run
from pipelines.evaluate import Evaluate, evaluate
from pipelines.evaluation_cache import SCORES, read_items, scores_of

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_run_folder_is_evaluated_by_its_newest_checkpoint(
    job: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the report's figures are drawn here
    model = write_checkpoint(tmp_path / "run", 1600, seed=1)
    found = evaluate(job)
    assert found == evaluate_model(model, make_sets(), batch_size=4, progress=False)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["step"] == 1600
    metric = found["scenes/text_to_image_map"]
    assert written["metrics"]["scenes/text_to_image_map"] == vars(metric)
    assert metric.low is not None and metric.high is not None
    assert metric.low < metric.value < metric.high and metric.over == "7 captions"
    assert (tmp_path / "run" / "report.html").read_text().count("<path") > 20
    out = capsys.readouterr().out
    assert all(name in out for name in headline(found)) and f"all {len(found)} metrics" in out


def test_retrieval_in_two_stages_is_another_request_with_its_own_outcomes(job: Evaluate, tmp_path: Path) -> None:
    exact = evaluate(job)
    two_stages = dataclasses.replace(job, candidates=100)
    with pytest.raises(ValueError, match=r"other settings \(candidates"):
        evaluate(two_stages)
    (tmp_path / "run" / "metrics.json").unlink()
    found = evaluate(two_stages)
    assert {name for name in exact if "_map" not in name} == found.keys() < exact.keys()
    assert found["scenes/text_to_image_r5"] == exact["scenes/text_to_image_r5"], "all images are candidates"
    assert "scenes/text_to_image_map" not in (tmp_path / "run" / "report.md").read_text()


def test_what_is_done_is_not_done_again_and_a_newer_checkpoint_is(
    job: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(job)
    with monkeypatch.context() as patch:
        patch.setattr("llip.evaluation.evaluate.evaluate_sets", None)
        assert evaluate(job) == first
    assert "is complete: nothing to do" in capsys.readouterr().out
    write_checkpoint(tmp_path / "run", 1600, seed=1)
    assert evaluate(job) != first
    assert "evaluating again" in capsys.readouterr().out


def test_an_evaluation_that_is_killed_after_two_sets_goes_on_with_the_third(
    job: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def watched(
        model: ContrastiveModel, sets: Sequence[EvaluationSet], run: Runner, until: int | None, **options: Any
    ) -> Iterator[Outcome]:
        asked.append([data.name for data in sets])
        for done, outcome in enumerate(evaluate_sets(model, sets, run, **options)):
            if done == until:
                raise KeyboardInterrupt
            yield outcome

    monkeypatch.setattr("llip.evaluation.evaluate.evaluate_sets", partial(watched, until=2))
    with pytest.raises(KeyboardInterrupt):
        evaluate(job)
    assert not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.setattr("llip.evaluation.evaluate.evaluate_sets", partial(watched, until=None))
    resumed = evaluate(job)
    assert asked == [["pairs", "scenes", "things"], ["things"]]
    other = dataclasses.replace(job, output=str(tmp_path / "other"))
    assert evaluate(other) == resumed and asked[2] == asked[0]
    assert (tmp_path / "run" / "report.md").read_text() == (tmp_path / "other" / "report.md").read_text()
    assert (tmp_path / "run" / "report.html").read_text() == (tmp_path / "other" / "report.html").read_text()


def test_scores_of_items_are_read_back_without_the_model_and_give_the_metrics(job: Evaluate, tmp_path: Path) -> None:
    found = evaluate(job)
    for data in make_sets():
        stored = read_items(job.checkpoint, data.name)
        judged = {f"{data.name}/{name}": metric for name, metric in judge(stored).items()}
        assert judged == {name: metric for name, metric in found.items() if name.startswith(f"{data.name}/")}
    assert read_items(job.checkpoint, "other") == {}
    assert "bootstrap" in (tmp_path / "run" / "report.md").read_text()


def test_controls_are_sets_of_their_own_and_what_they_say_is_printed(
    job: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = evaluate(job)
    with pytest.raises(ValueError, match=r"other settings \(controls"):
        evaluate(dataclasses.replace(job, controls=True))
    asked = dataclasses.replace(job, controls=True, output=str(tmp_path / "controls"))
    found = evaluate(asked)
    assert {name: found[name] for name in plain} == plain
    assert {name.split("/")[0] for name in found.keys() - plain.keys()} == {
        f"{name}-shuffled" for name in ("pairs", "scenes", "things")
    }
    assert found["scenes-shuffled/text_to_image_map"] != found["scenes/text_to_image_map"]
    assert "controls: " in capsys.readouterr().out
    written = json.loads((tmp_path / "controls" / "metrics.json").read_text())
    assert written["calibration"]["scenes"]["pairs"] == 70 and "scenes-shuffled" in written["calibration"]
    evaluation_set.write(str(tmp_path / "sets" / "x"), dataclasses.replace(make_sets()[0], name="things-shuffled"))
    with pytest.raises(ValueError, match="things-shuffled is the name of a set and that of a control"):
        evaluate(dataclasses.replace(asked, output=str(tmp_path / "again")))


def test_another_context_length_is_another_request(job: Evaluate, tmp_path: Path) -> None:
    plain = evaluate(job)
    with pytest.raises(ValueError, match=r"other settings \(context_length"):
        evaluate(dataclasses.replace(job, context_length=48))
    longer = evaluate(dataclasses.replace(job, context_length=48, output=str(tmp_path / "longer")))
    assert {n: m.value for n, m in longer.items()} == pytest.approx({n: m.value for n, m in plain.items()})
    with pytest.raises(ValueError, match="--context-length 8: this model was trained with 32 tokens"):
        evaluate(dataclasses.replace(job, context_length=8, output=str(tmp_path / "shorter")))


def test_a_set_that_changes_is_evaluated_again_and_the_others_are_not(
    job: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(job)
    seen: list[str] = []

    def watched(model: ContrastiveModel, sets: Sequence[EvaluationSet], run: Runner, **options: Any) -> Any:
        seen.extend(d.name for d in sets)
        return evaluate_sets(model, sets, run)

    monkeypatch.setattr("llip.evaluation.evaluate.evaluate_sets", watched)
    evaluation_set.write(str(tmp_path / "sets" / "things"), dataclasses.replace(make_sets()[0], templates=("{}",)))
    evaluate(job)
    assert seen == ["things"]


def test_what_an_earlier_version_stored_is_evaluated_again_and_said(
    job: Evaluate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("pipelines.evaluation_cache.SCHEMA_VERSION", 4)
        earlier.setattr("pipelines.evaluate.SCHEMA_VERSION", 2)
        first = evaluate(job)
    capsys.readouterr()
    again = evaluate(job)
    assert "is of another state of its checkpoint, its sets or the metrics: evaluating again" in capsys.readouterr().out
    said = "the stored scores of things are of version 4, this program's of version 5: evaluating it again"
    assert said in caplog.messages and len(caplog.messages) >= 3
    assert {name: metric.value for name, metric in again.items()} == {n: m.value for n, m in first.items()}
    caplog.clear()
    (Path(job.checkpoint) / "metrics.json").unlink()
    assert evaluate(job) == again and not [m for m in caplog.messages if "stored scores" in m]


def test_chosen_sets_go_to_a_chosen_folder_which_keeps_its_settings(job: Evaluate, tmp_path: Path) -> None:
    output = str(tmp_path / "elsewhere")
    chosen = Evaluate(checkpoint=job.checkpoint, evaluation=job.evaluation, sets=("things",), output=output)
    assert set(evaluate(chosen)) == {f"things/{name}" for name in ("top1", "top5", "mean_per_class", "macro_f1")}
    with pytest.raises(ValueError, match=r"other settings \(sets: .*things.*\); choose another --output"):
        evaluate(Evaluate(checkpoint=job.checkpoint, evaluation=job.evaluation, output=output))


def test_everything_may_lie_in_a_bucket(s3_bucket: str) -> None:
    model = write_checkpoint(f"{s3_bucket}/runs/first", 800)
    job = Evaluate(checkpoint=f"{s3_bucket}/runs/first", evaluation=write_sets(f"{s3_bucket}/sets"), batch_size=4)
    found = evaluate(job)
    assert found == evaluate_model(model, make_sets(), batch_size=4, progress=False)
    assert storage.read_json(f"{s3_bucket}/runs/first/metrics.json")["step"] == 800
    assert storage.exists(f"{s3_bucket}/runs/first/report.html")
    assert evaluate(job) == found


def test_metrics_go_to_the_mlflow_run_of_the_run_folder(job: Evaluate, mlflow_store: str, tmp_path: Path) -> None:
    client, run_id = open_run(Tracking(uri=mlflow_store, experiment="llip", run_name="first"), job.checkpoint)
    found = evaluate(job)
    run = client.get_run(run_id)
    for end in ("low", "high"):
        assert run.data.metrics[f"eval/things/top1_{end}"] == getattr(found["things/top1"], end)
    assert {name: run.data.metrics[f"eval/{name}"] for name in found} == {n: m.value for n, m in found.items()}
    assert client.get_metric_history(run_id, "eval/things/top1")[0].step == 800
    assert "| things | top1 |" in run.data.tags["mlflow.note.content"]
    assert {d.dataset.name for d in run.inputs.dataset_inputs} == {"pairs", "scenes", "things"}
    kept = client.download_artifacts(run_id, SCORES, str(tmp_path))
    scores = scores_of(Path(kept).read_bytes())
    assert list(scores) == ["pairs", "scenes", "things"]
    for data, of_set in scores.items():
        stored = read_items(job.checkpoint, data)
        assert of_set.keys() == stored.keys()
        for name, items in of_set.items():
            assert items.same_items(stored[name]) and items.value == found[f"{data}/{name}"].value
            assert (items.chance, items.worst) == (stored[name].chance, stored[name].worst)


def test_an_evaluation_elsewhere_is_a_run_of_its_own_that_names_the_run_and_is_named_there(
    job: Evaluate, mlflow_store: str, tmp_path: Path
) -> None:
    tracking = Tracking(uri=mlflow_store, experiment="llip", run_name="trained")
    client, trained = open_run(tracking, job.checkpoint)
    found = evaluate(dataclasses.replace(job, output=str(tmp_path / "elsewhere"), sets=("things",)))
    before = client.get_run(trained).data
    assert not before.metrics, "the run keeps its own numbers and pages"
    assert not client.list_artifacts(trained)
    own = json.loads((tmp_path / "elsewhere" / "tracking.json").read_text())["run_id"]
    run = client.get_run(own)
    assert run.info.run_name == "evaluation elsewhere" and run.data.tags["stage"] == "evaluation"
    assert run.data.metrics["eval/things/top1"] == found["things/top1"].value
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["things"]
    assert f"[trained](#/experiments/{run.info.experiment_id}/runs/{trained})" in run.data.tags["mlflow.note.content"]
    assert "used by [evaluation elsewhere]" in before.tags["mlflow.note.content"]
    assert {a.path for a in client.list_artifacts(own)} == {"report.html", "report.md", "metrics.json", SCORES}


def test_an_evaluation_of_a_file_is_a_run_where_mlflow_is_named(
    tmp_path: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(create_model(recipe("llip_tiny_k8")), str(tmp_path / "model"))
    job = Evaluate(
        checkpoint=str(tmp_path / "model"), evaluation=write_sets(tmp_path / "sets"), output=str(tmp_path / "out")
    )
    evaluate(job)
    assert not (tmp_path / "out" / "tracking.json").exists(), "no store is made for it"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    evaluate(dataclasses.replace(job, output=str(tmp_path / "noted")))
    assert (tmp_path / "noted" / "tracking.json").exists()


def test_actors_give_the_same_numbers(job: Evaluate, tmp_path: Path, ray_session: None) -> None:
    write_image_folder(tmp_path / "sets" / "folder")
    alone = evaluate(job)
    spread = Evaluate(
        checkpoint=job.checkpoint,
        evaluation=job.evaluation,
        output=str(tmp_path / "spread"),
        workers=2,
        batch_size=4,
        device="cpu",
    )
    assert evaluate(spread) == alone


def test_actors_name_the_row_of_a_broken_image(tmp_path: Path, ray_session: None) -> None:
    data = make_sets()[0]
    blobs = [*data.table["image"].to_pylist()[:9], b"no image"]
    broken = EvaluationSet(
        name="things",
        task="classification",
        table=data.table.set_column(0, "image", pa.array(blobs)),
        classes=data.classes,
    )
    evaluation_set.write(str(tmp_path / "sets" / "things"), broken)
    save_model(create_model("siglip_tiny"), str(tmp_path / "model"))
    job = Evaluate(checkpoint=str(tmp_path / "model"), evaluation=str(tmp_path / "sets"), workers=1, batch_size=4)
    with pytest.raises(ValueError, match="evaluation set things, row 9: the image cannot be used"):
        evaluate(job)
    assert not (tmp_path / "model" / "metrics.json").exists()


def test_a_model_outside_of_a_run_is_identified_by_its_weights(job: Evaluate, tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    save_model(create_model("siglip_tiny"), folder)
    alone = Evaluate(checkpoint=folder, evaluation=job.evaluation, sets=("things",))
    evaluate(alone)
    first = json.loads((tmp_path / "model" / "metrics.json").read_text())
    save_model(create_model("siglip_tiny"), folder)
    evaluate(alone)
    second = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert first["step"] is None and first["inputs"]["model"] != second["inputs"]["model"]


def write_image_folder(folder: Path) -> None:
    """The classification set of `make_sets` as an image folder, of the classes that have images."""
    data = make_sets()[0]
    for row, (blob, label) in enumerate(zip(*data.table.to_pydict().values(), strict=True)):
        (folder / data.classes[label]).mkdir(parents=True, exist_ok=True)
        (folder / data.classes[label] / f"{row}.png").write_bytes(blob)
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n{c} drawn\n")


def test_an_image_folder_gives_the_numbers_of_the_same_set_in_our_format(job: Evaluate, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "folders" / "things")
    data = dataclasses.replace(make_sets()[0], classes=("cat", "dog", "owl", "fox"))
    evaluation_set.write(str(tmp_path / "ours" / "things"), data)
    ours, theirs = (
        evaluate(dataclasses.replace(job, evaluation=str(tmp_path / name), output=str(tmp_path / f"{name}-out")))
        for name in ("ours", "folders")
    )
    assert {n: m.value for n, m in ours.items()} == pytest.approx({n: m.value for n, m in theirs.items()})
