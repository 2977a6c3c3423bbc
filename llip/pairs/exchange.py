"""Columns of the score matrix on their way to every rank, and their gradients on their way back (all-gather or ring).

Rows stay where they are. A column travels as its message: 2d numbers for a query, d for a pooled feature. Everything
that ranks tell each other in the loss travels in a `RoundTrip`.

Axes: R ranks · C captions of an image · B columns of this rank, by caption · N columns of a block, by caption ·
W width of a message · A width of an attachment · F width of a finding.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


class ColumnBlock(NamedTuple):
    """Columns that a rank sees at once."""

    message_CNW: Tensor
    attached_CNA: Tensor | None
    found_CNF: Tensor
    """Findings of this rank about the columns, filled in by whoever looks at the block."""
    offset: int
    """Column `offset + i` belongs to the same sample as local row i; outside of [0, N) if another block has it."""
    first: int
    """Place of the block's first column among those of all ranks."""


class Exchange:
    """The columns of all ranks, shown to each rank all at once (`gather`) or one rank's after another (`ring`).

    Gathering moves every column once and holds all of them. Around the ring each column moves R - 1 times, while a rank
    computes, and the columns of two ranks are held. All ranks have to make the same calls. `batches` are the columns of
    each rank, by caption; without them, every rank has as many as this one. Raises ValueError where a rank has another
    number of columns; this is checked at the first use of a group.
    """

    def __init__(
        self,
        message_CBW: Tensor,
        kind: Literal["gather", "ring"],
        group: dist.ProcessGroup | None,
        batches: Sequence[int] | None = None,
    ) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        self.message_CBW = message_CBW.contiguous()
        self.batches = list(batches or [message_CBW.shape[1]] * self.size)
        """Columns of each rank, by caption."""
        self._even = min(self.batches) == max(self.batches)
        if group is not None and self.size > 1 and group not in _checked:
            _check_batches(self.message_CBW, self.batches, group)
            _checked.add(group)
        self.gathered_CNW = self.gather(self.message_CBW) if self.size > 1 and kind == "gather" else None

    def round_trip(
        self,
        width: int,
        *,
        combine: Literal["sum", "logsumexp"],
        dtype: torch.dtype,
        attached_CBA: Tensor | None = None,
    ) -> "RoundTrip":
        """A trip of the columns, with their attachment, that combines findings of some width about them."""
        return RoundTrip(self, width, combine == "logsumexp", dtype, attached_CBA)

    @property
    def first(self) -> int:
        """Place of this rank's first column among those of all ranks."""
        return self.first_of(self.rank)

    def first_of(self, rank: int) -> int:
        """Place of a rank's first column among those of all ranks."""
        return sum(self.batches[:rank])

    def gather(self, local_CBA: Tensor) -> Tensor:
        """[C, B, A] of every rank as [C, N, A] on all of them. Smaller batches travel padded to the largest."""
        if self.size == 1:
            return local_CBA
        captions, batch, _ = local_CBA.shape
        padded_CBA = F.pad(local_CBA, (0, 0, 0, max(self.batches) - batch)).contiguous()
        gathered = local_CBA.new_empty(self.size * captions, *padded_CBA.shape[1:])
        dist.all_gather_single(gathered, padded_CBA, group=self.group)
        if self._even:
            return gathered.unflatten(0, (self.size, -1)).transpose(0, 1).flatten(1, 2)  # no copy of one caption
        ranks = zip(gathered.split(captions), self.batches, strict=True)
        return torch.cat([of_rank[:, :own] for of_rank, own in ranks], dim=1)

    def sum_home(self, found_CNF: Tensor) -> Tensor:
        """[C, N, F] on every rank, summed over the ranks, as the [C, B, F] of this rank's own columns."""
        if self._even:
            by_rank = found_CNF.unflatten(1, (self.size, -1)).transpose(0, 1).contiguous()
        else:
            captions, _, width = found_CNF.shape
            by_rank = found_CNF.new_zeros(self.size, captions, max(self.batches), width)
            for of_rank, part in zip(by_rank, found_CNF.split(self.batches, dim=1), strict=True):
                of_rank[:, : part.shape[1]] = part
        home = torch.empty_like(by_rank[0])
        dist.reduce_scatter_single(home, by_rank.flatten(0, 1), group=self.group)
        return home[:, : self.batches[self.rank]]

    def hop(self, tensors: list[Tensor], columns: int) -> "_Hop":
        """Send tensors to the next rank, and receive those of the previous one, which have so many columns."""
        return _Hop(tensors, columns, (self.rank + 1) % self.size, (self.rank - 1) % self.size, self.group)


