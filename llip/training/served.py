"""A checkpoint as MLflow's `python_function`: images and captions in, features and scores out.

MLflow imports this module to load the flavour that `logged_models` writes. The weights are read where the run wrote
them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llip import storage
from llip.runs.logged_models import IMAGE, NOTE, SCORE, TAG, TEXT
from llip.training.weights import Loaded, load

if TYPE_CHECKING:
    import pandas as pd


def _load_pyfunc(data_path: str) -> "Served":
    """Entry point that MLflow calls to load the flavour."""
    return Served(load(storage.read_json(str(Path(data_path) / NOTE))[TAG]))


class Served:
    """A model that takes rows of images and captions, either or both."""

    def __init__(self, loaded: Loaded) -> None:
        self._model, self._preprocess, self._tokenize = loaded

    @torch.inference_mode()
    def predict(self, rows: "pd.DataFrame", params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """For rows with `image` (an encoded image), `text` or both: `image_features`, `text_features`, `score`.

        The score of a row is the cosine of its image, as its caption sees it, and its caption. Features are the
        tensors of `llip.model.features`, one after the other. Raises ValueError for rows with neither.
        """
        import pandas as pd

        found: dict[str, Any] = {}
        images = texts = None
        if IMAGE in rows and rows[IMAGE].notna().all():
            images = self._model.encode_image(torch.stack([self._preprocess(data) for data in rows[IMAGE]]))
            found["image_features"] = _flat(images)
        if TEXT in rows and rows[TEXT].notna().all():
            texts = self._model.encode_text(self._tokenize(list(rows[TEXT])))
            found["text_features"] = _flat(texts)
        if images is not None and texts is not None:
            found[SCORE] = self._model.pair_scores(images, texts).diagonal().tolist()
        if not found:
            raise ValueError(f"rows need a column {IMAGE!r} of encoded images, {TEXT!r} of captions, or both")
        return pd.DataFrame(found)


def _flat(features: Any) -> list[list[float]]:
    return torch.cat([tensor.flatten(1) for tensor in features], dim=1).tolist()
