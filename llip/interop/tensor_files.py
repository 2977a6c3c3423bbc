"""Named tensors in files of others: safetensors, what `torch.save` writes or once wrote, and TorchScript archives.

The format is recognised by the first bytes. No code is ever run: anything but tensors and plain containers is refused.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import partial
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from llip import storage
from llip.interop import torchscript

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""Endings of the names of files of weights."""

PICKLE = b"\x80"
"""Begins what `torch.save` wrote before it wrote zip archives."""

WEB_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")
LFS_POINTER = b"version https://git-lfs"


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Named tensors of a file, local or remote, without the prefixes that wrappers put before the names.

    Raises ValueError, naming the file and what would be right, for anything else.
    """
    path = os.fspath(path)
    if not path.endswith(SUFFIXES):
        raise ValueError(f"{path} is not a checkpoint by its name: it has to end with {', '.join(SUFFIXES)}")
    if not storage.exists(path):
        raise ValueError(f"{path} does not exist")
    files, inner_path = storage.filesystem(path)
    if files.isdir(inner_path):
        raise ValueError(f"{path} is a folder; name a file of weights")
    with files.open(inner_path, "rb") as file:
        content = _read(path, file)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold named tensors, neither by itself nor under 'state_dict'")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(name)): value for name, value in state.items()}


def read_json(uri: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError, naming the file, for one that cannot be read."""
    try:
        content = storage.read_json(uri)
    except ValueError as error:
        raise ValueError(f"{uri} cannot be read as JSON ({error}); it may be cut short") from error
    if not isinstance(content, dict):
        raise ValueError(f"{uri} holds a {type(content).__name__}, not a JSON object")
    return content


def parse_safetensors(content: bytes, path: str) -> dict[str, Tensor]:
    """Raises ValueError, naming the file, where the content is damaged."""
    return _parsed(safetensors.torch.load, content, path)


def _read(path: str, file: IO[bytes]) -> Any:
    start = file.read(512)
    file.seek(0)
    if found := _other_content(start):
        raise ValueError(f"{path} holds {found}, not weights: download the file itself")
    if start[8:9] == b"{":  # behind the length of the header
        if storage.is_local(path):
            return _parsed(safetensors.torch.load_file, storage.absolute(path), path)  # mapped: no second copy
        return parse_safetensors(file.read(), path)
    is_zip = start.startswith(b"PK")
    if not is_zip and not start.startswith(PICKLE):
        format = "a safetensors file" if path.endswith(".safetensors") else "a file that torch.save has written"
        raise ValueError(f"{path} is not {format}")
    try:
        archive = is_zip and torchscript.is_archive(file)
        file.seek(0)
        read = torchscript.read_tensors if archive else partial(torch.load, map_location="cpu", weights_only=True)
        return read(file)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # unpickling what is damaged fails in any way
        raise ValueError(_refusal(path, error)) from error


def _parsed(load: Callable[[Any], dict[str, Tensor]], source: bytes | str, path: str) -> dict[str, Tensor]:
    try:
        return load(source)
    except SafetensorError as error:
        advice = "it may be cut short: copy it again"
        raise ValueError(f"{path} cannot be read as safetensors ({error}); {advice}") from error


def _other_content(start: bytes) -> str | None:
    """Content that is often saved in place of weights, recognised by the first bytes; None for any other."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "nothing"
    if text.startswith(WEB_PAGES):
        return "a web page"
    if text.startswith(LFS_POINTER):
        return "a pointer of Git LFS"
    if text.startswith((b"{", b"[")):
        return "JSON"
    return None


def _refusal(path: str, error: Exception) -> str:
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"{path} holds a {found[1]} beside its tensors, and reading that could run code; save the tensors alone"
    damaged = isinstance(error, (EOFError, zipfile.BadZipFile)) or not isinstance(error, pickle.UnpicklingError)
    advice = "; it may be cut short: copy it again" if damaged else ""
    return f"{path} cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}{advice}"
