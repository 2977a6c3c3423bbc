"""This project's own format: a folder with `model.safetensors`, whole or sharded, and `model.json`, its settings."""

import os

from llip import storage
from llip.config import ModelConfig
from llip.contrastive import ContrastiveModel
from llip.fields import from_dict, to_dict
from llip.interop import sharded_safetensors
from llip.interop.tensor_files import read_json
from llip.interop.towers import assemble

WEIGHTS, CONFIG = "model.safetensors", "model.json"


def save_model(model: ContrastiveModel, folder: str | os.PathLike[str]) -> None:
    """Write `model.safetensors` and `model.json`, its configuration, into a folder, local or remote."""
    folder = os.fspath(folder)
    storage.write_pieces(storage.join(folder, WEIGHTS), sharded_safetensors.serialise(model.state_dict()))
    storage.write_json(storage.join(folder, CONFIG), to_dict(model.config))


def load_model(folder: str | os.PathLike[str]) -> ContrastiveModel:
    """The model that `save_model` or a training run wrote, on the CPU.

    Raises ValueError where the folder does not hold one, naming the file at fault.
    """
    folder = os.fspath(folder)
    config_file = storage.join(folder, CONFIG)
    if not storage.exists(config_file):
        raise ValueError(f"{config_file} does not exist: {folder} does not hold a model")
    try:
        config = from_dict(ModelConfig, read_json(config_file))
    except ValueError as error:
        raise ValueError(f"{config_file} is no model's configuration: {error}") from error
    return assemble(config, sharded_safetensors.read(folder, "model"), {}, folder)
