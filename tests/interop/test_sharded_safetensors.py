"""Files of tensors, written from the tensors' own memory."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from llip import storage
from llip.interop import sharded_safetensors


def test_files_are_the_library_s_to_the_byte_and_hold_no_copy() -> None:
    types = sharded_safetensors.DTYPES
    tensors = {f"{i % 3}/{name}": torch.arange(i + 1).to(type) for i, (type, name) in enumerate(types.items())}
    tensors |= {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "Ä\n b": torch.ones(2, 3, dtype=torch.bfloat16),
    }
    tensors |= {"turned": torch.arange(6.0).reshape(2, 3).T}
    pieces = sharded_safetensors.serialise(tensors)
    assert b"".join(pieces) == safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
    weights = torch.randn(7, 5)
    _, own = sharded_safetensors.serialise({"w": weights})
    assert np.frombuffer(own, dtype=np.uint8).ctypes.data == weights.data_ptr()


@pytest.mark.parametrize("block", [1, 7, 1 << 24])
def test_pieces_are_written_in_order_and_seen_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(storage, "BLOCK", block)
    pieces = [memoryview(bytes(range(i))) for i in (0, 3, 8, 200)]
    digest = hashlib.sha256()
    storage.write_pieces(tmp_path / "file", pieces, digest.update)
    content = (tmp_path / "file").read_bytes()
    assert content == b"".join(pieces) and digest.digest() == hashlib.sha256(content).digest()


def test_what_fails_in_the_middle_leaves_the_file_before(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "file", b"before")

    def fail(_: memoryview) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        storage.write_pieces(tmp_path / "file", [memoryview(b"after")], fail)
    assert (tmp_path / "file").read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
