"""The command line: every setting under one spelling, what it changes, and how contradictions are refused."""

import typing
from pathlib import Path
from typing import Any

import pytest

from cluster.plan import Plan
from llip.config import TrainingConfig
from llip.fields import Leaf, leaves, override, value_of
from llip.recipes import RECIPES, load, recipe
from pipelines.command import parse
from pipelines.pretrain import Pretrain, _workers
from tune.scaling import Scaling
from tune.study import Study
from tune.sweep import Sweep

COMMANDS: dict[type[Any], list[str]] = {
    Pretrain: [],
    Plan: ["--gpus", "1"],
    Sweep: ["--vary", "recipe=llip_tiny_k8"],
    Study: [],
    Scaling: [],
}
"""Settings of the commands that train, with the options that they require."""
BASE = recipe("llip_tiny_k8")

TOGETHER: dict[str, dict[str, Any]] = {
    "model.vision.image_size": {"model.vision.image_size": 60},
    "model.vision.head_width": {"model.vision.head_width": 64},
    "model.vision.patch_dropout": {"model.vision.patch_dropout": 0.5},
    "model.text.heads": {"model.text.heads": 8},
    "model.text.tokens": {"model.head.kind": "image_query", "model.vision.tokens": 1, "model.text.tokens": 4},
    "model.head.kind": {"model.head.kind": "learned_query"},
    "model.head.global_weight": {
        "model.head.global_weight": 0.25,
        "model.head.patch_tokens": True,
        "model.vision.tokens": 1,
    },
    "model.init_logit_bias": {"model.init_logit_bias": -3.0},
    "optimizer.betas": {"optimizer.betas": (0.8, 0.9)},
    "data.crop_scale": {"data.crop_scale": (0.5, 0.75)},
    "data.weights": {"data.weights": (1.0, 3.0)},
    "data.lanes": {"data.lanes": 16},
    "objective.teacher_scale": {"objective.teacher_scale": 20.0, "objective.distillation": 0.5},
    "data.synthetic_share": {"data.synthetic_share": 0.5},
    "init_from": {"init_from": __file__},
}
"""Other values of settings that change together with others, or that lie in a small range."""


def another(leaf: Leaf) -> dict[str, Any]:
    """Another legal value of a leaf, with those that it needs."""
    if leaf.path in TOGETHER:
        return TOGETHER[leaf.path]
    value = value_of(BASE, leaf.path)
    kinds = [kind for kind in typing.get_args(leaf.hint) or (leaf.hint,) if kind is not type(None)]
    if isinstance(value, tuple):
        return {leaf.path: tuple(number / 2 for number in value)}
    if bool in kinds:
        return {leaf.path: not value}
    if float in kinds:
        return {leaf.path: value / 2 if value else 0.5}
    if int in kinds:
        return {leaf.path: value * 2 if value else 2}
    words = [word for kind in kinds for word in typing.get_args(kind) or (kind,)]
    return {leaf.path: next(word for word in words if word != value)}


def as_options(values: dict[str, Any]) -> list[str]:
    options = []
    for path, value in values.items():
        head, dot, last = path.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            options.append(f"--{head}{dot}{'' if value else 'no-'}{last}")
        else:
            options += [f"--{head}{dot}{last}", *map(str, value if isinstance(value, tuple) else (value,))]
    return options


def lines_that_set_everything() -> list[dict[str, Any]]:
    """Values of all leaves, as many on a command line as do not contradict each other."""
    lines: list[dict[str, Any]] = []
    for leaf in leaves(TrainingConfig):
        for line in lines:
            together = line | another(leaf)
            try:
                config = override(BASE, together)
            except ValueError:
                continue
            if all(value_of(config, path) == value for path, value in together.items()):
                line.update(together)
                break
        else:
            lines.append(another(leaf))
    return lines


@pytest.mark.parametrize("settings", COMMANDS, ids=lambda settings: settings.__name__)
def test_every_leaf_can_be_set_from_every_command(settings: type[Any]) -> None:
    recipe_of = [*COMMANDS[settings], "--recipe", "llip_tiny_k8"]
    changed = set()
    for values in lines_that_set_everything():
        options = [*recipe_of, *as_options(values)]
        if settings is Pretrain:
            options += ["--shards", "a", "b", "--evaluation", "c"]
        config = parse(settings, options).training()
        without = parse(settings, recipe_of).training()
        assert config == override(without, values)
        changed |= {path for path in values if value_of(config, path) != value_of(without, path)}
    assert changed == {leaf.path for leaf in leaves(TrainingConfig)}


def test_no_setting_is_named_a_second_time_above_the_library() -> None:
    """A copy of a field in a command would be a second spelling."""
    names = {leaf.path.rpartition(".")[2] for leaf in leaves(TrainingConfig)} | {"objective"}
    names |= {leaf.short for leaf in leaves(TrainingConfig) if leaf.short}
    for settings in COMMANDS:
        assert not names & set(settings.__annotations__), settings.__name__


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_without_options_the_recipe_is_taken_as_it_is(name: str) -> None:
    settings = Pretrain(recipe=name)
    assert settings.training() == recipe(name)
    assert settings.run_name() == f"{name}-seed0"


