"""What a study trains, what it refuses, and how its three rounds depend on each other; (slow) a whole one."""

import json
from pathlib import Path

import pytest
from helpers import recorded_study
from helpers.recorded_study import Recorded, recorded

from llip.recipes import recipe
from tune import study_report
from tune.study import OwnSettings, Study, study


def test_every_variant_is_trained_once() -> None:
    points = [str(p) for p in Study(ks=(1, 8), head_counts=(4, 8)).variants()]
    assert points == [
        *("llip-k8-m4", "clip", "siglip", "register-k8", "mean-k8", "learned_query-k8-m4"),
        *("llip-k1-m4", "llip-k8-m8"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "--seeds is 0; it has to be at least 1"),
        ({"choice_share": 0.0}, r"--choice-share is 0.0; it has to be in \(0, 1\]"),
        ({"recipe": "siglip_tiny"}, "--recipe siglip_tiny is not one of Llip"),
        ({"overrides": {"learning_rate": 1e-3}}, "--learning-rates are what it is chosen from"),
        ({"workers": 9}, "--workers 9 cannot share the 8 lanes of llip_tiny_k8"),
        ({"shards": "s3://bucket/shards"}, "metrics are compared: name a folder of evaluation sets with --evaluation"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(Study(**settings))  # type: ignore[arg-type]


@pytest.fixture
def rounds() -> Recorded:
    return recorded()


def test_settings_are_chosen_by_the_metric_for_each_objective(rounds: Recorded) -> None:
    choices = rounds.choose()
    assert {o: c.learning_rate for o, c in choices.items()} == {"clip": 1e-3, "siglip": 1e-3, "llip": 1e-3}
    assert choices["clip"].logit_bias is None and choices["siglip"].logit_bias in (-10.0, -5.0)
    assert choices["siglip"].temperature is None and choices["llip"].temperature == 5.0


def test_ablations_take_llips_settings_and_all_see_the_same_images(rounds: Recorded) -> None:
    own = OwnSettings(learning_rate=3e-3, logit_scale=10.0, logit_bias=-5.0, temperature=2.0)
    trial = rounds._trial(rounds.settings.point("mean"), own, steps=100, seed=1)
    assert (trial.config.optimizer.learning_rate, trial.config.model.init_logit_bias) == (3e-3, -5.0)
    results = rounds.equal_steps(rounds.choose())
    assert {r.samples for r in results} == {100 * recipe("llip_tiny_k8").data.batch_size}
    assert len(results) == 2 * len(rounds.settings.variants())


def test_baselines_get_the_steps_that_llips_time_holds(rounds: Recorded) -> None:
    choices = rounds.choose()
    longer = rounds.equal_time(choices)
    assert {str(r.point): r.samples // 64 for r in longer} == {"clip": 150, "siglip": 125}


def test_the_report_holds_every_variant_with_its_spread(rounds: Recorded) -> None:
    choices, equal_steps = rounds.choose(), rounds.equal_steps(rounds.choose())
    files = recorded_study.files(rounds)
    lines = files[study_report.TABLE].decode().splitlines()
    assert "| siglip | 2 | 6,400 | 0.504 ± 0.007 | 0.252 ± 0.004 | 0.252 ± 0.004 |" in lines
    assert "| siglip, Llip's time | 2 | 8,000 | 0.504 ± 0.007 | 0.252 ± 0.004 | 0.252 ± 0.004 |" in lines
    assert f"- SigLIP: {choices['siglip']}" in lines
    assert files[study_report.FIGURE].startswith(b"\x89PNG")
    kept = json.loads(files[study_report.RESULTS])
    assert len(kept["equal_steps"]) == len(equal_steps) and kept["choices"]["llip"]["learning_rate"] == 1e-3


@pytest.mark.slow
@pytest.mark.soak
def test_a_whole_study_on_a_small_corpus(tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Study(
        ks=(8,), head_counts=(4,), seeds=1, overrides={"steps": 8}, learning_rates=(1e-3,), logit_scales=(10.0,),
        logit_biases=(-10.0,), corpus_images=256, output=str(tmp_path),
    )  # fmt: skip
    table = study(settings)
    for variant in ("clip", "siglip", "register-k8", "mean-k8", "learned_query-k8-m4", "llip-k8-m4"):
        assert f"| {variant} | 1 | 512 |" in table
    folder = tmp_path / "studies" / "small_scale"
    assert (folder / "study.png").stat().st_size > 10_000
    capsys.readouterr()
    assert study(settings) == table, "finished trials are kept"
