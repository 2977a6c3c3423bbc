"""Checkpoints as models of MLflow: one a kept checkpoint, with its metrics by data set, loaded and served by URI."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import llip
from llip.config import TrainingConfig
from llip.contrastive import ContrastiveModel
from llip.runs.notebook import Data
from llip.runs.tracking import Tracker, Tracking, checkpoint_of, open_run
from llip.training.loop import train
from llip.training.parallel import single_process


@pytest.fixture
def tracking(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    shutil.copy(empty_database, tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Tracking(uri=uri, experiment="models", run_name="tiny-0.5", artifact_location=f"{tmp_path}/artifacts")


def test_every_kept_checkpoint_is_a_model_of_mlflow_and_the_last_one_is_served(
    tracking: Tracking, shards: str, small: TrainingConfig, run_folder: Callable[[str], str]
) -> None:
    import mlflow.pyfunc
    import pandas as pd

    folder = run_folder("a")
    config = replace(small, steps=6, checkpoint_every=2, evaluate_every=2, keep_checkpoints=2)
    data = Data(name="set", digest="1" * 64, uri="/set", rows=7, context="evaluation")
    for _ in range(2):  # the second time nothing is left to do, and nothing is there twice
        with Tracker(tracking, folder) as tracker:
            tracker.inputs([data])

            def evaluate(step: int, model: ContrastiveModel, tracker: Tracker = tracker) -> None:
                tracker.log(step, {"set/top1": step / 10})

            train(
                config,
                shards=shards,
                folder=folder,
                world=single_process(),
                tracker=tracker,
                evaluate=evaluate,
            )
    client, run_id = open_run(tracking, folder)
    experiment = client.get_run(run_id).info.experiment_id
    models = {int(m.tags["step"]): m for m in client.search_logged_models([experiment])}
    assert sorted(models) == [4, 6] and {m.status.name for m in models.values()} == {"READY"}
    assert {m.name for m in models.values()} == {"tiny-0_5-step4", "tiny-0_5-step6"}
    found = client.get_logged_model(models[6].model_id)
    assert [(m.key, m.value, m.dataset_name, m.dataset_digest) for m in found.metrics] == [
        ("eval/set/top1", 0.6, "set", "1" * 32)
    ]
    ranked = client.search_logged_models(
        [experiment], order_by=[{"field_name": "metrics.`eval/set/top1`", "ascending": False}]
    )
    assert [m.tags["step"] for m in ranked] == ["6", "4"]

    client.create_registered_model("tiny")
    version = client.create_model_version("tiny", models[6].artifact_location, model_id=models[6].model_id)
    client.set_registered_model_alias("tiny", "best", version.version)
    uris = [f"models:/{models[6].model_id}", "models:/tiny/1", "models:/tiny@best"]
    assert [checkpoint_of(uri) for uri in uris] == [f"{folder}/checkpoints/step-00000006"] * 3
    with pytest.raises(ValueError, match=r"models:/nobody@best: MLflow at .* has no such model"):
        checkpoint_of("models:/nobody@best")

    model, preprocess, tokenize = llip.load(uris[-1])
    file = next(Path(shards).glob("*.parquet"))
    image = pd.read_parquet(file)["image"][0]
    rows = pd.DataFrame({"image": [image, image], "text": ["something red", "on the left"]})
    mlflow.set_tracking_uri(tracking.uri)
    served = mlflow.pyfunc.load_model(uris[0])
    with torch.no_grad():
        features = (
            model.encode_image(torch.stack([preprocess(image)] * 2)),
            model.encode_text(tokenize(list(rows.text))),
        )
        expected = model.pair_scores(*features).diagonal()
    torch.testing.assert_close(torch.tensor(served.predict(rows)["score"].to_numpy()).float(), expected)
    assert list(served.predict(rows[["text"]])) == ["text_features"]
    assert served.metadata.signature is not None and served.input_example is not None
    artifacts = Path(found.artifact_location)
    assert sum(f.stat().st_size for f in artifacts.rglob("*")) < 20_000, "the weights were not copied"
