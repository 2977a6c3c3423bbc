"""What a study trains, what it refuses, how its rounds depend on each other, and its report; (slow) a whole one."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import recorded_study
from helpers.recorded_study import METRIC, Recorded, recorded

from llip.config import TrainingConfig
from llip.fields import override
from llip.recipes import recipe
from tune import clock, study_report, variants
from tune.clock import Clock, StepCost
from tune.found import FLOPS, STEPS, TIME
from tune.study import BIAS, RATE, SCALE, Study, study
from tune.variants import CLIP, DEFAULT, PAPER, SIGLIP, TEMPERATURE, Variant

PIECE = ("clip", "siglip", "text_query-sigmoid", "text_query_patches_shared-softmax")


def test_every_head_has_either_loss_and_every_variant_is_trained_once() -> None:
    names = [v.name for v in Study(ks=(1, 8), head_counts=(2, 8)).variants()]
    assert names[:4] == ["text_query_patches_shared-softmax", "clip", "siglip", "text_query-sigmoid"]
    assert sorted(names) == sorted(set(names))
    heads = ("register", "mean", "learned_query", "image_query", "text_query", "text_query_patches_shared")
    assert {f"{head}-{loss}" for head in heads for loss in variants.LOSSES} <= set(names)
    assert {n for n in names if n.endswith(("k1", "heads8"))} == {
        f"{around}-{count}" for around in (DEFAULT.name, PAPER.name) for count in ("k1", "heads8")
    }
    assert not [n for n in names if n.endswith(("k8", "heads2"))], "these are the recipe's own"


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (CLIP, "clip_tiny"),
        (SIGLIP, "siglip_tiny"),
        (PAPER, "llip_tiny_k8"),
        (DEFAULT, "llip_dense_tiny_k8"),
        *(
            (Variant(form=f, loss="sigmoid"), f"{f}_tiny_k8")
            for f in ("register", "mean", "learned_query", "image_query")
        ),
        (Variant(form="text_query", loss="softmax"), "llip_softmax_tiny_k8"),
        (Variant(form="text_query_patches", loss="sigmoid"), "llip_patch_tiny_k8"),
        (Variant(form="text_query", loss="sigmoid", tokens=16), "llip_tiny_k16"),
    ],
)
def test_variants_are_the_recipes(variant: Variant, name: str) -> None:
    base = recipe("llip_dense_tiny_k8")
    assert override(base, variant.values(base.model)) == recipe(name)


def test_pieces_are_chosen_by_pattern() -> None:
    assert {v.name for v in Study(only=PIECE).variants()} == set(PIECE)
    assert {v.name for v in Study(only=("mean*", "clip")).variants()} == {"mean-softmax", "mean-sigmoid", "clip"}
    with pytest.raises(ValueError, match=r"--only llip\* fits none of text_query_patches_shared-softmax, clip"):
        Study(only=("clip", "llip*")).variants()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "--seeds is 0; it has to be at least 1"),
        ({"curve_seeds": 0}, "--curve-seeds is 0; it has to be at least 1"),
        ({"choice_share": 0.0}, r"--choice-share is 0.0; it has to be in \(0, 1\]"),
        ({"recipe": "siglip_tiny"}, "--recipe siglip_tiny is not one of Llip"),
        ({"head_counts": (3,)}, "model.head.heads is 3; it has to be a divisor of embed_dim 32"),
        ({"overrides": {"learning_rate": 1e-3}}, "--learning-rate-factors say what it is chosen from"),
        ({"overrides": {"objective.loss": "sigmoid"}}, "every head is studied with both"),
        ({"workers": 9}, "--workers 9 cannot share the 8 lanes of llip_dense_mini_k8"),
        ({"shards": "s3://bucket/shards"}, "metrics are compared: name a folder of evaluation sets with --evaluation"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(Study(**settings))


@pytest.fixture
def rounds(tmp_path: Path) -> Recorded:
    return recorded(str(tmp_path), only=PIECE)


def test_every_variant_chooses_its_own_settings_one_after_the_other(rounds: Recorded) -> None:
    rounds.choose()
    assert {v.name: c[RATE] for v, c in rounds.choices.items()} == {
        "clip": 2e-3,
        "siglip": 5e-4,
        PAPER.name: 1e-3,
        DEFAULT.name: 1e-3,
    }
    assert set(rounds.choices[CLIP]) == {RATE, SCALE} and set(rounds.choices[SIGLIP]) == {RATE, SCALE, BIAS}
    assert set(rounds.choices[PAPER]) == {RATE, SCALE, BIAS, TEMPERATURE}
    assert {c[SCALE] for c in rounds.choices.values()} == {10.0}, "the recipe's own is among them"
    of_clip = sorted({name for name in rounds.trained if name.startswith("clip@")})
    assert of_clip == [f"clip@{told}-seed1000" for told in ("0.0005-10", "0.001-10", "0.002-10", "0.002-14.2857")]


def test_what_varies_counts_or_projections_takes_the_settings_of_its_head(tmp_path: Path) -> None:
    rounds = recorded(str(tmp_path), only=("text_query-*-k4", "text_query_shared-sigmoid"))
    rounds.choose()
    assert [v.name for v in rounds.choices] == ["text_query-sigmoid"]
    rounds.compare(0)
    assert rounds.trained[-2:] == ["text_query_shared-sigmoid-seed0", "text_query-sigmoid-k4-seed0"]


def test_seed_by_seed_and_the_longest_first(tmp_path: Path) -> None:
    rounds = recorded(str(tmp_path), only=(*PIECE, "text_query-*k4"), curve_seeds=1)
    rounds.choose()
    rounds.trained.clear()
    rounds.compare(0)
    first = len(rounds.trained)
    rounds.compare(1)
    assert [name.endswith("seed0") for name in rounds.trained] == [True] * first + [False] * (first - 1)
    longest, shortest = rounds.trained[0], rounds.trained[first - 1]
    assert (longest, shortest) == ("text_query-sigmoid-130steps-seed0", "text_query-sigmoid-k4-seed0")
    assert rounds.trained.index("clip-200steps-seed0") < rounds.trained.index("clip-seed0")
    assert "text_query-sigmoid-k4-seed1" not in rounds.trained


def test_baselines_get_the_steps_that_fit_into_the_budget_of_the_default(rounds: Recorded) -> None:
    assert {v.name: rounds.lengths[TIME, v] for v in (CLIP, SIGLIP, PAPER)} == {
        "clip": 200,
        "siglip": 200,
        "text_query-sigmoid": 125,
    }
    of = {v: rounds.flops[v.name] for v in (DEFAULT, CLIP, PAPER)}
    assert of[CLIP] < of[PAPER] < of[DEFAULT]
    for variant in (CLIP, PAPER):
        assert rounds.lengths[FLOPS, variant] * of[variant] == pytest.approx(100 * of[DEFAULT], rel=0.01)
    alone = recorded("memory://alone", only=("clip",))
    assert list(alone.lengths) == [(STEPS, CLIP)], "without the default there is no budget"


def test_the_cost_is_told_before_and_counts_what_is_left(rounds: Recorded) -> None:
    choices, compared = (4 + 5 + 6 + 5), 2 * (4 + 3 + 3)
    assert rounds.cost().startswith(f"{choices + compared} trials, about 0.")
    assert clock.told([(0.18, 10_000)] * 4, 2) == "4 trials, about 1.0 hours at the rate measured here, 2 at a time"
    measured = Clock({"a": StepCost(seconds=0.1, caption_tokens=9)}, {"a": 1e9})
    assert measured.seconds("a", 5e9) == 0.1 and measured.seconds("b", 3e9) == pytest.approx(0.3)


def test_the_clock_takes_the_least_of_turns_and_is_read_once(rounds: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {0.1: [0.3, 0.2, 0.4], 0.2: [0.5, 0.7, 0.6]}
    order: list[float] = []

    def measure(plan: Any, folder: str, config: TrainingConfig) -> StepCost:
        order.append(config.optimizer.learning_rate)
        return StepCost(seconds=seconds[order[-1]].pop(0), caption_tokens=9)

    monkeypatch.setattr(clock, "_measure", measure)
    base = recipe("clip_tiny")
    configs = {name: override(base, {"learning_rate": rate}) for name, rate in (("a", 0.1), ("b", 0.2))}
    for _ in range(2):
        found = clock.measured(rounds.plan, configs)
        assert {name: cost.seconds for name, cost in found.costs.items()} == {"a": 0.2, "b": 0.5}
    assert order == [0.1, 0.2] * 3


def test_the_report_tells_each_comparison_with_its_interval(tmp_path: Path) -> None:
    rounds = recorded(str(tmp_path), only=(*PIECE, "text_query-softmax", "text_query_*-k4"))
    files = recorded_study.files(rounds)
    lines = files[study_report.TABLE].decode().splitlines()
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in lines if line.startswith("|")}
    assert "| 2 | 200 |" in rows["clip (CLIP)", "time"] and "| 0.100 | 0.501 (" in rows["clip (CLIP)", "time"]
    assert rows[f"{DEFAULT.name} (the default recipe)", "steps"].count("0.801 (") == 1
    assert any(name.startswith("text_query_patches_shared-softmax-k4") for name, _ in rows)
    told = [line for line in lines if line.startswith("- Equal ")]
    assert sum(line.startswith("- Equal steps: ") for line in told) == 6
    for axis in (FLOPS, TIME):
        assert sum(line.startswith(f"- Equal {axis}: ") for line in told) == 6
    ahead = next(line for line in told if line.startswith("- Equal time: the default recipe against CLIP"))
    assert "+0.300 (" in ahead and "not told apart" not in ahead
    same = next(line for line in told if line.startswith("- Equal steps, loss: text_query-softmax"))
    assert "+0.000" in same and same.endswith("not told apart.")
    assert files[study_report.FIGURE].startswith(b"\x89PNG")
    kept = json.loads(files[study_report.RESULTS])
    assert len(kept["equal_steps"]) == 12 and kept["choices"]["clip"][RATE] == 2e-3


def test_a_report_of_one_seed_is_there_before_the_second(rounds: Recorded) -> None:
    rounds.choose()
    rounds.compare(0)
    table = study_report.files(rounds.found())[study_report.TABLE].decode()
    assert "| clip (CLIP) | steps | 1 | 100 |" in table and f"{METRIC.partition('/')[2]} |" in table


@pytest.mark.slow
def test_a_small_study_goes_on_where_it_was(tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "ROUNDS", 1)

    def settings(*only: str) -> Study:
        return Study(
            only=only, seeds=1, overrides={"steps": 4}, learning_rate_factors=(), logit_scales=(), logit_biases=(),
            temperatures=(), choice_share=1.0, corpus_images=192, output=str(tmp_path),
        )  # fmt: skip

    table = study(settings(DEFAULT.name))
    assert f"| {DEFAULT.label} | steps | 1 | 4 |" in table
    folder = tmp_path / "studies" / "small_scale"
    known = {p: p.stat().st_mtime_ns for p in folder.rglob("config.json")}
    assert len(known) == 2, "one that chooses, one that is compared"
    longer = study(settings(DEFAULT.name, "clip"))
    assert "| clip (CLIP) | time | 1 | " in longer and "Equal steps: the default recipe against CLIP" in longer
    assert {p: p.stat().st_mtime_ns for p in known} == known, "finished trials are kept"
    assert (folder / "study.png").stat().st_size > 10_000
