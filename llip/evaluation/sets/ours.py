"""Sets that `llip.evaluation.sets.evaluation_set` wrote."""

from collections.abc import Iterator, Sequence

from llip import storage
from llip.evaluation.sets import evaluation_set
from llip.evaluation.sets.evaluation_set import DESCRIPTION, EvaluationSet


def roots(uri: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    for path in files:
        if path.rpartition("/")[2] == DESCRIPTION:
            yield path.removesuffix(DESCRIPTION).rstrip("/"), evaluation_set.describe(storage.join(uri, path))["name"]


def read(uri: str, name: str, files: Sequence[str]) -> EvaluationSet:
    return evaluation_set.read(uri)
