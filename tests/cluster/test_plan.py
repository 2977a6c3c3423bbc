"""The capacity planner against numbers worked out by hand and what autograd really keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.plan import ACCELERATORS, GIB, Plan, block_bytes, pair_seconds, plan, table
from llip.config import HeadConfig, ModelConfig, TextConfig, VisionConfig
from llip.contrastive import create_model
from llip.devices import A100
from llip.pairs.triton_costs import seconds_of_pair
from llip.recipes import recipe


def test_steps_time_and_storage_of_clip_b32_by_hand() -> None:
    capacity = plan(Plan(recipe="clip_b32", gpus=128, mfu=0.5, pool=1_000_000, image_bytes=20_000))
    assert (capacity.steps, capacity.batch_per_gpu) == (390_624, 256)
    # patch embedding, 11 blocks of 50 positions, a last block with one query, projection
    vision = 49 * 6 * 1024 * 768 + 11 * 50 * (24 * 768**2 + 200 * 768)
    vision += 50 * 4 * 768**2 + 20 * 768**2 + 200 * 768 + 2 * 768 * 512
    text = 11 * 77 * (24 * 512**2 + 308 * 512) + 77 * 4 * 512**2 + 20 * 512**2 + 308 * 512 + 2 * 512 * 512
    assert capacity.tower_flops == 3 * 32_768 * (vision + text)
    assert capacity.pair_flops == 3 * 32_768**2 * 2 * 512
    # A pair of pooled features: what its loss reads and writes, and three products.
    assert capacity.pair_seconds == pytest.approx(32_768**2 / 128 * (4 * 30 / 1.6e12 + 3 * 2 * 512 / (0.4 * 312e12)))
    seconds = capacity.tower_flops / (128 * 312e12 * 0.5) + capacity.pair_seconds
    assert capacity.seconds_per_step == pytest.approx(seconds)
    assert capacity.days == pytest.approx(390_624 * seconds / 86_400)
    assert capacity.shard_bytes == 20_000_000_000
    assert capacity.read_bytes_per_second == pytest.approx(32_768 * 20_000 / seconds)


def test_epochs_are_those_of_the_pool() -> None:
    capacity = plan(Plan(recipe="clip_b16_cc12m", gpus=8, pool=4096 * 100))
    assert (capacity.steps, capacity.batch_per_gpu) == (3500, 512)


def test_a_share_is_the_largest_that_a_gpu_has() -> None:
    assert plan(Plan(recipe="clip_b32", gpus=120)).batch_per_gpu == 9 * 32


def test_accumulation_needs_less_memory() -> None:
    whole = Plan(recipe="clip_b16_cc12m", gpus=1)
    parts = replace(whole, overrides={"objective.micro_batch": 256})
    assert plan(parts).memory.activations * 16 == plan(whole).memory.activations


@pytest.mark.parametrize("bf16", [True, False])
def test_activations_are_near_what_autograd_keeps(bf16: bool) -> None:
    tower = VisionConfig(image_size=64, patch_size=8, width=192, layers=8, head_width=32, mlp_width=512)
    text = TextConfig(context_length=8, width=64, heads=2, layers=1)
    model = create_model(ModelConfig(embed_dim=64, vision=tower, text=text, head=HeadConfig(kind="class_token"))).vision
    images = 64
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.autocast("cpu", enabled=bf16):
        output = model(torch.randn(images, 3, 64, 64))
    assert output.requires_grad
    per_position = sum(kept.values()) / (images * (tower.patches + 1))
    assert block_bytes(tower, bf16=bf16, checkpointing=False) == pytest.approx(per_position, rel=0.12)


def test_memory_by_hand_and_with_checkpointing() -> None:
    capacity = plan(Plan(recipe="llip_h14_k64", gpus=256))
    parameters = capacity.size.parameters
    assert capacity.memory.parameters == 6 * parameters
    assert (capacity.memory.gradients, capacity.memory.optimizer) == (4 * parameters, 8 * parameters)
    image = (64 + 256) * (4 * 1280 * 32 + 8 * 1280 + 2 * (6 * 1280 + 2 * 5120))
    caption = 77 * (4 * 1024 * 24 + 8 * 1024 + 2 * (6 * 1024 + 2 * 4096))
    assert capacity.memory.activations == 128 * (image + caption)
    assert capacity.memory.pairs == 5 * 4 * 2**25 + 2 * 4 * 2 * 1024 * 32_768
    assert capacity.checkpoint_bytes == 12 * parameters


def test_pair_scores_take_the_time_of_their_kernels() -> None:
    """L/14 with 32 tokens on A100: five kernels, the making of Gram matrices in fp32, the loss; 4 % of a step."""
    capacity = plan(Plan(recipe="llip_l14_k32", gpus=128))
    kernels = seconds_of_pair(A100, heads=8, tokens=32, width=96, split=True)
    making = 2 * 3 * 32 * 768 * (768 + 256) / (0.7 * 19.5e12) / 32_768
    assert capacity.pair_seconds == pytest.approx(32_768**2 / 128 * (kernels + making + 4 * 30 / 1.6e12))
    assert 0.03 < capacity.pair_seconds / capacity.seconds_per_step < 0.05
    faster = plan(Plan(recipe="llip_l14_k32", gpus=128, gpu="h100-80gb"))
    assert 1.6 < capacity.pair_seconds / faster.pair_seconds < 989 / 312


def test_pairs_of_very_many_tokens_take_the_time_of_their_bytes() -> None:
    """64 mixture tokens and 256 patches, through W_O W_O'."""
    model = replace(recipe("llip_b32_k64").model, vision=replace(recipe("llip_b32_k64").model.vision, tokens=320))
    config = replace(recipe("llip_b32_k64"), model=model)
    numbers, multiplications = 8 * 8 * 320 + 11 * 512 + 30, 2 * 512**2 + 6 * 320 * 512
    seconds = 4 * numbers / 1.6e12 + 2 * multiplications / (0.4 * 312e12)
    assert pair_seconds(config, ACCELERATORS["a100-80gb"]) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("name", "gpus", "paper", "ratio"),
    [
        ("clip_l14", 128, 1.11, 1.00),
        ("llip_l14_k32", 128, 1.43, 0.90),
        ("clip_h14", 256, 2.20, 0.75),
        ("llip_h14_k64", 256, 3.10, 0.67),
        ("clip_g14", 256, 4.55, 1.02),
    ],
)
def test_seconds_beside_those_of_the_paper(name: str, gpus: int, paper: float, ratio: float) -> None:
    """The Llip paper's, with one calibration: 37 %, of CLIP L/14. The page gives the same numbers."""
    seconds = plan(Plan(recipe=name, gpus=gpus, mfu=0.37)).seconds_per_step
    assert seconds / paper == pytest.approx(ratio, abs=0.01)
    page = (Path(__file__).parents[2] / "cluster" / "README.md").read_text()
    assert f"| {name}, {gpus} | {paper:.2f} | {seconds:.2f} | {seconds / paper:.2f} |" in page


