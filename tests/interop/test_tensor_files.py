"""Files of weights by their content: what holds tensors is read, and what does not is named in plain words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llip import create_model, interop
from llip.interop.tensor_files import read_tensors

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(2.0)}

Save = Callable[[Any, Path], None]


def legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize(
    ("name", "save", "nested"),
    [
        ("a.safetensors", safetensors.torch.save_file, False),
        ("a.pt", torch.save, True),
        ("a.bin", torch.save, False),
        ("a.pth", legacy, True),
        ("legacy.bin", legacy, False),
    ],
)
def test_tensors_are_read_without_prefixes(tmp_path: Path, name: str, save: Save, nested: bool, prefix: str) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in STATE.items()}
    save({"epoch": 2, "state_dict": state} if nested else state, tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        read = read_tensors(path)
        assert read.keys() == STATE.keys()
        assert all(torch.equal(read[key], tensor) for key, tensor in STATE.items())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pt", b"<!DOCTYPE html><html>", "holds a web page, not weights"),
        ("a.safetensors", b"\n <html lang=en>", "holds a web page, not weights"),
        ("a.bin", b"<?xml version='1.0'?><Error>", "holds a web page, not weights"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "holds a pointer of Git LFS"),
        ("a.pt", b'{"error": "not found"}', "holds JSON, not weights"),
        ("a.pt", b"", "holds nothing, not weights"),
        ("a.pt", b"text", "is not a file that torch.save has written"),
        ("a.safetensors", b"text", "is not a safetensors file"),
        ("a.npz", b"text", "has to end with .safetensors, .pt, .pth, .bin"),
    ],
)
def test_other_content_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.* {says}"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("name", "save"), [("a.safetensors", safetensors.torch.save_file), ("a.pt", torch.save), ("old.pt", legacy)]
)
def test_a_truncated_file_is_named(tmp_path: Path, name: str, save: Save, share: float) -> None:
    path = tmp_path / name
    save({"a": torch.randn(100, 100)}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=rf"{name} cannot be read.* it may be cut short: copy it again"):
        read_tensors(path)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.pt").mkdir()
    with pytest.raises(ValueError, match=r"x\.pt is a folder; name a file"):
        read_tensors(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"y\.pt does not exist"):
        read_tensors(tmp_path / "y.pt")


@pytest.mark.parametrize("read", [interop.load_open_clip, interop.load_llip_release])
def test_files_of_this_project_are_known_as_such(tmp_path: Path, read: Callable[[Path], object]) -> None:
    interop.save_model(create_model("llip_tiny_k8"), tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors is in this project's own format: llip\.load_model reads"):
        read(tmp_path / "model.safetensors")
    safetensors.torch.save_file({"exp_avg/logit_scale": torch.zeros(())}, tmp_path / "optimizer.safetensors")
    with pytest.raises(ValueError, match=r"optimizer\.safetensors holds the state of an optimizer"):
        read(tmp_path / "optimizer.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.json", b"{", r"model\.json cannot be read as JSON"),
        ("model.json", b"[]", r"model\.json holds a list"),
        ("model.json", b"{}", r"model\.json .*embed_dim"),
        ("model.json", b'{"colour": 1}', r"model\.json .*there is no setting colour"),
        ("model.safetensors", b"\x08", r"model\.safetensors cannot be read as safetensors"),
        ("model.safetensors", b"<html>", r"model\.safetensors cannot be read as safetensors"),
    ],
)
def test_a_damaged_model_folder_names_the_file(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    interop.save_model(create_model("clip_tiny"), tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        interop.load_model(tmp_path)
