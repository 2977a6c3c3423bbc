"""Llip, CLIP and SigLIP: models, objectives, data, training and evaluation. Importable without Ray.

`llip.create_model("llip_b32_k64")` · `llip.recipe("clip_b16")` · `llip.load_model("output/model")` ·
`model, preprocess, tokenize = llip.load("output/runs/<name>")`
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llip.contrastive import create_model
    from llip.interop import load_model
    from llip.recipes import recipe
    from llip.training.weights import load

__all__ = ["create_model", "load", "load_model", "recipe"]

_HOME = {
    "create_model": "llip.contrastive",
    "load": "llip.training.weights",
    "load_model": "llip.interop",
    "recipe": "llip.recipes",
}


def __getattr__(name: str) -> Any:
    """Import on first use: stages of the data pipeline import this package and never need torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
