"""Options of every command that reads a model, and where it runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llip.config import Activation

if TYPE_CHECKING:  # torch is imported once the options are right, so that --help and a refusal come at once
    from llip.training.weights import Weights


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Settings that files of others' weights may not tell. A run or a model of this project tells all of them."""

    recipe: str | None = None
    """Recipe that the file has to hold a model of, such as llip_b16_k64; needed for sizes that nobody published."""
    activation: Activation | None = None
    """Activation of the MLPs: quick_gelu for OpenAI's and MetaCLIP's weights, gelu for most of open_clip's."""
    vision_head_width: int | None = None
    """Width of an attention head of the image tower, where the tower is none of the published sizes."""
    text_head_width: int | None = None
    """Width of an attention head of the text tower."""

    def weights(self, checkpoint: str) -> "Weights":
        """Raises ValueError for what is no checkpoint, and for an option that it tells itself."""
        from llip.training.weights import Weights

        return Weights.find(
            checkpoint,
            recipe=self.recipe,
            activation=self.activation,
            vision_head_width=self.vision_head_width,
            text_head_width=self.text_head_width,
        )


def chosen_device(device: str) -> str:
    """`cuda` or `cpu`; `auto` is a GPU where there is one. Raises ValueError for `cuda` where there is none."""
    import torch

    here = torch.cuda.is_available()
    if device == "cuda" and not here:
        raise ValueError("--device cuda: this machine has no GPU that torch can use")
    return "cuda" if here and device != "cpu" else "cpu"
