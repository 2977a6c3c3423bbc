"""Evaluation of a model: zero-shot classification, retrieval, context analysis, and what is measured around them."""

from typing import TYPE_CHECKING

from llip.lazy import lazily

if TYPE_CHECKING:
    from llip.evaluation.evaluate import evaluate_model
    from llip.evaluation.metrics import Metric, chance_levels

__all__ = ["Metric", "chance_levels", "evaluate_model"]

__getattr__ = lazily(
    __name__,
    {
        "Metric": "llip.evaluation.metrics",
        "chance_levels": "llip.evaluation.metrics",
        "evaluate_model": "llip.evaluation.evaluate",
    },
)
