"""Configuration of a model and of a training run: frozen, keyword-only dataclasses, checked on construction.

A field is written here and nowhere else: its dotted path is its name on every command line, in files, errors, MLflow
and sweeps (`llip.fields`).
"""

from llip.config.model import (
    MIXTURE_HEADS,
    NORM_EPSILON,
    QUERIED_HEADS,
    Activation,
    Head,
    HeadConfig,
    ModelConfig,
    PreprocessConfig,
    TextConfig,
    VisionConfig,
)
from llip.config.training import MOST_LANES, DataConfig, LossName, ObjectiveConfig, OptimizerConfig, TrainingConfig

__all__ = [
    "MIXTURE_HEADS",
    "MOST_LANES",
    "NORM_EPSILON",
    "QUERIED_HEADS",
    "Activation",
    "DataConfig",
    "Head",
    "HeadConfig",
    "LossName",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PreprocessConfig",
    "TextConfig",
    "TrainingConfig",
    "VisionConfig",
]
