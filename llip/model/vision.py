"""The image tower: CLIP's vision transformer with K learnable tokens in place of the class token (Llip, section 3.1).

Axes: B images · C colours · H, W of pixels · P patches · K tokens · N = K + P positions · W width.
"""

import torch
from torch import Tensor, nn

from llip.config import Activation, VisionConfig
from llip.model.transformer import Transformer, initialise_uniformly


class VisionTransformer(nn.Module):
    """Pixels in, the final states of the kept positions out."""

    def __init__(self, config: VisionConfig, kept: int, activation: Activation = "quick_gelu") -> None:
        """`kept` positions are returned: 1 for the first token, K for the tokens, K + P for tokens and patches."""
        super().__init__()
        self.config = config
        self.kept = kept
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=False)
        self.tokens = nn.Parameter(torch.empty(config.tokens, config.width))
        self.position = nn.Parameter(torch.empty(config.tokens + config.patches, config.width))
        self.norm_before = nn.LayerNorm(config.width, config.norm_epsilon)
        self.transformer = Transformer(config, config.width // config.head_width, activation)
        self.norm_after = nn.LayerNorm(config.width, config.norm_epsilon)
        nn.init.normal_(self.tokens, std=config.width**-0.5)
        nn.init.normal_(self.position, std=config.position_std or config.width**-0.5)
        initialise_uniformly(self.transformer)

    def forward(self, pixels_BCHW: Tensor, kept: int | None = None) -> Tensor:
        """[B, 3, S, S] normalised pixels -> [B, kept, W]; other positions than the tower's are kept where `kept` says
        so. Raises ValueError for another shape.
        """
        size = self.config.image_size
        if pixels_BCHW.shape[1:] != (3, size, size):
            raise ValueError(f"pixels have shape {list(pixels_BCHW.shape)}; this model takes [B, 3, {size}, {size}]")
        states_BNW = self.norm_before(self._embed(pixels_BCHW))
        return self.norm_after(self.transformer(states_BNW, kept or self.kept))

    def _embed(self, pixels_BCHW: Tensor) -> Tensor:
        token_position_KW, patch_position_PW = self.position.split((self.config.tokens, self.config.patches))
        patches_BPW = self.patch_embedding(pixels_BCHW).flatten(2).transpose(1, 2) + patch_position_PW
        if self.training and self.config.patch_dropout:
            patches_BPW = self._drop(patches_BPW)
        tokens_BKW = (self.tokens + token_position_KW).expand(len(pixels_BCHW), -1, -1)
        return torch.cat([tokens_BKW, patches_BPW], dim=1)

    def _drop(self, patches_BPW: Tensor) -> Tensor:
        """A random subset of each image's patches, at least one (FLIP, arXiv 2212.00794). Their order means nothing."""
        batch, patches, width = patches_BPW.shape
        left = max(1, round(patches * (1 - self.config.patch_dropout)))
        chosen_BP = torch.rand(batch, patches, device=patches_BPW.device).topk(left, dim=1).indices
        return patches_BPW.gather(1, chosen_BP[:, :, None].expand(-1, -1, width))
