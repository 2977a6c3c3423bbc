"""Options of the command line: what they change, and how contradictions are refused."""

import subprocess
import sys
from dataclasses import replace

import pytest
import tyro

from llip.config import to_dict
from llip.recipes import RECIPES, recipe
from pipelines.pretrain import Pretrain, _workers
from pipelines.settings import configure, run_name


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_without_options_the_recipe_is_taken_as_it_is(name: str) -> None:
    assert configure(name) == recipe(name)
    assert run_name(name, recipe(name)).startswith(name)


@pytest.mark.parametrize("size", ["tiny", "b16", "l14"])
@pytest.mark.parametrize("objective", ["clip", "siglip", "llip", "register", "mean", "learned_query"])
def test_an_objective_on_the_same_towers_is_its_own_recipe(objective: str, size: str) -> None:
    tokens = {"tiny": "8", "b16": "64", "l14": "32"}[size]
    expected = f"{objective}_{size}" if objective in ("clip", "siglip") else f"{objective}_{size}_k{tokens}"
    assert to_dict(configure(f"llip_{size}_k{tokens}", objective=objective)) == to_dict(recipe(expected))


def test_options_replace_the_recipes_values() -> None:
    config = configure(
        "llip_tiny_k8",
        k=4,
        heads=8,
        temperature=1.0,
        steps=400,
        batch_size=128,
        learning_rate=2e-3,
        captions_per_image=2,
        synthetic_share=0.5,
        precision="bf16",
        checkpoint_every=50,
        evaluate_every=100,
        seed=3,
    )
    head = config.model.head
    assert (config.model.vision.tokens, head.heads, head.temperature) == (4, 8, 1.0)
    assert (config.steps, config.optimizer.warmup_steps, config.optimizer.learning_rate) == (400, 50, 2e-3)
    assert config.data.synthetic_share == 0.5
    assert (config.data.batch_size, config.data.captions_per_image, config.precision) == (128, 2, "bf16")
    assert (config.checkpoint_every, config.evaluate_every, config.seed) == (50, 100, 3)
    assert (
        run_name("llip_tiny_k8", config)
        == "llip_tiny_k4_m8-tau1-steps400-batch128-lr0.002-captions2-synthetic0.5-bf16-seed3"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "llip_tiny_k9"}, "there is no recipe 'llip_tiny_k9'; did you mean llip_tiny_k8"),
        (
            {"objective": "siglip", "heads": 4},
            "--heads 4: siglip has no query that mixes tokens; --heads belongs to --objective llip or learned_query",
        ),
        (
            {"recipe": "clip_tiny", "temperature": 2.0},
            "--temperature 2: clip has no query that mixes tokens; --temperature belongs to",
        ),
        ({"objective": "mean", "heads": 2}, "--heads 2: mean has no query"),
        (
            {"objective": "siglip", "k": 8},
            "--k 8: siglip has one class token; --k belongs to --objective llip, register, mean or learned_query",
        ),
        ({"heads": 5}, "--heads 5 does not divide the width 64; it can be 1, 2, 4, 8, 16, 32, 64"),
        ({"heads": 0}, "--heads 0 does not divide the width 64"),
        ({"batch_size": 60}, "--batch-size 60 is not a multiple of the 8 lanes of recipe llip_tiny_k8"),
        (
            {"recipe": "clip_tiny", "objective": "llip"},
            "--objective llip needs a recipe that says how many image tokens are mixed; clip_tiny does not: "
            "take one of the llip_… recipes",
        ),
        ({"pool": "a", "shards": "b"}, "--pool and --shards exclude each other"),
        ({"shards": ("a", "b"), "weights": (1.0,)}, "--weights needs several folders of --shards, and as many numbers"),
        ({"shards": "a", "weights": (1.0,)}, "--weights needs several folders of --shards, and as many numbers"),
        ({"init_from": "nowhere.pt"}, "--init-from nowhere.pt does not exist"),
        ({"pool": "a", "corpus_images": 9}, "--corpus-images is about the built-in corpus; leave it out with --pool"),
        ({"shards": "a", "evaluate_every": 9}, "--evaluate-every needs --evaluation, a folder of evaluation sets"),
        ({"workers": -1}, "--workers is -1; it has to be at least 0"),
        ({"workers": 3}, "--workers 3 does not divide the 8 lanes of the data; take 1, 2, 4"),
        ({"objective": "clip", "logit_bias": -5.0}, "--logit-bias -5: no bias changes CLIP's softmax"),
        ({"steps": 0}, "--steps is 0; it has to be at least 1"),
        ({"k": 0}, "--k is 0; it has to be at least 1"),
    ],
)
def test_contradictions_name_the_option(options: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        settings = Pretrain(**options)
        _workers(settings, settings.training())
    assert message in str(error.value)


def test_the_peak_of_a_device_reaches_the_configuration_and_no_name() -> None:
    config = tyro.cli(Pretrain, args=["--peak-flops", "1e12"]).training()
    assert config == replace(recipe("llip_tiny_k8"), peak_flops=1e12)
    assert run_name("llip_tiny_k8", config) == run_name("llip_tiny_k8", recipe("llip_tiny_k8"))


def test_a_misspelled_option_is_answered_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tyro.cli(Pretrain, args=["--objektive", "clip"])
    assert stop.value.code == 2
    assert "--objective clip|siglip|llip" in capsys.readouterr().err


def test_help_does_not_wait_for_torch_or_ray() -> None:
    program = "import sys, pipelines.pretrain; sys.exit(bool({'torch', 'ray', 'mlflow'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
