"""Recipes: the paper's numbers, and a name for each."""

import json
import typing
from dataclasses import replace
from pathlib import Path

import pytest

from llip.config import Head, TrainingConfig
from llip.fields import differences, override, to_dict, to_toml
from llip.recipes import DEFAULT, RECIPES, load, recipe
from llip.recipes.__main__ import listing
from llip.runs import run_folder

SIZES = {
    # d, vision width / layers / head width, text width / heads / layers, context, temperature, norm, learning rate
    "b32": (512, 768, 12, 64, 512, 8, 12, 77, 5.0, False, 5e-4),
    "b16": (512, 768, 12, 64, 512, 8, 12, 77, 5.0, False, 5e-4),
    "l14": (768, 1024, 24, 64, 768, 12, 12, 64, 1.0, False, 4e-4),
    "h14": (1024, 1280, 32, 80, 1024, 16, 24, 77, 5.0, True, 4e-4),
    "g14": (1280, 1664, 48, 104, 1280, 20, 32, 77, 5.0, True, 4e-4),
}


@pytest.mark.parametrize("size", SIZES)
def test_llip_has_the_paper_s_towers_and_head(size: str) -> None:
    run = recipe(f"llip_{size}_k64")
    vision, text, head = run.model.vision, run.model.text, run.model.head
    towers = (run.model.embed_dim, vision.width, vision.layers, vision.head_width, text.width, text.heads, text.layers)
    assert (*towers, text.context_length, head.temperature, head.norm, run.optimizer.learning_rate) == SIZES[size]
    assert (vision.image_size, vision.patch_size, vision.tokens) == (224, int(size[1:]), 64)
    assert vision.mlp_width == (8192 if size == "g14" else None)
    assert (head.kind, head.heads, head.patch_tokens) == ("text_query", 8, False)
    assert run.activation_checkpointing == (size in ("h14", "g14"))


def test_the_schedule_is_the_paper_s() -> None:
    run = recipe("llip_b16_k64")
    assert (run.steps, run.data.batch_size, run.warmup_steps) == (390_624, 32_768, 2000)
    assert run.samples == pytest.approx(12.8e9, rel=1e-4)
    assert (run.optimizer.weight_decay, run.optimizer.eps, run.data.crop_scale) == (0.2, 1e-6, (0.9, 1.0))
    assert run.precision == "bf16"


def test_objectives_differ_in_loss_bias_and_beta2_alone() -> None:
    clip, siglip, llip = recipe("clip_b32"), recipe("siglip_b32"), recipe("llip_b32_k32")
    assert (clip.objective.loss, siglip.objective.loss, llip.objective.loss) == ("softmax", "sigmoid", "sigmoid")
    assert (clip.betas, siglip.betas, llip.betas) == (
        (0.9, 0.98),
        (0.9, 0.95),
        (0.9, 0.95),
    )
    assert [run.built_model.init_logit_bias for run in (clip, siglip, llip)] == [None, -10, -10]
    assert clip.model.vision == siglip.model.vision and clip.model.head == siglip.model.head
    assert clip.model.init_logit_scale == siglip.model.init_logit_scale == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("kind", ["register", "mean", "learned_query", "image_query"])
def test_ablations_differ_from_llip_in_the_head_alone(kind: str) -> None:
    llip, ablation = recipe("llip_b32_k64"), recipe(f"{kind}_b32_k64")
    assert ablation.model.head.kind == kind
    assert (ablation.objective, ablation.optimizer, ablation.data) == (llip.objective, llip.optimizer, llip.data)
    tokens = (ablation.model.vision.tokens, ablation.model.text.tokens)
    assert tokens == ((1, 64) if kind == "image_query" else (64, 1))


