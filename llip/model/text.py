"""The caption tower: CLIP's causal text transformer.

Axes: T captions · K kept states of a caption · R rows of captions · N positions of a row · S kept positions of a row ·
L positions of the context · W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llip.config import Activation, TextConfig
from llip.model.transformer import Transformer, initialise_by_depth


class TextTransformer(nn.Module):
    """Captions in, the final state of each at its end-of-text token out, or those of K latents that read it.

    With `tokens` K > 1, K learned latents follow the end-of-text token: latent k attends to the whole caption and
    to the latents up to itself, no word sees a latent, and the states of the latents are kept. A latent is its own
    position embedding.
    """

    def __init__(self, config: TextConfig, activation: Activation = "quick_gelu") -> None:
        super().__init__()
        self.config = config
        self.latent_count = config.tokens if config.tokens > 1 else 0
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.empty(config.context_length, config.width))
        self.latents = nn.Parameter(torch.empty(self.latent_count, config.width)) if self.latent_count else None
        self.transformer = Transformer(config, config.heads, config.activation or activation)
        self.norm_after = nn.LayerNorm(config.width, config.norm_epsilon)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights with the deviations of OpenAI's CLIP."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        if self.latents is not None:
            nn.init.normal_(self.latents, std=0.02)
        initialise_by_depth(self.transformer)

    def forward(
        self, token_RN: Tensor, position_RN: Tensor, caption_RN: Tensor, kept_RS: Tensor, state_TK: Tensor
    ) -> Tensor:
        """The fields of `PackedCaptions` -> [T, K, W]."""
        mask_RNN = (caption_RN[:, :, None] == caption_RN[:, None, :]).tril()
        states_RSW = self.transformer(self._embed(token_RN, position_RN), kept_RS, mask_RNN)
        return self.norm_after(states_RSW.flatten(0, 1)[state_TK])

    def _embed(self, token_RN: Tensor, position_RN: Tensor) -> Tensor:
        words_RNW = self.token_embedding(token_RN)
        if self.latents is None:
            return words_RNW + F.embedding(position_RN, self.position)
        is_word_RN1 = (position_RN < self.config.context_length)[:, :, None]
        return words_RNW * is_word_RN1 + F.embedding(position_RN, torch.cat([self.position, self.latents]))
