"""The sweep of temperatures against models that have each of them in their configuration."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.browser import PHONE, browser, needs_browser
from helpers.evaluation_samples import make_sets

from llip import create_model, recipe
from llip.evaluation import evaluate_model
from llip.evaluation.sets import evaluation_set
from llip.interop import save_model
from pipelines import command
from pipelines.temperature import Temperature, sweep_temperature

TEMPERATURES = (0.2, 1.0, 40.0)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Temperature:
    folder = tmp_path_factory.mktemp("temperature")
    torch.manual_seed(0)
    save_model(create_model("llip_tiny_k8"), str(folder / "model"))
    for data in make_sets(30):
        evaluation_set.write(str(folder / "sets" / data.name), data)
    return Temperature(
        checkpoint=str(folder / "model"), evaluation=str(folder / "sets"), temperatures=TEMPERATURES, device="cpu"
    )


@pytest.mark.parametrize("option", [["--candidates", "40"], ["--controls"], ["--context-length", "90"]])
def test_options_that_change_nothing_here_are_not_offered(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.parse(Temperature, ["--checkpoint", "x", *option])
    assert option[0] in capsys.readouterr().err


def test_every_value_is_that_of_a_model_with_the_temperature(job: Temperature) -> None:
    found = sweep_temperature(job)
    config = recipe("llip_tiny_k8").model
    assert found.trained == config.head.temperature and found.temperatures == (0.2, 1.0, found.trained, 40.0)
    assert set(found.values) == {
        "things/top1", "scenes/text_to_image_r1", "scenes/image_to_text_r1", "scenes/text_to_image_map"
    }  # fmt: skip
    distinct = set()
    for place, temperature in enumerate(found.temperatures):
        torch.manual_seed(0)
        model = create_model(replace(config, head=replace(config.head, temperature=temperature)))
        expected = evaluate_model(model, make_sets(30), progress=False)
        assert {m: of[place] for m, of in found.values.items()} == pytest.approx(
            {m: expected[m].value for m in found.values}, abs=1e-6
        )
        distinct.add(expected["scenes/text_to_image_map"].value)
    assert len(distinct) == 4, "the temperature changes what is measured"


def test_the_pages_name_the_best_and_the_trained_temperature(job: Temperature) -> None:
    found = sweep_temperature(job)
    folder = Path(job.checkpoint)
    assert json.loads((folder / "temperature.json").read_text())["values"] == found.values
    rows = (folder / "temperature.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["0.2", "1", "5 (trained)", "40"]
    assert sum("**" in cell for row in rows for cell in row.split("|")) == len(found.values)
    assert (folder / "temperature.html").read_text().count("<svg") == 1


def test_a_tie_goes_to_the_trained_temperature(job: Temperature) -> None:
    found = replace(sweep_temperature(job), values={"x": [0.5, 0.5, 0.5, 0.4]})
    assert found.best("x") == found.trained


def test_models_without_temperatures_and_bad_temperatures_are_refused(job: Temperature, tmp_path: Path) -> None:
    save_model(create_model("siglip_tiny"), str(tmp_path))
    with pytest.raises(ValueError, match="a class_token head has no temperature"):
        sweep_temperature(replace(job, checkpoint=str(tmp_path)))
    with pytest.raises(ValueError, match=r"temperature 0\.0 has to be positive"):
        sweep_temperature(replace(job, temperatures=(0.0,)))
    with pytest.raises(ValueError, match=r"only classification and retrieval sets .*; these are pairs \(context\)"):
        sweep_temperature(replace(job, sets=("pairs",)))


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_the_page_within_its_width(job: Temperature) -> None:
    sweep_temperature(job)
    with browser() as chromium:
        found = chromium.look(Path(job.checkpoint) / "temperature.html", PHONE)
    assert found.width <= PHONE[0] and not found.overlaps
