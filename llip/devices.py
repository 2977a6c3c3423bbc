"""Choices that depend on the device: the form and the size of tiles, compiling, and how batches get there.

All of the library asks `of(device)`. `as_on(A100)` answers for another device, so that the choices of a GPU can be
seen, tested and counted on a machine without one.
"""

import contextlib
import ctypes
import functools
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
    triton: bool = False
    """Tiles of Gram matrices are scored by kernels of their own, in Triton."""
    product_flops: float | None = None
    """FLOP/s that bf16 products of tiles reach; None: forms are compared by their products alone."""
    single_flops: float | None = None
    """FLOP/s of fp32 products."""
    bandwidth: float | None = None
    """Bytes a second that elementwise functions reach."""
    kernel_flops: float = math.inf
    """FLOP/s that products of bf16 reach in a kernel of ours."""
    cache_bandwidth: float = math.inf
    """Bytes a second between the cache of all multiprocessors and theirs."""


CPU = Device(tile=1 << 19, columns=1024, fused=False, compiled=False)
A100 = Device(
    tile=1 << 25,
    columns=None,
    fused=True,
    compiled=True,
    triton=True,
    product_flops=0.4 * 312e12,
    single_flops=0.7 * 19.5e12,
    bandwidth=1.6e12,
    kernel_flops=0.7 * 312e12,
    cache_bandwidth=4e12,  # of 5,120 bytes a cycle at 1.41 GHz
)
"""Every GPU is taken for one: forms and tiles that suit it suit the larger ones too."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_ON_HEAP = 32 << 20
"""Bytes of the largest buffer that glibc takes from its heap, and can keep."""
_answer: Device | None = None


def of(device: torch.device | str) -> Device:
    """Choices for a device; where `as_on` says so, what another would."""
    device = torch.device(device)
    return _answer or (_gpu(device) if device.type == "cuda" else CPU)


@functools.cache
def _gpu(device: torch.device) -> Device:
    """A GPU, which is warned of where it cannot run kernels in Triton; one without a driver is taken for an A100."""
    if not torch.cuda.is_available():
        return A100
    if importlib.util.find_spec("triton") is None:
        lacks = "Triton is not installed"
    elif torch.cuda.get_device_capability(device) < (8, 0):
        lacks = "it has no products of bf16 (compute capability below 8.0)"
    else:
        return A100
    logger.warning("pair scores run without kernels of their own on %s: %s", device, lacks)
    return replace(A100, triton=False)


def simulated() -> bool:
    """Whether `as_on` answers."""
    return _answer is not None


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


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next buffers, where the C library is glibc.

    A step on the CPU frees and takes buffers of many megabytes; glibc returns them to the kernel, which clears each
    page once more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)


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
