"""Checkpoints of a run: folders of safetensors and JSON that are complete or not there, on a disk or in a bucket.

    checkpoints/latest.json                  names the newest complete one; written last
    checkpoints/step-00000800/model.safetensors, model.json     the model alone (`llip.load_model` reads it)
                              optimizer.safetensors             AdamW's moments and step counts, by parameter name
                              state.json                        step, configuration, size and SHA-256 of the others

Nothing else is needed to continue to the bit: the schedule, the order of samples and the randomness of a step are
functions of (seed, step).
"""

import hashlib
import logging
import re
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from llip import interop, storage
from llip.config import TrainingConfig, to_dict
from llip.model.build import ContrastiveModel
from llip.training.revision import git_revision

logger = logging.getLogger(__name__)

STATE = "state.json"
POINTER = "latest.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"


def save(
    run_folder: str, step: int, model: ContrastiveModel, optimizer: torch.optim.Optimizer, config: TrainingConfig
) -> str:
    """Write the checkpoint of `step` updates, move the pointer to it, then remove the oldest. Returns its URI."""
    name = f"step-{step:08d}"
    folder = storage.join(run_folder, "checkpoints", name)
    storage.remove(folder)  # what a killed save left
    interop.save_model(model, folder)
    storage.write_bytes(storage.join(folder, OPTIMIZER), safetensors.torch.save(_optimizer_tensors(model, optimizer)))
    files = {uri.rsplit("/", 1)[1]: _fingerprint(uri) for uri in storage.listing(folder)}
    state = {
        "step": step,
        "samples": step * config.data.batch_size,
        "config": to_dict(config),
        "git_revision": git_revision(),
        "torch": torch.__version__,
        "files": files,
    }
    storage.write_json(storage.join(folder, STATE), state)
    storage.write_json(storage.join(run_folder, "checkpoints", POINTER), {"step": step, "folder": name})
    for old in _folders(run_folder)[config.keep_checkpoints :]:
        storage.remove(old)
    return folder


def latest(run_folder: str) -> str | None:
    """URI of the newest checkpoint whose files are as they were written, or None. Warns of those passed over."""
    for folder in _folders(run_folder):
        if not (fault := _fault(folder)):
            return folder
        logger.warning("checkpoint %s is not usable (%s); trying the one before it", folder, fault)
    return None


def step_of(folder: str) -> int:
    """Number of updates behind a checkpoint folder."""
    return int(folder.rsplit("step-", 1)[1])


def restore(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load model and optimizer from a checkpoint that `latest` found. Returns the number of updates behind it."""
    model.load_state_dict(safetensors.torch.load(storage.read_bytes(storage.join(folder, MODEL))))
    tensors = safetensors.torch.load(storage.read_bytes(storage.join(folder, OPTIMIZER)))
    for name, parameter in model.named_parameters():
        moments = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {key: tensor.to(parameter.device) for key, tensor in moments.items()}
    return step_of(folder)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": tensor.contiguous()
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state[parameter].items()
    }


def _folders(run_folder: str) -> list[str]:
    """Checkpoint folders, newest first, complete or not."""
    found = storage.listing(storage.join(run_folder, "checkpoints"))
    return sorted({m[1] for uri in found if (m := re.match(r"(.*/step-\d{8})/", uri))}, reverse=True)


def _fault(folder: str) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if not storage.exists(storage.join(folder, STATE)):
        return f"{STATE} is missing: saving it was interrupted"
    try:
        files: dict[str, Any] = storage.read_json(storage.join(folder, STATE))["files"]
    except (ValueError, KeyError):
        return f"{STATE} cannot be read"
    for name, expected in files.items():
        uri = storage.join(folder, name)
        if not storage.exists(uri):
            return f"{name} is missing"
        if _fingerprint(uri) != expected:
            return f"{name} is not what was written"
    return None


def _fingerprint(uri: str) -> dict[str, Any]:
    fs, path = storage.filesystem(uri)
    digest, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}
