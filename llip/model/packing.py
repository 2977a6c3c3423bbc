"""Captions laid out for the text tower: several to a row, so that hardly any work goes to padding.

Captions have 10 to 30 tokens of a context of 77. Under a mask that is causal and keeps captions apart, a row full of
captions gives each the states that it would have alone (Krell et al. 2021, arXiv 2107.02027).

Axes: T captions · L positions of a caption · K kept states of a caption · R rows · N positions of a row ·
S kept positions of a row.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class PackedCaptions(NamedTuple):
    """The text tower's input."""

    token_RN: Tensor
    """Token ids; 0 for latents and padding."""
    position_RN: Tensor
    """Position within the caption; `context_length + k` for latent k."""
    caption_RN: Tensor
    """Number of the caption that a position belongs to; -1 for padding."""
    kept_RS: Tensor
    """Positions whose final states are kept. Rows that keep fewer than S repeat position 0."""
    state_TK: Tensor
    """Places of the states of each caption among the R·S kept ones."""

    def to(self, device: torch.device) -> "PackedCaptions":
        return PackedCaptions(*(tensor.to(device, non_blocking=True) for tensor in self))


def pack(token_ids_TL: Tensor, *, latents: int, context_length: int) -> PackedCaptions:
    """Lay captions, 0-padded behind their end-of-text token (the highest id), out in rows, on the CPU.

    `latents` positions follow each end-of-text token, and their states are kept; without latents, that of the token is.
    A row holds one context, rounded up to a multiple of 8: attention kernels of GPUs copy masks of other widths.
    """
    token_ids = token_ids_TL.numpy(force=True)
    words_T = token_ids.argmax(axis=1) + 1
    length_T = words_T + latents
    capacity = (context_length + latents + 7) // 8 * 8
    row_T, start_T, slot_T = _best_fit(length_T, capacity)
    rows, kept = row_T.max() + 1, max(latents, 1)
    positions = (start_T + length_T).max()

    caption = np.repeat(np.arange(len(length_T)), length_T)
    offset = np.arange(len(caption)) - np.repeat(np.cumsum(length_T) - length_T, length_T)
    behind = offset - words_T[caption]
    cell = (row_T[caption], start_T[caption] + offset)
    token_RN, position_RN = np.zeros((2, rows, positions), np.int64)
    caption_RN = np.full((rows, positions), -1)
    token_RN[cell] = np.where(behind < 0, token_ids[caption, np.minimum(offset, token_ids.shape[1] - 1)], 0)
    position_RN[cell] = np.where(behind < 0, offset, context_length + behind)
    caption_RN[cell] = caption

    kept_RS = np.zeros((rows, (slot_T.max() + 1) * kept), np.int64)
    slot_TK = slot_T[:, None] * kept + np.arange(kept)
    kept_RS[row_T[:, None], slot_TK] = (start_T + length_T)[:, None] - kept + np.arange(kept)
    state_TK = row_T[:, None] * kept_RS.shape[1] + slot_TK
    return PackedCaptions(*map(torch.from_numpy, (token_RN, position_RN, caption_RN, kept_RS, state_TK)))


def _best_fit(length_T: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first position and number within its row of each caption: longest first, into the fullest row with room."""
    row_T, start_T, slot_T = (np.zeros(len(length_T), np.int64) for _ in range(3))
    rows_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    captions_of_row: list[int] = []
    for caption in np.argsort(-length_T, kind="stable").tolist():
        length = int(length_T[caption])
        room = next((room for room in range(length, capacity + 1) if rows_by_room[room]), capacity)
        if rows_by_room[room]:
            row = rows_by_room[room].pop()
        else:
            row = len(captions_of_row)
            captions_of_row.append(0)
        row_T[caption], start_T[caption], slot_T[caption] = row, capacity - room, captions_of_row[row]
        captions_of_row[row] += 1
        rows_by_room[room - length].append(row)
    return row_T, start_T, slot_T