def test_every_name_gives_a_configuration() -> None:
    assert len(RECIPES) == 8 * 4 + 5 * 3 * 8 + 3 * 2 * 8 + 2 * 3 * 3 + 8 * 2 * 2
    for name in RECIPES:
        assert recipe(name).model.embed_dim > 0
    assert {recipe(name).model.head.kind for name in RECIPES} == set(typing.get_args(Head))


def test_small_sizes_differ_in_width_depth_and_rate_alone() -> None:
    mini, tiny, small = (recipe(f"llip_dense_{size}_k8") for size in ("mini", "tiny", "small"))
    changed = {line.split(":")[0] for line in [*differences(tiny, mini), *differences(tiny, small)]}
    assert changed == {
        *("model.embed_dim", "model.head.heads", "optimizer.learning_rate"),
        *(f"model.{tower}.{field}" for tower in ("vision", "text") for field in ("width", "layers")),
        "model.text.heads",
    }
    widths = [run.model.vision.width for run in (mini, tiny, small)]
    assert widths == [64, 128, 192] and [run.model.embed_dim for run in (mini, tiny, small)] == [32, 64, 96]
    assert [run.optimizer.learning_rate for run in (mini, tiny, small)] == [1e-3, 5e-4, 3.3e-4]


def test_an_unknown_name_is_answered_with_those_near_it() -> None:
    with pytest.raises(ValueError, match="there is no recipe 'llip_b32_k46'; did you mean llip_b32_k64"):
        recipe("llip_b32_k46")


def test_llip_with_softmax_and_with_patches_differ_from_llip_in_what_their_names_say() -> None:
    llip, softmax, patch = recipe("llip_b32_k64"), recipe("llip_softmax_b32_k64"), recipe("llip_patch_b32_k64")
    assert differences(llip, softmax) == ["objective.loss: 'sigmoid' → 'softmax'"]
    assert differences(llip, patch) == ["model.head.patch_tokens: False → True", "model.head.temperature: 5.0 → 1.0"]


def test_the_default_is_llip_over_patches_with_shared_projections_and_softmax() -> None:
    assert [line.split(":")[0] for line in differences(recipe("llip_softmax_tiny_k8"), recipe(DEFAULT))] == [
        "model.head.patch_tokens",
        "model.head.shared_projections",
    ]


@pytest.mark.parametrize(
    ("softmax", "sigmoid"), [("clip_tiny", "siglip_tiny"), ("llip_softmax_b16_k32", "llip_b16_k32")]
)
def test_the_loss_is_an_axis_of_its_own(softmax: str, sigmoid: str) -> None:
    assert override(recipe(sigmoid), {"objective.loss": "softmax"}) == recipe(softmax)
    assert override(recipe(softmax), {"objective.loss": "sigmoid"}) == recipe(sigmoid)


@pytest.mark.parametrize(("dataset", "rows", "epochs"), [("cc3m", 2_900_000, 40), ("cc12m", 11_000_000, 35)])
def test_the_academic_scale_counts_in_epochs(dataset: str, rows: int, epochs: int) -> None:
    run = recipe(f"clip_b16_{dataset}")
    assert (run.data.batch_size, run.epochs, run.optimizer.weight_decay) == (4096, epochs, 0.5)
    with pytest.raises(ValueError, match="steps follow from epochs and the shards"):
        _ = run.total_steps
    of_shards = run.for_rows(rows)
    assert of_shards.total_steps == round(epochs * rows / 4096)
    assert of_shards.warmup_steps == pytest.approx(rows / 4096, abs=1)


def test_a_shortened_run_and_its_end_are_one_model_on_other_lengths() -> None:
    whole, short, end = (recipe(f"llip_dense_b16_k32{part}") for part in ("", "_short", "_end"))
    assert differences(whole, short) == ["model.text.context_length: 77 → 19", "model.vision.image_size: 224 → 112"]
    assert end.model == whole.model
    assert end.total_steps == 19_531 and end.optimizer.learning_rate == pytest.approx(5e-5)
    assert recipe("clip_tiny_short").model.vision.patches == 4


