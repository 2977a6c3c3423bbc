"""Captions packed into rows: nothing is lost, hardly anything is padding, and no caption sees another."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llip.config import TextConfig
from llip.model.packing import pack
from llip.model.towers import TextTransformer

END = 9
CONTEXT = 12


def padded(lengths: list[int], seed: int = 0) -> torch.Tensor:
    words = np.random.default_rng(seed).integers(1, END, (len(lengths), CONTEXT))
    words[np.arange(CONTEXT) >= np.array(lengths)[:, None]] = 0
    words[np.arange(len(lengths)), np.array(lengths) - 1] = END
    return torch.from_numpy(words)


@settings(max_examples=100)
@given(st.lists(st.integers(1, CONTEXT), min_size=1, max_size=30), st.sampled_from([0, 2]))
def test_every_caption_lies_whole_in_one_row(lengths: list[int], latents: int) -> None:
    ids_TL = padded(lengths)
    packed = pack(ids_TL, latents=latents, context_length=CONTEXT)
    assert packed.token_RN.shape[1] <= 16
    for caption, length in enumerate(lengths):
        rows, columns = (packed.caption_RN == caption).nonzero().T
        assert len(set(rows.tolist())) == 1
        assert columns.tolist() == list(range(int(columns[0]), int(columns[0]) + length + latents))
        positions = [*range(length), *range(CONTEXT, CONTEXT + latents)]
        assert packed.position_RN[rows, columns].tolist() == positions
        assert packed.token_RN[rows, columns].tolist() == ids_TL[caption, :length].tolist() + [0] * latents
        kept = packed.kept_RS.shape[1]
        found = [(state // kept, packed.kept_RS.flatten()[state]) for state in packed.state_TK[caption].tolist()]
        assert found == [(rows[0], column) for column in columns[-max(latents, 1) :].tolist()]
    assert (packed.caption_RN >= 0).sum() == sum(lengths) + latents * len(lengths)


def test_real_lengths_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(18), 0.5, 512).round().clip(4, 77).astype(int)
    ids = torch.zeros(512, 77, dtype=torch.long)
    ids[torch.arange(512), torch.from_numpy(lengths) - 1] = END
    packed = pack(ids, latents=0, context_length=77)
    assert packed.token_RN.shape[1] == 80
    assert packed.token_RN.numel() < 1.03 * lengths.sum() < 0.3 * ids.numel()


@pytest.mark.parametrize("tokens", [1, 3])
def test_states_do_not_depend_on_the_other_captions_or_on_the_padding(tokens: int) -> None:
    torch.manual_seed(0)
    tower = TextTransformer(
        TextConfig(context_length=CONTEXT, vocabulary=END + 1, width=16, heads=2, layers=3, tokens=tokens)
    ).double()

    def states(ids_TL: torch.Tensor) -> torch.Tensor:
        return tower(*pack(ids_TL, latents=tower.latent_count, context_length=CONTEXT))

    ids_TL = padded([4, 12, 3, 5, 1, 7, 7, 2, 6])
    together = states(ids_TL)
    assert together.shape == (9, tokens, 16)
    for caption, row in enumerate(ids_TL):
        for width in (CONTEXT, int(row.argmax()) + 1):
            torch.testing.assert_close(states(row[None, :width])[0], together[caption], rtol=0, atol=1e-13)
    order = torch.randperm(9)
    torch.testing.assert_close(states(ids_TL[order]), together[order], rtol=0, atol=1e-13)


def test_a_word_changes_its_own_caption_only() -> None:
    torch.manual_seed(0)
    tower = TextTransformer(
        TextConfig(context_length=CONTEXT, vocabulary=END + 1, width=16, heads=2, layers=2)
    ).double()
    ids_TL = padded([4, 3, 5])
    changed_TL = ids_TL.clone()
    changed_TL[1, 1] = ids_TL[1, 1] % (END - 1) + 1
    before, after = (tower(*pack(ids, latents=0, context_length=CONTEXT)) for ids in (ids_TL, changed_TL))
    assert ((before - after).abs().amax(dim=(1, 2)) > 1e-6).tolist() == [False, True, False]
