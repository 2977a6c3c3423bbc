"""Llip, CLIP and SigLIP: models, objectives, data, training and evaluation. Importable without Ray.

`llip.create_model("llip_b32_k64")` · `llip.recipe("clip_b16")` · `llip.load_model("output/model")` ·
`model, preprocess, tokenize = llip.load("output/runs/<name>")`
"""

from typing import TYPE_CHECKING

from llip.lazy import lazily

if TYPE_CHECKING:
    from llip.contrastive import create_model
    from llip.interop import load_model
    from llip.recipes import recipe
    from llip.training.weights import load

__all__ = ["create_model", "load", "load_model", "recipe"]

__getattr__ = lazily(
    __name__,
    {
        "create_model": "llip.contrastive",
        "load": "llip.training.weights",
        "load_model": "llip.interop",
        "recipe": "llip.recipes",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
