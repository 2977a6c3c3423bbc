"""Evaluation of a model: zero-shot classification, retrieval, context analysis, and what is measured around them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llip.evaluation.evaluate import evaluate_model
    from llip.evaluation.metrics import Metric, chance_levels

__all__ = ["Metric", "chance_levels", "evaluate_model"]

_HOME = {
    "Metric": "llip.evaluation.metrics",
    "chance_levels": "llip.evaluation.metrics",
    "evaluate_model": "llip.evaluation.evaluate",
}


def __getattr__(name: str) -> Any:
    """Import on first use: curation reads evaluation sets and never needs torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