def own_recipe() -> TrainingConfig:
    return replace(recipe("clip_tiny"), seed=7)


def not_a_recipe() -> int:
    return 7


def test_a_recipe_comes_from_a_function_a_file_or_a_run(tmp_path: Path) -> None:
    assert load("test_recipes:own_recipe").seed == 7
    (tmp_path / "mine.toml").write_text('recipe = "clip_tiny"\nsteps = 9\n[optimizer]\nbetas = [0.9, 0.99]\n')
    mine = load(tmp_path / "mine.toml")
    assert (mine.steps, mine.optimizer.betas) == (9, (0.9, 0.99))
    (tmp_path / "child.toml").write_text('recipe = "mine.toml"\nepochs = 2\n')
    child = load(str(tmp_path / "child.toml"))
    assert (child.steps, child.epochs, child.optimizer.betas) == (None, 2.0, (0.9, 0.99))
    run_folder.check(str(tmp_path), mine)  # no run yet
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"training": to_dict(mine)}))
    assert load(tmp_path / "run") == mine


@pytest.mark.parametrize("name", ["llip_b16_k64", "clip_b16_cc3m", "image_query_tiny_k8"])
def test_a_printed_configuration_is_a_recipe(name: str, tmp_path: Path) -> None:
    config = override(recipe(name), {"seed": 3, "objective.micro_batch": 8, "checkpoint_every": 7})
    text = to_toml(config, recipe(name))
    (tmp_path / "whole.toml").write_text(text)
    assert load(tmp_path / "whole.toml") == config
    marked = [line for line in text.splitlines() if "# recipe:" in line]
    assert [line.split(" = ")[0] for line in marked] == ["objective.micro_batch", "checkpoint_every", "seed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe = clip", "is not TOML"),
        ('recipe = "clip_tny"', "there is no recipe 'clip_tny'; did you mean clip_tiny"),
        ('recipe = "clip_tiny"\nstep = 3', "there is no setting 'step'; did you mean steps"),
        ('recipe = "clip_tiny"\nsteps = "many"', "steps is 'many'; it has to be a whole number or none"),
        ('recipe = "clip_tiny"\nsteps = 2.5', "steps is 2.5; it has to be a whole number or none"),
        ('recipe = "clip_tiny"\ncompile = 1', "compile is 1; it has to be true or false"),
        ('recipe = "clip_tiny"\nsteps = 3\nepochs = 1', "steps is 3; it has to be given where epochs are not"),
        ('recipe = "clip_tiny"\n[model]\nheads = 3', "there is no setting 'model.heads'; did you mean"),
        ("steps = 3", "model is missing"),
        ("[model]\nembed_dim = 8", "model.vision is missing"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name_and_field(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.toml") as error:
        load(tmp_path / "bad.toml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.toml", "there is no file nowhere.toml"),
        ("runs/nothing", "runs/nothing is neither a run's folder"),
        ("nomodule:recipe", "recipe nomodule:recipe: No module named 'nomodule'"),
        ("test_recipes:nothing", "has no attribute 'nothing'"),
        ("test_recipes:not_a_recipe", "returned a int, not a TrainingConfig"),
    ],
)
def test_what_is_no_recipe_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load(source)
    assert message in str(error.value)


def test_the_listing_tells_size_length_and_accuracy() -> None:
    rows = {row[0]: row[1:] for row in listing(["b16", "cc12m"])}
    assert set(rows) == {"clip_b16_cc12m", "siglip_b16_cc12m", "llip_b16_k32_cc12m"}
    assert rows["clip_b16_cc12m"][0] == "149.6" and rows["clip_b16_cc12m"][3:] == ("4,096", "35 epochs", "36.5")


def test_the_listing_counts_captions_as_long_as_a_model_takes() -> None:
    short, whole = (next(listing([name])) for name in ("clip_b32_short", "clip_b32_end"))
    assert float(short[3]) < float(whole[3])
