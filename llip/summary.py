"""Size and cost of the recipes: parameters, and forward FLOPs of one image and of one caption.

    python -m llip.summary --recipes llip_b32_k64 clip_b32

FLOPs are counted on the model as it runs (two for a multiplication and its addition), not derived from a formula, so
they include what the towers save: padding is not computed, nor what nobody reads of the last blocks.
"""

from dataclasses import dataclass

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from llip.config import ModelConfig
from llip.contrastive import ContrastiveModel
from llip.recipes import RECIPES, recipe


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one model holds and costs."""

    vision_parameters: int
    """Of the image tower, without its projections."""
    text_parameters: int
    head_parameters: int
    """Of the projections of both sides, and W_O."""
    image_flops: int
    """Forward, of one image, projections included."""
    caption_flops: int
    """Forward, of one caption, projections included."""

    @property
    def parameters(self) -> int:
        """Without scale and bias."""
        return self.vision_parameters + self.text_parameters + self.head_parameters


def summarise(config: ModelConfig, caption_tokens: int) -> Summary:
    """The summary of a model for captions of `caption_tokens` tokens, start and end included. Allocates no weights."""
    with torch.device("meta"):
        model = ContrastiveModel(config)
        pixels_BCHW = torch.empty(1, 3, config.vision.image_size, config.vision.image_size)
    token_ids_TL = torch.zeros(1, caption_tokens, dtype=torch.long)
    token_ids_TL[:, -1] = config.text.vocabulary - 1
    with torch.no_grad():
        with FlopCounterMode(display=False) as image:
            model.encode_image(pixels_BCHW)
        with FlopCounterMode(display=False) as caption:
            model.encode_text(token_ids_TL)
    vision, text, head = (
        sum(parameter.numel() for parameter in part.parameters()) for part in (model.vision, model.text, model.head)
    )
    return Summary(
        vision_parameters=vision,
        text_parameters=text,
        head_parameters=head,
        image_flops=image.get_total_flops(),
        caption_flops=caption.get_total_flops(),
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which recipes to summarise."""

    recipes: tuple[str, ...] = tuple(name for name in RECIPES if name.startswith(("clip", "llip")))
    caption_tokens: int = 20
    """Tokens of the caption, start and end included."""


def table(settings: Settings) -> str:
    """One line a recipe: millions of parameters, and GFLOPs."""
    names = ("recipe", "vision M", "text M", "head M", "total M", "image GFLOP", "caption GFLOP")
    lines = ["  ".join(f"{name:>{width}}" for name, width in zip(names, _WIDTHS, strict=True))]
    for name in settings.recipes:
        s = summarise(recipe(name).model, settings.caption_tokens)
        millions = (n / 1e6 for n in (s.vision_parameters, s.text_parameters, s.head_parameters, s.parameters))
        cells = [name, *(f"{n:.1f}" for n in millions), f"{s.image_flops / 1e9:.2f}", f"{s.caption_flops / 1e9:.2f}"]
        lines.append("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)))
    return "\n".join(lines)


_WIDTHS = (24, 8, 8, 8, 8, 11, 13)

if __name__ == "__main__":
    print(table(tyro.cli(Settings, description=__doc__)))
