"""Linear probe and spectrum of checkpoints as a job."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.evaluation_samples import picture

from llip import create_model
from llip.evaluation.sets import evaluation_set
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.interop import save_model
from pipelines.analyse import Analyse, analyse


def write_set(folder: Path, seeds: range) -> str:
    table = pa.table({"image": [picture(seed) for seed in seeds], "label": [seed % 2 for seed in seeds]})
    data = EvaluationSet(name="noise", task="classification", table=table, classes=("even", "odd"))
    evaluation_set.write(str(folder), data)
    return str(folder)


def test_checkpoints_are_analysed_side_by_side(tmp_path: Path) -> None:
    checkpoints = tuple(str(tmp_path / name) for name in ("llip", "siglip"))
    for folder, recipe in zip(checkpoints, ("llip_tiny_k8", "siglip_tiny"), strict=True):
        save_model(create_model(recipe), folder)
    train, test = write_set(tmp_path / "train", range(20)), write_set(tmp_path / "test", range(20, 30))
    output = str(tmp_path / "out")
    analyse(Analyse(checkpoints=checkpoints, probe_train=train, probe_test=test, spectrum=train, output=output))
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())["results"]
    assert set(found) == {"llip", "siglip"}
    for of_run in found.values():
        assert 0 <= of_run["linear_probe_top1"] <= 1 and len(of_run["singular_values"]) == 128
        assert of_run["singular_values"] == sorted(of_run["singular_values"], reverse=True)
    page = (tmp_path / "out" / "analysis.html").read_text()
    assert "linear_probe_top1" in page.replace("<wbr>", "") and page.count("<svg") == 1


def test_settings_that_ask_for_nothing_or_for_half_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to do"):
        Analyse(checkpoints=("x",))
    with pytest.raises(ValueError, match="--probe-train and --probe-test belong together"):
        Analyse(checkpoints=("x",), probe_train="y")