def test_recomputing_takes_a_third_more() -> None:
    whole, again = (
        plan(Plan(recipe="clip_l14", gpus=128, overrides={"activation_checkpointing": on})) for on in (False, True)
    )
    tower_seconds = [c.seconds_per_step - c.pair_seconds for c in (whole, again)]
    assert tower_seconds[1] / tower_seconds[0] == pytest.approx(4 / 3)


def test_the_prediction_of_words_takes_time_and_memory() -> None:
    words, plain = (plan(Plan(recipe=name, gpus=128)) for name in ("superclip_b16", "clip_b16"))
    assert words.tower_flops - plain.tower_flops == 3 * 32_768 * words.size.word_flops > 0
    assert words.memory.activations - plain.memory.activations == 2 * 4 * 256 * 49_408
    assert words.checkpoint_bytes - plain.checkpoint_bytes == 12 * 769 * 49_408


def test_short_captions_need_less() -> None:
    long, short = (plan(Plan(recipe="llip_l14_k32", gpus=128, caption_tokens=t)) for t in (64, 20))
    assert short.memory.activations < long.memory.activations
    assert short.tower_flops < long.tower_flops


def test_table_says_whether_it_fits() -> None:
    small, large = (Plan(recipe="clip_l14", gpus=128, gpu=gpu) for gpu in ("a100-40gb", "a100-80gb"))
    assert plan(small).memory.total == plan(large).memory.total < 80 * GIB
    assert "does NOT fit" in table(small, plan(small))
    assert ", fits" in table(large, plan(large))
    assert "390,624 of 32,768 images, 256 a GPU" in table(large, plan(large))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus": 1025}, "gpus is 1025; it has to be at most the 1024 lanes of a batch"),
        ({"gpus": 0}, "gpus is 0; it has to be at least 1"),
        ({"mfu": 1.5}, "mfu is 1.5"),
        ({"recipe": "clip_b33"}, "did you mean"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(replace(Plan(recipe="clip_b32", gpus=128), **change))


def test_readme_shows_what_the_planner_prints() -> None:
    settings = Plan(recipe="llip_l14_k32", gpus=128, caption_tokens=24)
    readme = (Path(__file__).parents[2] / "cluster" / "README.md").read_text()
    assert "--recipe llip_l14_k32 --gpus 128 --caption-tokens 24" in readme
    for line in table(settings, plan(settings)).splitlines():
        assert f"    {line}\n" in readme
