"""Towers of each size, and what the paper trains them with (Llip, table 2)."""

from dataclasses import dataclass

from llip.config import TextConfig, VisionConfig

SIGLIP_INIT_BIAS = -10.0
"""About -log of the paper's batch: at first a pair is as likely a match as it is in the batch."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Towers of one size, and what the paper trains them with."""

    embed_dim: int
    vision: VisionConfig
    text: TextConfig
    mixture_heads: int = 8
    temperature: float = 5.0
    patch_temperature: float = 1.0
    """Mixing temperature where patches are mixed too (the rebuttal's)."""
    norm: bool = False
    learning_rate: float = 5e-4
    logit_scale: float = 1 / 0.07
    logit_bias: float = SIGLIP_INIT_BIAS
    """Initial ones; the sigmoid loss alone has a bias."""
    activation_checkpointing: bool = False
    small_scale: bool = False
    """Trained on the built-in corpus, within minutes of CPU cores."""


def _base(patch_size: int) -> Size:
    return Size(
        embed_dim=512,
        vision=VisionConfig(patch_size=patch_size, width=768, layers=12, head_width=64),
        text=TextConfig(width=512, heads=8, layers=12),
    )


def _small(width: int, layers: int, text_layers: int) -> Size:
    """Heads of one width whatever the towers', and a learning rate in inverse proportion to theirs."""
    return Size(
        embed_dim=width // 2,
        # positions as large as the embedded patches, which drown those of width^-½
        vision=VisionConfig(image_size=48, patch_size=12, width=width, layers=layers, head_width=32, position_std=0.7),
        text=TextConfig(context_length=32, width=width, heads=width // 32, layers=text_layers),
        mixture_heads=width // 32,
        patch_temperature=5.0,
        learning_rate=round(5e-4 * 128 / width, 5),
        logit_scale=10.0,
        logit_bias=-5.0,
        small_scale=True,
    )


SIZES: dict[str, Size] = {
    "mini": _small(width=64, layers=3, text_layers=1),
    "tiny": _small(width=128, layers=4, text_layers=1),
    "small": _small(width=192, layers=6, text_layers=2),
    "b32": _base(32),
    "b16": _base(16),
    "l14": Size(
        embed_dim=768,
        vision=VisionConfig(patch_size=14, width=1024, layers=24, head_width=64),
        text=TextConfig(context_length=64, width=768, heads=12, layers=12),
        temperature=1.0,
        learning_rate=4e-4,
    ),
    "h14": Size(
        embed_dim=1024,
        vision=VisionConfig(patch_size=14, width=1280, layers=32, head_width=80),
        text=TextConfig(width=1024, heads=16, layers=24),
        norm=True,
        learning_rate=4e-4,
        activation_checkpointing=True,
    ),
    "g14": Size(
        embed_dim=1280,
        vision=VisionConfig(patch_size=14, width=1664, layers=48, head_width=104, mlp_width=8192),
        text=TextConfig(width=1280, heads=20, layers=32),
        norm=True,
        learning_rate=4e-4,
        activation_checkpointing=True,
    ),
}
