"""Models and sets that the evaluation job takes or refuses before work starts."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from helpers.evaluation_samples import make_sets

from llip import create_model
from llip.evaluation import evaluate_model
from llip.interop import RELEASE_NAMES, save_model
from pipelines.evaluate import Evaluate, evaluate

pytestmark = pytest.mark.usefixtures("undrawn")


def test_what_is_no_checkpoint_is_refused(job: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is neither a run folder"):
        evaluate(Evaluate(checkpoint=str(tmp_path / "empty"), evaluation=job.evaluation))


def test_a_folder_without_sets_and_a_set_that_does_not_exist_are_refused(job: Evaluate, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run holds no evaluation set"):
        evaluate(Evaluate(checkpoint=job.checkpoint, evaluation=str(tmp_path / "run")))
    with pytest.raises(ValueError, match=r"--sets other: .* holds pairs, scenes, things"):
        evaluate(Evaluate(checkpoint=job.checkpoint, evaluation=job.evaluation, sets=("other",)))


def test_sets_without_labels_and_without_rows_are_refused_by_name(job: Evaluate, tmp_path: Path) -> None:
    folder = tmp_path / "sets" / "things"
    table = make_sets()[0].table
    pa.parquet.write_table(table.drop(["label"]), folder / "data-00000.parquet")
    with pytest.raises(ValueError, match="evaluation set things: a classification set needs the column 'label'"):
        evaluate(job)
    pa.parquet.write_table(table.slice(0, 0), folder / "data-00000.parquet")
    with pytest.raises(ValueError, match="evaluation set things: it has no rows"):
        evaluate(job)


def test_released_weights_are_evaluated_as_their_recipe_says(job: Evaluate, tmp_path: Path) -> None:
    """A file in the public release's names gives the numbers of the model that it was written from."""
    torch.manual_seed(0)
    model = create_model("llip_tiny_k8")
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in RELEASE_NAMES.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    file = tmp_path / "llip.pt"
    torch.save({"state_dict": state}, file)
    common: dict[str, Any] = {"evaluation": job.evaluation, "output": str(tmp_path / "out"), "batch_size": 4}
    found = evaluate(Evaluate(checkpoint=str(file), recipe="llip_tiny_k8", **common))
    assert found == evaluate_model(model, make_sets(), batch_size=4, progress=False)
    with pytest.raises(ValueError, match=r"--output is needed: .*llip\.pt is a file"):
        evaluate(Evaluate(checkpoint=str(file), recipe="llip_tiny_k8", evaluation=job.evaluation))
    with pytest.raises(ValueError, match=r"does not hold a model of recipe llip_tiny_k16 \(vision.tokens: 16 → 8"):
        evaluate(Evaluate(checkpoint=str(file), recipe="llip_tiny_k16", **(common | {"output": str(tmp_path / "o")})))


def test_weights_of_another_configuration_are_refused_and_nothing_is_written(job: Evaluate, tmp_path: Path) -> None:
    for name in ("siglip_tiny", "llip_tiny_k8"):
        save_model(create_model(name), str(tmp_path / name))
    shutil.copy(tmp_path / "siglip_tiny" / "model.json", tmp_path / "llip_tiny_k8" / "model.json")
    before = sorted((tmp_path / "llip_tiny_k8").iterdir())
    with pytest.raises(ValueError, match=r"llip_tiny_k8 lacks head\.image\.proj.* of a class_token model"):
        evaluate(dataclasses.replace(job, checkpoint=str(tmp_path / "llip_tiny_k8")))
    assert sorted((tmp_path / "llip_tiny_k8").iterdir()) == before


def test_a_recipe_for_what_says_itself_what_it_holds_is_refused(job: Evaluate) -> None:
    with pytest.raises(ValueError, match="--recipe is for a file of released weights"):
        evaluate(Evaluate(checkpoint=job.checkpoint, recipe="llip_tiny_k8", evaluation=job.evaluation))


@pytest.mark.parametrize(("field", "value"), [("workers", -1), ("batch_size", 0), ("candidates", 9)])
def test_settings_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} {value}"):
        Evaluate(checkpoint="x", **{field: value})
