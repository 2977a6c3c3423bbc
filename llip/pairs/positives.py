"""Positive pairs of the global batch where captions repeat.

A caption is a positive of every image that has an equal one, token by token, among its captions: of its own image, and
of others whose captions include the same words. That is UniCL's label space (arXiv 2204.03610), with the
caption for the label, and the multi-positive sigmoid loss of FLAIR (arXiv 2412.03561), whose positives are all
captions of an image. Without it such a pair counts as a negative, though the caption is true of the image.

Axes: C captions of an image · N images of all ranks · I images and J captions of a tile · L tokens · T captions ·
P positives of a tile.
"""

import torch
from torch import Tensor

MULTIPLIER = 6364136223846793005
"""Base of the hash: odd, so that no token loses bits (Knuth's, of the generator MMIX)."""


def caption_ids(token_ids_TL: Tensor) -> Tensor:
    """A 64-bit hash of each caption [T]: `Σ_l token_l · base^(l + 1)` modulo 2^64. Padding, of 0, changes nothing."""
    power_L = torch.full((token_ids_TL.shape[1],), MULTIPLIER, device=token_ids_TL.device).cumprod(0)
    return (token_ids_TL.long() * power_L).sum(dim=1)


class Positives:
    """The positives of the tiles of a global batch, from the ids of its captions."""

    def __init__(self, id_CN: Tensor, *, captions_are_rows: bool, dtype: torch.dtype) -> None:
        self._id_CN = id_CN
        self._captions_are_rows = captions_are_rows
        sorted_NC = id_CN.T.sort(dim=1).values
        distinct_NC = torch.ones_like(sorted_NC, dtype=torch.bool)  # an image that repeats a caption has it once
        distinct_NC[:, 1:] = sorted_NC[:, 1:] != sorted_NC[:, :-1]
        images_CN = _occurrences(sorted_NC[distinct_NC], id_CN)
        captions_CN = torch.stack([(_occurrences(id_N, sorted_NC) * distinct_NC).sum(dim=1) for id_N in id_CN])
        self._image_share_CN = 1 / captions_CN.to(dtype)
        """One over the positives of an image among all captions c."""
        self._caption_share_CN = 1 / images_CN.to(dtype)
        """One over the positives of a caption among all images."""

    def of(self, caption: int, rows: slice, columns: slice) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Rows and columns [P] of the positives of a tile, and one over the positives of each row and column, [P].

        Its captions are captions `caption` of their images; `rows` and `columns` are places among all images.
        """
        images, captions = (columns, rows) if self._captions_are_rows else (rows, columns)
        equal_CIJ = self._id_CN[:, images, None] == self._id_CN[caption, captions]
        image_P, caption_P = equal_CIJ.any(dim=0).nonzero(as_tuple=True)
        of_image_P = self._image_share_CN[caption, images][image_P]
        of_caption_P = self._caption_share_CN[caption, captions][caption_P]
        if self._captions_are_rows:
            return (caption_P, image_P), (of_caption_P, of_image_P)
        return (image_P, caption_P), (of_image_P, of_caption_P)


def _occurrences(among: Tensor, value: Tensor) -> Tensor:
    """Occurrences of each value among others, in the shape of the values."""
    ordered, value = among.sort().values, value.contiguous()
    return torch.searchsorted(ordered, value, right=True) - torch.searchsorted(ordered, value)
