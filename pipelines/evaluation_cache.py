"""Results of an evaluation, stored set by set: one that is interrupted goes on with the sets that are missing, and runs
are compared by the scores of single items without their models."""

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llip import storage
from llip.evaluation.evaluate import Outcome
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.metrics import Metric
from llip.evaluation.retrieval import Captions, Retrieval
from llip.evaluation.sets.evaluation_set import EvaluationSet

logger = logging.getLogger(__name__)

FOLDER = "evaluated"
SCORES = "item_scores.npz"
"""The scores of single items of all sets in one file: an artifact of an evaluation in MLflow, and what training leaves
of its last one in the run's folder."""
SCHEMA_VERSION = 5
OF_RETRIEVAL = ("best_images_TX", "average_precision_T", "logit_count_2H")
DETAIL, ITEMS = "detail", "items"
"""Prefixes of arrays: what a report shows, and `items/<metric>/…`, the scores of single items."""


@dataclass(frozen=True)
class EvaluationCache:
    """Outcomes in a folder, one file a set."""

    folder: str
    keys: Mapping[str, Any]
    """By set, what its outcome depends on: the weights and the set's files."""

    def load(self, data: EvaluationSet) -> Outcome | None:
        """The outcome of a set, where one of these weights and files is stored."""
        if (found := _read(uri_of(self.folder, data.name))) is None:
            return None
        head, arrays = found
        if head["key"] != self._key(data.name):
            if (version := head["key"][0]) != SCHEMA_VERSION:
                logger.warning(
                    "the stored scores of %s are of version %s, this program's of version %s: evaluating it again",
                    *(data.name, version, SCHEMA_VERSION),
                )
            return None
        metrics = {name: Metric(**metric) for name, metric in head["metrics"].items()}
        scores = {name: _items(name, head, arrays) for name in metrics}
        details = {name.split("/", 1)[1]: array for name, array in arrays.items() if name.startswith(f"{DETAIL}/")}
        if data.task == "retrieval":
            return Outcome(data, metrics, scores, Retrieval(scores, Captions.of(data), **details))
        return Outcome(data, metrics, scores, details)

    def save(self, outcome: Outcome) -> None:
        """Store an outcome in place of an earlier one of the same set."""
        details = outcome.details
        if isinstance(details, Retrieval):  # its captions are the set's
            kept = {name: getattr(details, name) for name in OF_RETRIEVAL}
            details = {name: array for name, array in kept.items() if array is not None}
        arrays = {f"{DETAIL}/{name}": array for name, array in details.items()}
        arrays |= _arrays(outcome)
        head = {"key": self._key(outcome.data.name), **_head(outcome)}
        with storage.atomic_writer(uri_of(self.folder, outcome.data.name)) as file:
            np.savez(file, head=np.array(json.dumps(head)), **arrays)  # type: ignore[arg-type]

    def _key(self, name: str) -> Any:
        return [SCHEMA_VERSION, self.keys[name]]


def uri_of(folder: str, name: str) -> str:
    """The file of a set."""
    return storage.join(folder, FOLDER, f"{name}.npz")


def read_items(folder: str, name: str) -> dict[str, ItemScores]:
    """Scores of single items that the evaluation of a run stored for a set, by metric; empty where it stored none."""
    if (found := _read(uri_of(folder, name))) is None:
        return {}
    head, arrays = found
    return {metric: _items(metric, head, arrays) for metric in head.get("units", {})}


def scores_file(outcomes: Sequence[Outcome]) -> bytes:
    """The scores of single items of several sets in one file; arrays that are alike are in it once."""
    heads, arrays, places = {}, dict[str, NDArray[Any]](), dict[str, str]()
    for outcome in outcomes:
        heads[outcome.data.name] = _head(outcome)
        for name, array in _arrays(outcome).items():
            key = hashlib.sha256(array.tobytes() + str(array.dtype).encode()).hexdigest()[:16]
            arrays[key], places[f"{outcome.data.name}/{name}"] = array, key
    with io.BytesIO() as buffer:
        head = np.array(json.dumps({"sets": heads, "places": places}))
        np.savez_compressed(buffer, head=head, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()


def scores_of(content: bytes) -> dict[str, dict[str, ItemScores]]:
    """Content of a `scores_file`: by set and metric."""
    head, arrays = _opened(content)
    found = {}
    for data, of_set in head["sets"].items():
        own = {n.removeprefix(f"{data}/"): arrays[key] for n, key in head["places"].items() if n.startswith(f"{data}/")}
        found[data] = {metric: _items(metric, of_set, own) for metric in of_set["units"]}
    return found


def metrics_of(content: bytes) -> dict[str, Metric]:
    """The metrics in a `scores_file`, named `set/metric`."""
    head, _ = _opened(content)
    of_sets = {data: of_set["metrics"] for data, of_set in head["sets"].items()}
    return {f"{data}/{name}": Metric(**metric) for data, found in of_sets.items() for name, metric in found.items()}


def _head(outcome: Outcome) -> dict[str, Any]:
    return {
        "metrics": {name: metric.stored() for name, metric in outcome.metrics.items()},
        "units": {name: list(scores.units) for name, scores in outcome.item_scores.items()},
        "worst": [name for name, scores in outcome.item_scores.items() if scores.worst],
    }


def _arrays(outcome: Outcome) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for name, scores in outcome.item_scores.items():
        arrays[f"{ITEMS}/{name}/score"] = scores.score_I
        arrays |= {f"{ITEMS}/{name}/{sort}": unit_I.astype(np.int32) for sort, unit_I in scores.units.items()}
        if scores.stratum_I is not None:
            arrays[f"{ITEMS}/{name}/stratum"] = scores.stratum_I.astype(np.int32)
        if scores.predicted_I is not None:
            arrays[f"{ITEMS}/{name}/predicted"] = scores.predicted_I.astype(np.int32)
    return arrays


def _read(uri: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
    if not storage.exists(uri):
        return None
    return _opened(storage.read_bytes(uri))


def _opened(content: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    return json.loads(arrays.pop("head").item()), arrays


def _items(metric: str, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ItemScores:
    prefix = f"{ITEMS}/{metric}"
    stratum_I, predicted_I = (arrays.get(f"{prefix}/{name}") for name in ("stratum", "predicted"))
    return ItemScores(
        score_I=arrays[f"{prefix}/score"],
        chance=head["metrics"][metric]["chance"],
        units={sort: arrays[f"{prefix}/{sort}"].astype(np.int64) for sort in head["units"][metric]},
        stratum_I=None if stratum_I is None else stratum_I.astype(np.int64),
        worst=metric in head["worst"],
        predicted_I=None if predicted_I is None else predicted_I.astype(np.int64),
    )
