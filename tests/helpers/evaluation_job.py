"""A checkpoint and evaluation sets, as the evaluation job takes them."""

from pathlib import Path

import torch

from helpers.evaluation_samples import make_sets
from llip import create_model, recipe
from llip.contrastive import ContrastiveModel
from llip.evaluation.sets import evaluation_set
from llip.training import checkpoint
from llip.training.optimizer import build_optimizer


def write_sets(folder: str | Path) -> str:
    for data in make_sets():
        evaluation_set.write(f"{folder}/{data.name}", data)
    return str(folder)


def write_checkpoint(run: str | Path, step: int, seed: int = 0) -> ContrastiveModel:
    """A checkpoint as training leaves it."""
    torch.manual_seed(seed)
    config = recipe("llip_tiny_k8")
    model = create_model(config)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    checkpoint.save(str(run), step, checkpoint.TrainingState(model, optimizer), config)
    return model
