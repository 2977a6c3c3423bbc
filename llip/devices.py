"""What depends on the device: the form and the size of tiles, compiling, and how batches get there.

All of the library asks `of(device)`. `as_on(A100)` answers for another device, so that the choices of a GPU can be
seen, tested and counted on a machine without one.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A kind of device."""

    tile: int
    """Numbers in one buffer of a tile: a few buffers stay in the cache of a core, or fill a GPU."""
    columns: int | None
    """Columns of a tile at most."""
    fused: bool
    """Tiles in few passes over memory, each an elementwise function between two products, in place of few FLOPs."""
    compiled: bool
    """Towers and elementwise functions of tiles are compiled."""
    product_flops: float | None = None
    """FLOP/s that bf16 products of tiles reach; None: forms are compared by their products alone."""
    single_flops: float | None = None
    """FLOP/s of fp32 products."""
    bandwidth: float | None = None
    """Bytes a second that elementwise functions reach."""


CPU = Device(tile=1 << 19, columns=1024, fused=False, compiled=False)
A100 = Device(
    tile=1 << 25,
    columns=None,
    fused=True,
    compiled=True,
    product_flops=0.4 * 312e12,
    single_flops=0.7 * 19.5e12,
    bandwidth=1.6e12,
)
"""Every GPU is taken for one: forms and tiles that suit it suit the larger ones too."""

_answer: Device | None = None


def of(device: torch.device | str) -> Device:
    """What a device needs; where `as_on` says so, what another would."""
    return _answer or (A100 if torch.device(device).type == "cuda" else CPU)


@contextlib.contextmanager
def as_on(device: Device) -> Iterator[None]:
    """`of` answers for this device, whatever it is asked about."""
    global _answer
    before, _answer = _answer, device
    try:
        yield
    finally:
        _answer = before


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on the device. From pinned memory to a GPU it is copied beside the computation, which waits for it."""
    if device.type != "cuda":
        return tensor.to(device)
    beside, current = _copying(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(beside):
        sent = tensor.to(device, non_blocking=True)
    current.wait_stream(beside)
    sent.record_stream(current)
    return sent


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def compiles(device: torch.device) -> bool:
    """Whether towers are compiled where nothing is said; a GPU that lacks a compiler is warned of."""
    if not of(device).compiled:
        return False
    from torch.utils._triton import has_triton

    if device.type == "cuda" and not has_triton():
        logger.warning("towers run as they are, not compiled: there is no Triton for %s", device)
        return False
    return True


class Fused:
    """An elementwise function, with sums at most, which a compiler makes one kernel: nothing between is stored.

    Compiled for each new number of axes and sizes, then for any size, where the device of the first tensor asks for it;
    called as it is elsewhere, inside of what is being compiled, and, with one warning, where the compiler fails.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *tensors: torch.Tensor) -> Any:
        if torch.compiler.is_compiling() or not of(tensors[0].device).compiled:
            return self.function(*tensors)
        if self._compiled is None:
            compiled = torch.compile(self.function, fullgraph=True)
            try:
                result = compiled(*tensors)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of any layer of the compiler, or of what it calls
                logger.warning("pair scores run as they are, not compiled, as the compiler failed: %s", error)
                self._compiled = self.function
                return self.function(*tensors)
            self._compiled = compiled
            return result
        return self._compiled(*tensors)
