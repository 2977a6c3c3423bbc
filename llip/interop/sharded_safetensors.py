"""Named tensors in safetensors files: whole in one, or rows of each in several.

    model.safetensors                     written by one process
    model-00001-of-00002.safetensors …    written by two

One after the other along the first axis, parts are the tensors. Their rows are cut as torch.chunk and FSDP2 cut them; a
scalar is in the first part.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llip import storage
from llip.interop.tensor_files import parse_safetensors

DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in a file, in the order in which the library writes them: wider ones first, so all are aligned."""


class ShardView(NamedTuple):
    """Memory for some consecutive rows of a tensor."""

    rows: Tensor
    """[n, ...], or a scalar."""
    first: int
    """The first of them, in the whole tensor."""
    total: int
    """Rows of the whole tensor."""


def name_of(kind: str, index: int, count: int) -> str:
    """Name of part `index`, from 0, of `count`."""
    return f"{kind}.safetensors" if count == 1 else f"{kind}-{index + 1:05d}-of-{count:05d}.safetensors"


def rows_of(total: int, index: int, count: int) -> slice:
    """The rows of a tensor with `total` that are in part `index` of `count`; the last parts may be empty."""
    size = -(-total // count)
    return slice(min(index * size, total), min((index + 1) * size, total))


def is_part(name: str, kind: str) -> bool:
    """Whether a file of this name holds tensors of a kind, or a part of them."""
    return re.fullmatch(rf"{kind}(-\d+-of-\d+)?\.safetensors", name) is not None


def files(names: Iterable[str], kind: str) -> list[str]:
    """The parts of a kind among the names of files, in order; empty where one is missing."""
    found = sorted(name for name in names if is_part(name, kind))
    return found if found == [name_of(kind, index, len(found)) for index in range(len(found))] else []


def serialise(tensors: Mapping[str, Tensor]) -> list[memoryview]:
    """The content of a safetensors file, in pieces: the header, then the tensors' memory, not copied."""
    types = list(DTYPES)
    order = sorted(tensors, key=lambda name: (types.index(tensors[name].dtype), name))
    flat = [tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8) for name in order]
    header: dict[str, Any] = {}
    end = 0
    for name, octets in zip(order, flat, strict=True):
        start, end = end, end + len(octets)
        tensor = tensors[name]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(len(text).to_bytes(8, "little") + text), *(octets.numpy().data for octets in flat)]


def read(folder: str, kind: str) -> dict[str, Tensor]:
    """The whole tensors. Raises ValueError where a part is missing."""
    parts = [parse_safetensors(storage.read_bytes(uri), uri) for uri in uris(folder, kind)]
    return {
        name: torch.cat([part[name] for part in parts if name in part]) if first.ndim else first
        for name, first in parts[0].items()
    }


def read_into(
    folder: str, kind: str, places: Mapping[str, ShardView], read: Callable[[str], bytes] = storage.read_bytes
) -> set[str]:
    """Fill the places from those parts that hold something of them, `read` one after the other. Returns the names that
    were found.

    Raises ValueError where a part is missing.
    """
    parts, found = uris(folder, kind), set()
    for index, uri in enumerate(parts):
        overlaps = {}
        for name, place in places.items():
            part = rows_of(place.total, index, len(parts))
            size = len(place.rows) if place.rows.ndim else 1
            first, last = max(part.start, place.first), min(part.stop, place.first + size)
            if first < last:
                overlaps[name] = (place, slice(first - place.first, last - place.first), first - part.start)
        tensors = parse_safetensors(read(uri), uri) if overlaps else {}
        for name in overlaps.keys() & tensors.keys():
            place, into, start = overlaps[name]
            if place.rows.ndim:
                place.rows[into] = tensors[name][start : start + into.stop - into.start]
            else:
                place.rows.copy_(tensors[name])
            found.add(name)
    return found


def uris(folder: str, kind: str) -> list[str]:
    """The files of a kind in a folder, in order. Raises ValueError where a part is missing."""
    names = [uri.rsplit("/", 1)[1] for uri in storage.listing(folder, ".safetensors")]
    if not (found := files(names, kind)):
        raise ValueError(
            f"{folder} does not hold all parts of {kind}.safetensors; it holds {', '.join(names) or 'none'}"
        )
    return [storage.join(folder, name) for name in found]
