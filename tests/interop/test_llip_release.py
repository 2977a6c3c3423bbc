"""Checkpoints in the format of Llip's public release, against a literal computation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.release_files import (
    CONTEXT,
    DIM,
    END,
    LAYERS,
    TEXT_WIDTH,
    TOKENS,
    VOCABULARY,
    WIDTH,
    release_state,
)
from torch import Tensor

from llip import interop, recipe
from llip.config import HeadConfig, ModelConfig, TextConfig, VisionConfig
from llip.contrastive import create_model

PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[1, 5, 6, END, 0, 0, 0, 0, 0], [1, 7, 7, 8, 9, 4, 3, 2, END], [1, END, 0, 0, 0, 0, 0, 0, 0]])


def literal_release_scores(state: dict[str, Tensor], heads: int, temperature: float) -> Tensor:
    """Cosines [image, caption] from the tensors of a release file, by the facts of the paper alone."""
    s = {name: tensor.double() for name, tensor in state.items()}

    def layer_norm(x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"])

    def block(x: Tensor, name: str, head_width: int, causal: bool) -> Tensor:
        qkv = layer_norm(x, f"{name}.ln_1") @ s[f"{name}.attn.in_proj_weight"].T + s[f"{name}.attn.in_proj_bias"]
        q, k, v = (part.unflatten(1, (-1, head_width)).transpose(0, 1) for part in qkv.chunk(3, 1))
        logits = q @ k.transpose(1, 2) / head_width**0.5
        if causal:
            logits = logits + torch.full(logits.shape[1:], -torch.inf, dtype=torch.float64).triu(1)
        mixed = (logits.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + mixed @ s[f"{name}.attn.out_proj.weight"].T + s[f"{name}.attn.out_proj.bias"]
        hidden = layer_norm(x, f"{name}.ln_2") @ s[f"{name}.mlp.c_fc.weight"].T + s[f"{name}.mlp.c_fc.bias"]
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return x + hidden @ s[f"{name}.mlp.c_proj.weight"].T + s[f"{name}.mlp.c_proj.bias"]

    def normed(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, name) if f"{name}.weight" in s else x

    scores = torch.zeros(len(PIXELS), len(IDS), dtype=torch.float64)
    for i, pixels in enumerate(PIXELS.double()):
        patches = torch.nn.functional.conv2d(pixels[None], s["visual.conv1.weight"], stride=4)[0].flatten(1).T
        x = torch.cat([s["visual.class_embedding"], patches]) + s["visual.positional_embedding"]
        x = layer_norm(x, "visual.ln_pre")
        for layer in range(LAYERS):
            x = block(x, f"visual.transformer.resblocks.{layer}", 16, causal=False)
        x = layer_norm(x, "visual.ln_post")[:TOKENS]
        keys = normed(torch.einsum("kw,kwd->kd", x, s["k_proj"]), "K_norm").unflatten(1, (heads, -1))
        values = normed(torch.einsum("kw,kwd->kd", x, s["v_proj"]), "V_norm").unflatten(1, (heads, -1))
        for j, ids in enumerate(IDS):
            g = s["token_embedding.weight"][ids] + s["positional_embedding"]
            for layer in range(LAYERS):
                g = block(g, f"transformer.resblocks.{layer}", 12, causal=True)
            g = layer_norm(g, "ln_final")[int(ids.argmax())]
            query = normed(g @ s["q_proj"], "Q_norm").unflatten(0, (heads, -1))
            weights = (torch.einsum("me,kme->mk", query, keys) / temperature).softmax(-1)
            z = torch.einsum("mk,kme->me", weights, values).flatten() @ s["pred.out_proj"]
            scores[i, j] = torch.cosine_similarity(z, g @ s["text_projection"], dim=0)
    return scores


@pytest.mark.parametrize(("with_norm", "prefix"), [(False, "module."), (True, "_orig_mod.module."), (False, "")])
def test_llip_release(tmp_path: Path, with_norm: bool, prefix: str) -> None:
    state = release_state(with_norm)
    written = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    if prefix == "":  # the format of older files
        written["out_proj"] = written.pop("pred.out_proj")
    torch.save({"epoch": 3, "state_dict": written}, tmp_path / "llip.pt")
    model = interop.load_llip_release(
        str(tmp_path / "llip.pt"), num_heads=4, temperature=1.5, vision_head_width=16, text_head_width=12
    )
    assert model.config == ModelConfig(
        embed_dim=DIM,
        vision=VisionConfig(image_size=8, patch_size=4, width=WIDTH, layers=LAYERS, head_width=16, tokens=TOKENS),
        text=TextConfig(context_length=CONTEXT, vocabulary=VOCABULARY, width=TEXT_WIDTH, heads=2, layers=LAYERS),
        head=HeadConfig(heads=4, temperature=1.5, norm=with_norm),
        init_logit_bias=-10.0,
    )
    scores = model.double().pair_scores(*model(PIXELS.double(), IDS))
    torch.testing.assert_close(scores, literal_release_scores(state, 4, 1.5), rtol=0, atol=1e-10)
    assert model.logit_scale.item() == 3.0 and model.logit_bias is not None
    assert model.logit_bias.item() == -9.0
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("head", [{}, {"shared_projections": True, "norm": True}])
def test_what_is_exported_as_the_release_comes_back(tmp_path: Path, head: dict[str, Any]) -> None:
    """Also shared projections, which that format has once for each token."""
    config = recipe("llip_tiny_k8").model
    model = create_model(replace(config, head=replace(config.head, **head)))
    interop.export_llip_release(model, str(tmp_path / "llip.pt"))
    there = interop.load_llip_release(
        str(tmp_path / "llip.pt"),
        num_heads=config.head.heads,
        temperature=config.head.temperature,
        vision_head_width=config.vision.head_width,
        text_head_width=config.text.width // config.text.heads,
    )
    assert not there.config.head.shared_projections
    size = config.vision.image_size
    pixels, ids = torch.randn(2, 3, size, size), torch.tensor([[49406, 5, 49407], [49406, 49407, 0]])
    torch.testing.assert_close(there.pair_scores(*there(pixels, ids)), model.pair_scores(*model(pixels, ids)))
    for changed, message in (
        (replace(config, head=replace(config.head, patch_tokens=True)), "head.patch_tokens True"),
        (replace(config, activation="gelu"), "activation gelu"),
        (recipe("mean_tiny_k8").model, "no mean head"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.export_llip_release(create_model(changed), str(tmp_path / "llip.pt"))
