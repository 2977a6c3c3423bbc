"""Results of an evaluation, stored set by set: one that is interrupted goes on with the sets that are missing."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llip import storage
from llip.evaluation.evaluate import Outcome
from llip.evaluation.metrics import Metric
from llip.evaluation.retrieval import Captions, Retrieval
from llip.evaluation.sets.evaluation_set import EvaluationSet

FOLDER = "evaluated"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EvaluationCache:
    """Outcomes in a folder, one file a set."""

    folder: str
    keys: Mapping[str, Any]
    """By set, what its outcome depends on: the weights and the set's files."""

    def load(self, data: EvaluationSet) -> Outcome | None:
        """The outcome of a set, where one of these weights and files is stored."""
        if not storage.exists(uri := self._uri(data.name)):
            return None
        with np.load(io.BytesIO(storage.read_bytes(uri))) as file:
            arrays = dict(file)
        head = json.loads(arrays.pop("head").item())
        if head["key"] != self._key(data.name):
            return None
        metrics = {name: Metric(**metric) for name, metric in head["metrics"].items()}
        details = Retrieval(metrics, Captions.of(data), **arrays) if data.task == "retrieval" else arrays
        return Outcome(data, metrics, details)

    def save(self, outcome: Outcome) -> None:
        """Store an outcome in place of an earlier one of the same set."""
        metrics = {name: vars(metric) for name, metric in outcome.metrics.items()}
        arrays = outcome.details
        if isinstance(arrays, Retrieval):  # its captions are the set's
            arrays = {name: getattr(arrays, name) for name in ("best_images_TX", "average_precision_T")}
        head = np.array(json.dumps({"key": self._key(outcome.data.name), "metrics": metrics}))
        with storage.atomic_writer(self._uri(outcome.data.name)) as file:
            np.savez(file, head=head, **arrays)  # type: ignore[arg-type]

    def _uri(self, name: str) -> str:
        return storage.join(self.folder, FOLDER, f"{name}.npz")

    def _key(self, name: str) -> Any:
        return [SCHEMA_VERSION, self.keys[name]]
