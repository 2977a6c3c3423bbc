"""Memory of a process that trains on the CPU."""

import ctypes
import resource

import pytest
import torch

from llip import devices

FLOATS = 6_000_000
"""Of a buffer of 24 MB, as large as the gradient of the token embedding of a small model."""


def buffers() -> None:
    """Takes four of them, writes to them and frees them, the last one first: then the end of the heap is free."""
    taken = [torch.empty(FLOATS) for _ in range(4)]
    for buffer in taken:
        buffer.fill_(1.0)
    del buffer
    while taken:
        taken.pop()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library is not glibc")
def test_freed_memory_is_not_taken_from_the_kernel_again() -> None:
    devices.keep_freed_memory()
    for _ in range(6):  # the heap grows to its size
        buffers()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        buffers()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 3 * 4 * FLOATS * 4 / resource.getpagesize() / 10
