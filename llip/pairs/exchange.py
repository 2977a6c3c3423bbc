"""How the columns of the score matrix get to every rank, and what the ranks found out about them gets home.

Rows stay where they are. A column travels as its message: 2d numbers for a query, d for a pooled feature. Everything
that ranks tell each other in the loss goes through `Exchange.visit`.

Axes: R ranks · C captions of an image · N columns of a block · W width of a message · A width of a finding.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

Combination = Literal["sum", "logsumexp"]


class Block(NamedTuple):
    """Columns that a rank sees at once."""

    message_CNW: Tensor
    attached_CNA: Tensor | None
    offset: int
    """Column `offset + i` belongs to the same sample as local row i; outside of [0, N) where another block has it."""


See = Callable[[Block], Tensor]


class Exchange:
    """Shows the columns of all ranks to each rank, all at once (`gather`) or one rank's after another (`ring`).

    Columns are [C, B, W] on each of R ranks. Gathering moves them once and holds R·C·B of them; around the ring they
    move R - 1 times, while a rank computes, and 2·C·B are held. Every rank has to make the same calls with as many
    columns: ValueError where it does not the first time that a group is used.
    """

    def __init__(self, message_CBW: Tensor, kind: Literal["gather", "ring"], group: dist.ProcessGroup | None) -> None:
        self._message_CBW = message_CBW.contiguous()
        self._group = group
        self._size = 1 if group is None else dist.get_world_size(group)
        self._rank = 0 if group is None else dist.get_rank(group)
        self._kind = kind
        if group is not None and self._size > 1 and group not in _checked:
            _refuse_unequal(self._message_CBW, group)
            _checked.add(group)
        self._gathered_CNW = self._gather(self._message_CBW) if self._size > 1 and kind == "gather" else None

    def visit(self, see: See, *, combine: Combination, attached_CBA: Tensor | None = None) -> Tensor:
        """Let `see` look at every column with what is attached to it; it returns its findings [C, N, A] on a block.

        Returns the findings [C, B, A] of all ranks on the columns of this one, combined.
        """
        if self._size == 1:
            return see(Block(self._message_CBW, attached_CBA, 0))
        if self._gathered_CNW is not None:
            return self._visit_gathered(self._gathered_CNW, see, combine, attached_CBA)
        return self._visit_ring(see, combine, attached_CBA)

    def _visit_gathered(
        self, message_CNW: Tensor, see: See, combine: Combination, attached_CBA: Tensor | None
    ) -> Tensor:
        attached_CNA = None if attached_CBA is None else self._gather(attached_CBA)
        found_CNA = see(Block(message_CNW, attached_CNA, self._rank * self._message_CBW.shape[1]))
        if combine == "sum":
            return self._sum_home(found_CNA)
        largest_CNA = found_CNA.clone()
        dist.all_reduce(largest_CNA, op=dist.ReduceOp.MAX, group=self._group)
        total_CBA = self._sum_home((found_CNA - largest_CNA).exp_())
        batch = total_CBA.shape[1]
        return largest_CNA[:, self._rank * batch : (self._rank + 1) * batch] + total_CBA.log_()

    def _gather(self, local_CBA: Tensor) -> Tensor:
        gathered = local_CBA.new_empty(self._size * len(local_CBA), *local_CBA.shape[1:])
        dist.all_gather_single(gathered, local_CBA.contiguous(), group=self._group)
        return gathered.unflatten(0, (self._size, -1)).transpose(0, 1).flatten(1, 2)

    def _sum_home(self, found_CNA: Tensor) -> Tensor:
        by_rank = found_CNA.unflatten(1, (self._size, -1)).transpose(0, 1).contiguous()
        home_CBA = torch.empty_like(by_rank[0])
        dist.reduce_scatter_single(home_CBA, by_rank.flatten(0, 1), group=self._group)
        return home_CBA

    def _visit_ring(self, see: See, combine: Combination, attached_CBA: Tensor | None) -> Tensor:
        batch = self._message_CBW.shape[1]
        message, attached = self._message_CBW, attached_CBA
        found_on_its_way: _Hop | None = None
        for step in range(self._size):
            source = (self._rank - step) % self._size
            travelling = [message] if attached is None else [message, attached.contiguous()]
            next_block = self._hop(travelling) if step < self._size - 1 else None
            found = see(Block(message, attached, (self._rank - source) * batch))
            if found_on_its_way is not None:
                (before,) = found_on_its_way.arrived()
                found = before.add_(found) if combine == "sum" else torch.logaddexp(before, found)
            found_on_its_way = self._hop([found])
            if next_block is not None:
                message, *rest = next_block.arrived()
                attached = rest[0] if rest else None
        assert found_on_its_way is not None
        (home,) = found_on_its_way.arrived()  # the last hop of a block is from the rank before its own
        return home

    def _hop(self, tensors: list[Tensor]) -> "_Hop":
        return _Hop(tensors, (self._rank + 1) % self._size, (self._rank - 1) % self._size, self._group)


_checked: WeakSet[dist.ProcessGroup] = WeakSet()
"""Groups whose ranks were found to have as many columns: asking costs a message and waits for its answer."""


def _refuse_unequal(message_CBW: Tensor, group: dist.ProcessGroup) -> None:
    columns = message_CBW.shape[0] * message_CBW.shape[1]
    extremes = torch.tensor([columns, -columns], device=message_CBW.device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    largest, smallest = extremes.tolist()
    if largest != -smallest:
        raise ValueError(
            f"this rank has {columns} columns in its batch, and ranks have from {-smallest} to {largest}: "
            "the loss over several ranks needs batches of one size"
        )


class _Hop:
    """Tensors on their way to the next rank, and those of the previous rank on their way here."""

    def __init__(self, tensors: list[Tensor], to: int, source: int, group: dist.ProcessGroup | None) -> None:
        self._sent = tensors  # kept until they have left
        self._received = [torch.empty_like(tensor) for tensor in tensors]
        sends = [dist.P2POp(dist.isend, tensor, group=group, group_peer=to) for tensor in tensors]
        receives = [dist.P2POp(dist.irecv, tensor, group=group, group_peer=source) for tensor in self._received]
        self._work = dist.batch_isend_irecv(sends + receives)

    def arrived(self) -> list[Tensor]:
        for work in self._work:
            work.wait()
        return self._received
