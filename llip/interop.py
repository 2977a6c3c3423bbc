"""Models in and out of files. Nothing here ever unpickles: safetensors, JSON and tensors only."""

import safetensors.torch
import torch

from llip import storage
from llip.config import ModelConfig, from_dict, to_dict
from llip.model.build import ContrastiveModel

WEIGHTS = "model.safetensors"
CONFIG = "model.json"


def save_model(model: ContrastiveModel, folder: str) -> None:
    """Write `model.safetensors` and `model.json` (its configuration) into a folder, local or remote."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    storage.write_bytes(storage.join(folder, WEIGHTS), safetensors.torch.save(tensors))
    storage.write_json(storage.join(folder, CONFIG), to_dict(model.config))


def load_model(folder: str) -> ContrastiveModel:
    """The model that `save_model` wrote, on the CPU. Raises ValueError where the folder holds none."""
    for name in (WEIGHTS, CONFIG):
        if not storage.exists(storage.join(folder, name)):
            raise ValueError(f"{folder} has no {name}: it does not hold a model")
    config = from_dict(ModelConfig, storage.read_json(storage.join(folder, CONFIG)))
    return _assemble(config, safetensors.torch.load(storage.read_bytes(storage.join(folder, WEIGHTS))))


def _assemble(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> ContrastiveModel:
    """A model of these tensors, without drawing weights first."""
    with torch.device("meta"):
        model = ContrastiveModel(config)
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(True)
