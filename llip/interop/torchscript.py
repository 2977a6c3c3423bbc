"""The tensors of a TorchScript archive, which is how OpenAI publishes CLIP, read without running anything of it.

An archive pickles a module as an object of a generated class that has its attributes. Such objects, tensors and ordered
dictionaries are all that is made here; any other global is refused before it is looked up.
"""

import pickle
import zipfile
from collections import OrderedDict
from typing import IO, Any

import torch
from torch import Tensor

STORAGES = {
    "BoolStorage": torch.bool,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}


def is_archive(file: IO[bytes]) -> bool:
    """Whether an open zip file, which torch.save writes as well, is a TorchScript archive."""
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_tensors(file: IO[bytes]) -> dict[str, Tensor]:
    """Parameters, buffers and other tensor attributes of the archived module, by dotted name.

    Raises pickle.UnpicklingError where the archive holds anything but modules and tensors.
    """
    with zipfile.ZipFile(file) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        module = _Reader(archive, root).load()
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors)
    return tensors


class _Module:
    """Stands for every archived class."""

    attributes: dict[str, Any]

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes


def _collect(module: _Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", tensors)
        elif isinstance(value, Tensor):
            tensors[f"{prefix}{name}"] = value


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        allowed = {("torch._utils", "_rebuild_tensor_v2"): _tensor, ("collections", "OrderedDict"): OrderedDict}
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return allowed[module, name]

    def persistent_load(self, key: Any) -> Tensor:
        _, dtype, name, *_ = key
        return torch.frombuffer(bytearray(self.archive.read(f"{self.root}data/{name}")), dtype=dtype)
