"""Options of every command that reads a model."""

from dataclasses import dataclass

from llip.config import Activation
from llip.training.weights import Weights


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """What files of others' weights may not tell of themselves; a run or a model of this project tells all of it."""

    recipe: str | None = None
    """Recipe that the file has to hold a model of, such as llip_b16_k64; needed for sizes that nobody published."""
    activation: Activation | None = None
    """Of the MLPs: quick_gelu for OpenAI's and MetaCLIP's weights, gelu for most of open_clip's."""
    vision_head_width: int | None = None
    """Width of an attention head of the image tower, where the tower is none of the published sizes."""
    text_head_width: int | None = None
    """That of the text tower."""

    def weights(self, checkpoint: str) -> Weights:
        """Raises ValueError for what is no checkpoint, and for an option that it tells itself."""
        return Weights.find(
            checkpoint,
            recipe=self.recipe,
            activation=self.activation,
            vision_head_width=self.vision_head_width,
            text_head_width=self.text_head_width,
        )
