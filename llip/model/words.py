"""Prediction of the words of captions from the patches of their image (SuperCLIP, arXiv 2512.14480, after 2411.03313).

    L = L_contrastive + λ L_words        L_words = -1/B Σ_i Σ_v ŷ_iv log softmax_v(h_i W + b)
    ŷ_iv = w_v y_iv / Σ_u w_u y_iu       w_v = max(0, log(|D| / (1 + df_v)))

h_i is the mean of the image's patch states, y_iv says whether its caption has token v, and df_v counts the captions
among |D| that have it. Rare words weigh more; start and end, which every caption has, weigh nothing. Counts run over
the captions of the training so far, as in the authors' release. The loss is the mean over an image's captions.

Axes: B images · P patches · W width of the tower · V vocabulary · R, N rows and positions of packed captions ·
T captions · L tokens · D distinct tokens of all captions.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llip.model.packing import PackedCaptions


class WordPrediction(nn.Module):
    """The layer, the counts, and the loss of each image."""

    def __init__(self, width: int, vocabulary: int, context_length: int) -> None:
        super().__init__()
        self.context_length = context_length
        self.linear = nn.Linear(width, vocabulary)
        nn.init.normal_(self.linear.weight, std=width**-0.5)
        nn.init.zeros_(self.linear.bias)
        self.captions_V = nn.Parameter(torch.zeros(vocabulary), requires_grad=False)
        """df: captions that have a token. Every caption has the last one, the end of text, once."""

    @torch.no_grad()
    def count(self, token_ids: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> None:
        """Count captions, [T, L] each, of this rank and of the others of `group`."""
        found_V = torch.zeros_like(self.captions_V)
        for token_ids_TL in token_ids:
            position_L = torch.arange(token_ids_TL.shape[1], device=token_ids_TL.device)
            caption, position = (position_L <= token_ids_TL.argmax(dim=1, keepdim=True)).nonzero(as_tuple=True)
            _, token_D = _distinct(caption, token_ids_TL[caption, position].long(), len(found_V))
            found_V += token_D.bincount(minlength=len(found_V)).to(found_V)
        if group is not None:
            dist.all_reduce(found_V, group=group)
        self.captions_V.add_(found_V)

    def forward(self, patches_BPW: Tensor, captions: PackedCaptions) -> Tensor:
        """The loss of each image [B], from its patch states and from all captions, caption-major."""
        count_V, images = self.captions_V, len(patches_BPW)
        weight_V = (count_V[-1] / (1 + count_V)).log().clamp(min=0)
        logit_BV = self.linear(patches_BPW.mean(dim=1)).to(weight_V.dtype)  # fp32 also under autocast
        is_word_RN = (captions.caption_RN >= 0) & (captions.position_RN < self.context_length)
        caption_D, token_D = _distinct(captions.caption_RN[is_word_RN], captions.token_RN[is_word_RN], len(count_V))
        weight_D, texts = weight_V[token_D], len(captions.state_TK)
        total_T = weight_V.new_zeros(texts).index_add(0, caption_D, weight_D)
        share_D = weight_D / total_T[caption_D].clamp(min=torch.finfo(weight_D.dtype).tiny)
        image_D = caption_D % images
        surprise_D = logit_BV.logsumexp(dim=1)[image_D] - logit_BV[image_D, token_D]
        return weight_V.new_zeros(images).index_add(0, image_D, share_D * surprise_D) * (images / texts)


def _distinct(caption_N: Tensor, token_N: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Captions and tokens, each pair of them once."""
    pair_D = (caption_N * vocabulary + token_N).unique()
    return pair_D // vocabulary, pair_D % vocabulary
