"""Random weights in the names and shapes of Llip's release."""

import torch
from torch import Tensor

WIDTH, TEXT_WIDTH, DIM, LAYERS, CONTEXT, VOCABULARY, TOKENS, PATCHES = 32, 24, 16, 2, 9, 40, 3, 4
END = VOCABULARY - 1


def tower(prefix: str, width: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for layer in range(LAYERS):
        block = f"{prefix}transformer.resblocks.{layer}."
        state |= {f"{block}attn.in_proj_weight": torch.randn(3 * width, width) * width**-0.5}
        state |= {f"{block}attn.in_proj_bias": torch.randn(3 * width)}
        for name, shape in {"attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width)}.items():
            state |= {f"{block}{name}.weight": torch.randn(shape) * 0.2, f"{block}{name}.bias": torch.randn(shape[0])}
        state |= {f"{block}mlp.c_proj.weight": torch.randn(width, 4 * width) * 0.2}
        state |= {f"{block}mlp.c_proj.bias": torch.randn(width)}
        for name in ("ln_1", "ln_2"):
            state |= {f"{block}{name}.weight": torch.rand(width) + 0.5, f"{block}{name}.bias": torch.randn(width)}
    return state


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width)}


def release_state(with_norm: bool) -> dict[str, Tensor]:
    """Random weights in the names and shapes of Llip's release."""
    torch.manual_seed(0)
    state = {
        "visual.class_embedding": torch.randn(TOKENS, WIDTH),
        "visual.positional_embedding": torch.randn(TOKENS + PATCHES, WIDTH),
        "visual.conv1.weight": torch.randn(WIDTH, 3, 4, 4) * 0.2,
        "token_embedding.weight": torch.randn(VOCABULARY, TEXT_WIDTH),
        "positional_embedding": torch.randn(CONTEXT, TEXT_WIDTH),
        "text_projection": torch.randn(TEXT_WIDTH, DIM),
        "q_proj": torch.randn(TEXT_WIDTH, DIM),
        "k_proj": torch.randn(TOKENS, WIDTH, DIM),
        "v_proj": torch.randn(TOKENS, WIDTH, DIM),
        "pred.out_proj": torch.randn(DIM, DIM),
        "logit_scale": torch.tensor(3.0),
        "logit_bias": torch.tensor(-9.0),
    }
    state |= tower("visual.", WIDTH) | tower("", TEXT_WIDTH)
    state |= norm("visual.ln_pre", WIDTH) | norm("visual.ln_post", WIDTH) | norm("ln_final", TEXT_WIDTH)
    if with_norm:
        state |= norm("K_norm", DIM) | norm("Q_norm", DIM) | norm("V_norm", DIM)
    return state
