"""Evaluation of a model: zero-shot classification, retrieval, context analysis, and what is measured around them."""

from llip.evaluation.evaluate import evaluate_model
from llip.evaluation.metrics import Metric, chance_levels

__all__ = ["Metric", "chance_levels", "evaluate_model"]