def test_short_spellings_and_paths_are_the_same_setting_and_make_the_name() -> None:
    short = ["--k", "4", "--heads", "8", "--temperature", "1", "--steps", "400", "--learning-rate", "0.002"]
    short += ["--batch-size", "128", "--seed", "3", "--recipe=llip_tiny_k16", "--log-every", "3"]
    settings = parse(Pretrain, short)
    config = settings.training()
    assert (config.model.vision.tokens, config.model.head.heads, config.model.head.temperature) == (4, 8, 1.0)
    assert (config.steps, config.warmup_steps, config.optimizer.learning_rate) == (400, 33, 2e-3)
    expected = "llip_tiny_k16-k4-heads8-temperature1-learning_rate0.002-batch_size128-steps400-seed3"
    assert settings.run_name() == expected
    paths = ["--recipe", "llip_tiny_k16", "--model.vision.tokens", "4", "--model.head.heads", "8"]
    paths += ["--model.head.temperature", "1", "--steps", "400", "--optimizer.learning-rate", "2e-3"]
    assert parse(Pretrain, [*paths, "--data.batch-size", "128", "--seed", "3", "--log-every", "3"]) == settings


def test_a_name_does_not_grow_without_end() -> None:
    many: dict[str, Any] = {
        "model.vision.position_std": 0.123456,
        "ema_decay": 0.99999,
        "model.init_logit_scale": 12.3456,
    }
    many |= {"optimizer.weight_decay": 0.123456, "optimizer.eps": 1.23e-7, "data.crop_scale": (0.123456, 0.98765)}
    name = Pretrain(overrides=many).run_name()
    assert len(name) < 100 and name.endswith("-seed0")
    assert name != Pretrain(overrides=many | {"data.crop_scale": (0.2, 0.98765)}).run_name()


def test_print_config_writes_a_file_that_is_a_recipe_and_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Pretrain, ["--recipe", "clip_b16_cc3m", "--epochs", "8", "--print-config"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "epochs = 8.0  # recipe: 40" in text and text.count("# recipe:") == 1
    (tmp_path / "printed.toml").write_text(text)
    assert load(tmp_path / "printed.toml") == override(recipe("clip_b16_cc3m"), {"epochs": 8})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "llip_tiny_k9"], "there is no recipe 'llip_tiny_k9'; did you mean llip_tiny_k8"),
        (["--recipe", "siglip_tiny", "--heads", "4"], "model.head.heads is 4; it has to be left at 8: no query mixes"),
        (["--recipe", "clip_tiny", "--temperature", "2"], "model.head.temperature is 2.0; it has to be left at 5.0"),
        (["--recipe", "siglip_tiny", "--k", "8"], "model.vision.tokens is 8; it has to be 1 for a class_token head"),
        (["--heads", "5"], "model.head.heads is 5; it has to be a divisor of embed_dim 64"),
        (["--pool", "a", "--shards", "b"], "--pool and --shards exclude each other"),
        (["--shards", "a", "b", "--weights", "1.0"], "data.weights are (1.0,); they have to be 2 numbers"),
        (["--shards", "a", "--weights", "1.0", "2"], "they have to be 1 numbers, one a --shards folder"),
        (["--init-from", "nowhere.pt"], "init_from is nowhere.pt, which does not exist"),
        (["--pool", "a", "--corpus-images", "9"], "--corpus-images is about the built-in corpus; leave it out with"),
        (["--shards", "a", "--evaluate-every", "9"], "evaluate_every needs --evaluation, a folder of evaluation sets"),
        (["--curation", "none"], "--curation none is about a pool of your own: name it with --pool"),
        (["--gpu"], "--gpu needs --workers: how many GPUs there will be is not known before they start"),
        (["--workers", "-1"], "--workers is -1; it has to be at least 0"),
        (["--workers", "9"], "--workers 9 cannot share the 8 lanes of the data; take at most 8"),
        (["--steps", "0"], "steps is 0; it has to be at least 1"),
        (["--steps", "9", "--epochs", "1"], "steps is 9; it has to be given where epochs are not"),
        (["--steps", "9", "--optimizer.warmup-steps", "9"], "optimizer.warmup_steps is 9; it has to be below steps 9"),
    ],
)
def test_contradictions_name_the_setting(options: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        settings = parse(Pretrain, options)
        _workers(settings, settings.training())
    assert message in str(error.value)


def test_the_peak_of_a_device_reaches_the_configuration_and_no_name() -> None:
    settings = parse(Pretrain, ["--recipe", "clip_tiny", "--peak-flops", "1e12"])
    assert settings.training() == override(recipe("clip_tiny"), {"peak_flops": 1e12})
    assert settings.run_name() == "clip_tiny-seed0"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("--optimizer.weight-dekay", "--optimizer.weight-decay FLOAT"), ("--learningrate", "--learning-rate FLOAT")],
)
def test_a_misspelled_option_is_answered_with_the_right_one(
    wrong: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Pretrain, [wrong, "0.1"])
    assert stop.value.code == 2
    assert right.split()[0] in capsys.readouterr().err


def test_help_shows_the_recipes_values_common_ones_first_and_no_raw_types(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Pretrain, ["--recipe", "siglip_l14", "--help"])
    text = capsys.readouterr().out
    assert "(default: 0.0004)" in text and "{None}" not in text and "STR" not in text
    assert text.index("common options") < text.index("--k INT") < text.index("optimizer options")
