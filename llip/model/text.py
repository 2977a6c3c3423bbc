"""The caption tower: CLIP's causal text transformer.

Axes: T captions · L positions of a caption · K kept states · W width.
"""

import torch
from torch import Tensor, nn

from llip.config import TextConfig
from llip.model.transformer import Transformer


def trim(token_ids_TL: Tensor) -> Tensor:
    """The same captions without the padding that all of them share: nothing after an end-of-text token can change its state.

    Captions that lie on an accelerator come back unchanged, because reading their length would stall its queue.
    """
    if token_ids_TL.device.type != "cpu":
        return token_ids_TL
    return token_ids_TL[:, : int(token_ids_TL.argmax(dim=1).max()) + 1]


class TextTransformer(nn.Module):
    """Token ids in, the final state at the end-of-text token out, or those of K latents that read the caption.

    With `tokens` K > 1 learned latents follow the end-of-text token: latent k attends to the whole caption and to the latents before it
    (no caption token sees a latent), and the K states of the latents are kept. Latents are their own position embedding.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.position = nn.Parameter(torch.empty(config.context_length, width))
        self.latents = nn.Parameter(torch.empty(config.tokens, width)) if config.tokens > 1 else None
        self.transformer = Transformer(width, config.layers, config.heads, config.mlp_width)
        self.norm_after = nn.LayerNorm(width)
        self._initialise()

    def _initialise(self) -> None:
        """As OpenAI's CLIP: the residual branches shrink with the depth."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        if self.latents is not None:
            nn.init.normal_(self.latents, std=0.02)
        width, layers = self.config.width, self.config.layers
        for block in self.transformer.blocks:
            nn.init.normal_(block.attention.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attention.out.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp_up.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp_down.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.zeros_(block.attention.qkv.bias)
            nn.init.zeros_(block.attention.out.bias)

    def forward(self, token_ids_TL: Tensor) -> Tensor:
        """[T, L] token ids, 0 after the end-of-text token (the highest id) -> [T, K, W]. Raises ValueError where L is above the context."""
        length, context = token_ids_TL.shape[1], self.config.context_length
        if length > context:
            raise ValueError(f"captions have {length} tokens; this model takes at most {context}")
        x_TLW = self.token_embedding(token_ids_TL) + self.position[:length]
        end_T11 = token_ids_TL.argmax(dim=1)[:, None, None]
        caption_T1L = torch.arange(length, device=token_ids_TL.device) <= end_T11
        if self.latents is None:
            states_TKW = self.transformer(
                x_TLW,
                lambda x: x.gather(1, end_T11.expand(-1, 1, x.shape[-1])),
                causal=True,
                mask_B1QN=caption_T1L[:, None],
            )
        else:
            states_TKW = self._read(x_TLW, self.latents, caption_T1L)
        return self.norm_after(states_TKW)

    def _read(self, x_TLW: Tensor, latents_KW: Tensor, caption_T1L: Tensor) -> Tensor:
        """The states of latents that stand behind the caption: the padding between the two is masked."""
        (captions, length, _), latents = x_TLW.shape, len(latents_KW)
        x_TNW = torch.cat([x_TLW, latents_KW.to(x_TLW.dtype).expand(captions, -1, -1)], dim=1)
        everything = length + latents
        causal_NN = torch.ones(everything, everything, dtype=torch.bool, device=x_TLW.device).tril()
        visible_T1N = torch.cat([caption_T1L, caption_T1L.new_ones(captions, 1, latents)], dim=2)
        mask_T1NN = (causal_NN & visible_T1N)[:, None]
        return self.transformer(x_TNW, lambda x: x[:, length:], mask_B1NN=mask_T1NN, mask_B1QN=mask_T1NN[:, :, length:])