class RoundTrip:
    """Iterating shows the columns of all ranks, block by block; after that the findings are home.

    trip = exchange.round_trip(width, combine="sum", dtype=torch.float32)
    for block in trip:
        block.found_CNF += ...
    trip.home_CBF

    """

    home_CBF: Tensor
    """The findings of all ranks about the columns of this one, combined."""

    def __init__(
        self, exchange: Exchange, width: int, logsumexp: bool, dtype: torch.dtype, attached_CBA: Tensor | None
    ) -> None:
        self._exchange, self._width, self._logsumexp, self._dtype = exchange, width, logsumexp, dtype
        self._attached_CBA = attached_CBA

    def __iter__(self) -> Iterator[ColumnBlock]:
        if self._exchange.size == 1:
            block = self._block(self._exchange.message_CBW, self._attached_CBA, 0, 0)
            yield block
            self.home_CBF = block.found_CNF
        elif self._exchange.gathered_CNW is not None:
            yield from self._gathered(self._exchange.gathered_CNW)
        else:
            yield from self._around_the_ring()

    def _block(self, message_CNW: Tensor, attached_CNA: Tensor | None, offset: int, first: int) -> ColumnBlock:
        shape = (*message_CNW.shape[:2], self._width)
        found_CNF = message_CNW.new_full(shape, -math.inf if self._logsumexp else 0, dtype=self._dtype)
        return ColumnBlock(message_CNW, attached_CNA, found_CNF, offset, first)

    def _gathered(self, message_CNW: Tensor) -> Iterator[ColumnBlock]:
        exchange = self._exchange
        attached_CNA = None if self._attached_CBA is None else exchange.gather(self._attached_CBA)
        block = self._block(message_CNW, attached_CNA, exchange.first, 0)
        yield block
        if not self._logsumexp:
            self.home_CBF = exchange.sum_home(block.found_CNF)
            return
        largest_CNF = block.found_CNF.clone()
        dist.all_reduce(largest_CNF, op=dist.ReduceOp.MAX, group=exchange.group)
        total_CBF = exchange.sum_home((block.found_CNF - largest_CNF).exp_())
        self.home_CBF = largest_CNF.narrow(1, exchange.first, total_CBF.shape[1]) + total_CBF.log()

    def _around_the_ring(self) -> Iterator[ColumnBlock]:
        exchange = self._exchange
        message, attached = exchange.message_CBW, self._attached_CBA
        under_way: _Hop | None = None
        for step in range(exchange.size):
            source = (exchange.rank - step) % exchange.size
            columns, following = exchange.batches[source], exchange.batches[source - 1]
            travelling = [message] if attached is None else [message, attached.contiguous()]
            next_block = exchange.hop(travelling, following) if step < exchange.size - 1 else None
            offset = 0 if source == exchange.rank else columns
            block = self._block(message, attached, offset, exchange.first_of(source))
            yield block
            found = block.found_CNF
            if under_way is not None:
                (before,) = under_way.arrived()
                found = torch.logaddexp(before, found) if self._logsumexp else before.add_(found)
            under_way = exchange.hop([found], following)
            if next_block is not None:
                message, *rest = next_block.arrived()
                attached = rest[0] if rest else None
        assert under_way is not None
        (self.home_CBF,) = under_way.arrived()  # the last hop of a block is from the rank before its own


_checked: WeakSet[dist.ProcessGroup] = WeakSet()
"""Groups whose ranks were found to have the columns that they should: asking costs a message and a wait."""


def _check_batches(message_CBW: Tensor, batches: list[int], group: dist.ProcessGroup) -> None:
    captions, batch, _ = message_CBW.shape
    found = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=message_CBW.device)
    dist.all_gather_single(found, torch.tensor([batch], device=message_CBW.device), group=group)
    if (columns := found.tolist()) != batches:
        raise ValueError(
            f"this rank has {captions * batch} columns in its batch, and ranks have from {captions * min(columns)} to "
            f"{captions * max(columns)}: the loss over several ranks has to be told how many images each of them has"
        )


class _Hop:
    """Tensors on their way to the next rank, and those of the previous rank on their way here."""

    def __init__(
        self, tensors: list[Tensor], columns: int, to: int, source: int, group: dist.ProcessGroup | None
    ) -> None:
        self._sent = tensors  # kept until they have left
        self._received = [tensor.new_empty(len(tensor), columns, tensor.shape[2]) for tensor in tensors]
        sends = [dist.P2POp(dist.isend, tensor, group=group, group_peer=to) for tensor in tensors]
        receives = [dist.P2POp(dist.irecv, tensor, group=group, group_peer=source) for tensor in self._received]
        self._work = dist.batch_isend_irecv(sends + receives)

    def arrived(self) -> list[Tensor]:
        for work in self._work:
            work.wait()
        return self._received
