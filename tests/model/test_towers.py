"""What towers do in training: compiling, recomputing, dropping patches, autocast."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial, partialmethod
from typing import Any

import pytest
import torch
from helpers import plain_model

from llip import devices
from llip.config import (
    QUERIED_HEADS,
    Activation,
    Head,
    HeadConfig,
    ModelConfig,
    TextConfig,
    TrainingConfig,
    VisionConfig,
)
from llip.contrastive import ContrastiveModel, create_model
from llip.model.packing import PackedCaptions, pack
from llip.model.towers import Block, VisionTransformer, quick_gelu_mlp
from llip.training.parallel import Towers, single_process

END = 30
CONFIG = ModelConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=12, patch_size=3, width=16, layers=2, head_width=8, tokens=2),
    text=TextConfig(context_length=8, vocabulary=END + 1, width=16, heads=2, layers=2),
    head=HeadConfig(heads=2),
    init_logit_bias=-10.0,
)


def batch(captions: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids_TL = torch.randint(1, END, (captions, 8), generator=generator)
    end_T1 = torch.randint(1, 8, (captions, 1), generator=generator)
    ids_TL[torch.arange(8) > end_T1] = 0
    return torch.randn(3, 3, 12, 12, generator=generator), ids_TL.scatter(1, end_T1, END)


def gradients(
    model: ContrastiveModel, captions: int = 5, forward: Callable[..., Any] | None = None
) -> dict[str, torch.Tensor]:
    model.zero_grad()
    images, texts = (forward or model)(*batch(captions))
    (model.pair_scores(images, texts) * torch.arange(captions)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("text_tokens", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_towers_compile_without_a_break_and_not_anew_for_every_batch(text_tokens: int) -> None:
    torch.manual_seed(0)
    kind: Head = "class_token" if text_tokens == 1 else "image_query"
    model = create_model(
        replace(
            CONFIG,
            vision=replace(CONFIG.vision, tokens=1),
            text=replace(CONFIG.text, tokens=text_tokens),
            head=HeadConfig(kind=kind, heads=2) if kind in QUERIED_HEADS else HeadConfig(kind=kind),
        )
    )
    compilations = 0

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        nonlocal compilations
        compilations += 1
        return graph

    vision = torch.compile(model.vision, backend=count, fullgraph=True)
    text = torch.compile(model.text, backend=count, fullgraph=True, dynamic=True)
    for captions in (17, 5, 9, 13, 12):
        pixels, ids_TL = batch(captions, seed=captions)
        packed = pack(ids_TL, latents=model.text.latent_count, context_length=8)
        torch.testing.assert_close(text(*packed), model.text(*packed))
        torch.testing.assert_close(vision(pixels), model.vision(pixels))
    assert compilations == 2


@pytest.mark.slow
@pytest.mark.parametrize(("recompute", "bf16"), [(False, False), (True, False), (False, True)])
def test_compiled_towers_train_alike(recompute: bool, bf16: bool) -> None:
    """As a run has them, the choice left to a GPU: whole graphs or an error, through AOT autograd."""
    torch.manual_seed(0)
    config = TrainingConfig(model=CONFIG, precision="bf16" if bf16 else "fp32", activation_checkpointing=recompute)
    model = create_model(CONFIG)
    plain = gradients(model, forward=Towers(model, replace(config, compile=False), single_process()))
    with devices.as_on(devices.A100), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveModel, "compile_towers", partialmethod(ContrastiveModel.compile_towers, "aot_eager"))
        towers = Towers(model, config, single_process())
    assert model.vision._compiled_call_impl and model.text._compiled_call_impl
    rtol, atol = (0.02, 0.02) if bf16 else (1e-4, 1e-5)
    for name, gradient in gradients(model, forward=towers).items():
        torch.testing.assert_close(gradient, plain[name], rtol=rtol, atol=atol, msg=partial("{}: {}".format, name))


def test_captions_are_packed_before_the_wrapped_model_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP sends tensors among the inputs to the device, from which packing would read the ids back."""
    torch.manual_seed(0)
    model, seen = create_model(CONFIG), list[object]()
    expected = model(*batch(5))
    forward = ContrastiveModel.forward

    def spied(model: ContrastiveModel, pixels_BCHW: torch.Tensor, packed: PackedCaptions) -> Any:
        seen.append(packed)
        return forward(model, pixels_BCHW, packed)

    monkeypatch.setattr(ContrastiveModel, "forward", spied)
    found = Towers(model, TrainingConfig(model=CONFIG, precision="fp32"), single_process())(*batch(5))
    assert isinstance(seen[0], PackedCaptions)
    torch.testing.assert_close(found, expected)


def test_activation_checkpointing_changes_memory_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = create_model(CONFIG).double().requires_grad_(True)
    pixels, ids_TL = batch(5)

    def run() -> tuple[list[torch.Tensor], int]:
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            images, texts = model(pixels.double(), ids_TL)
        model.pair_scores(images, texts).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None], kept

    plain, plain_kept = run()
    model.set_activation_checkpointing(True)
    recomputed, recomputed_kept = run()
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-14)
    assert recomputed_kept < plain_kept / 2


def test_patch_dropout_keeps_some_patches_and_all_tokens_in_training_alone() -> None:
    torch.manual_seed(0)
    tower = VisionTransformer(replace(CONFIG.vision, patch_dropout=0.75), kept=2)
    pixels, _ = batch(1)
    embedded_BNW = tower._embed(pixels)
    assert embedded_BNW.shape == (3, 2 + 4, 16)
    tower.eval()
    whole_BNW = tower._embed(pixels)
    assert whole_BNW.shape == (3, 2 + 16, 16)
    same = (embedded_BNW[:, 2:, None] == whole_BNW[:, None, 2:]).all(-1)
    assert (same.sum(2) == 1).all() and (same.sum(1) <= 1).all()
    torch.testing.assert_close(embedded_BNW[:, :2], whole_BNW[:, :2])
    chosen = same.any(1)
    assert not torch.equal(chosen[0], chosen[1])
    torch.testing.assert_close(tower(pixels), tower(pixels), rtol=0, atol=0)


def test_autocast_keeps_the_residual_stream_in_float32() -> None:
    torch.manual_seed(0)
    model = create_model(CONFIG)
    seen = []
    for tower in (model.vision, model.text):
        tower.norm_after.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    exact = model(*batch(5))
    with torch.autocast("cpu", torch.bfloat16):
        images, texts = model(*batch(5))
    assert seen == [torch.float32] * 4
    assert images.key_BMKE.dtype == texts.target_BD.dtype == torch.bfloat16
    torch.testing.assert_close(model.pair_scores(images, texts).float(), model.pair_scores(*exact), rtol=0, atol=0.05)


def test_the_constants_of_quickgelu_are_where_the_literal_form_has_them() -> None:
    """x · sigmoid(1.702 x) between two layers, in double precision, with every gradient."""
    torch.manual_seed(0)
    block, x_BNW = Block(8, 2, 24, "quick_gelu").double(), torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    hidden = block.mlp_up(x_BNW)
    literal = block.mlp_down(hidden * torch.sigmoid(1.702 * hidden))
    weights = (x_BNW, *block.mlp_up.parameters(), *block.mlp_down.parameters())
    gradient = torch.randn_like(literal)
    ours = quick_gelu_mlp(x_BNW, block.mlp_up, block.mlp_down)
    torch.testing.assert_close(ours, literal, rtol=1e-12, atol=1e-14)
    for a, b in zip(
        torch.autograd.grad(ours, weights, gradient), torch.autograd.grad(literal, weights, gradient), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_activations_and_epsilons_of_norms_are_those_of_the_literal_form(activation: Activation) -> None:
    """Sample by sample in float64; the text tower has others than the image tower."""
    torch.manual_seed(0)
    others: dict[Activation, Activation | None] = {"quick_gelu": "gelu", "gelu": "gelu_tanh", "gelu_tanh": None}
    config = replace(
        CONFIG,
        activation=activation,
        vision=replace(CONFIG.vision, norm_epsilon=0.3),
        text=replace(CONFIG.text, norm_epsilon=1e-6, activation=others[activation]),
    )
    model = create_model(config).double()
    pixels, ids_TL = batch(1)
    words = ids_TL[0][: int(ids_TL[0].argmax()) + 1].tolist()
    with torch.no_grad():
        literal = plain_model.image_states(model, pixels[0].double())[:2]
        torch.testing.assert_close(model.vision(pixels.double())[0], literal, rtol=1e-12, atol=1e-13)
        packed = pack(ids_TL, latents=0, context_length=8)
        literal = plain_model.text_states(model, words)
        torch.testing.assert_close(model.text(*packed)[0], literal, rtol=1e-12, atol=1e-13)
