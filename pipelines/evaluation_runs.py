"""Evaluations in MLflow: part of the run whose folder they are written to, else runs of their own that name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llip import storage
from llip.evaluation.metrics import logged
from llip.runs import lineage, run_folder
from llip.runs.notebook import context_tags, description
from llip.runs.tracking import Tracker, Tracking, tracking_of
from pipelines.data_runs import store_beside
from pipelines.launching import data_of

if TYPE_CHECKING:
    from llip.evaluation import Metric
    from llip.evaluation.sets import FoundSet
    from llip.evaluation.sets.evaluation_set import EvaluationSet
    from llip.training.weights import Weights

PAGES = ("report.html", "report.md")


def track(
    weights: Weights,
    metrics: Mapping[str, Metric],
    sources: Sequence[FoundSet],
    sets: Sequence[EvaluationSet],
    output: str,
    documents: Mapping[str, dict[str, Any] | str | bytes],
) -> None:
    """Log an evaluation that was written to the folder `output`, with its pages and `documents` by file name; nothing
    where there is no store to log it to."""
    of_run = tracking_of(weights.run) if weights.run else None
    if weights.run is not None and f"{output}/".startswith(f"{weights.run}/"):
        tracking, folder = of_run, weights.run
    else:
        tracking, folder = _own_run(weights, of_run, output), output
    if tracking is None:
        return
    with Tracker(tracking, folder) as tracker:
        tracker.tags({lineage.NOTE: _note(weights, metrics, tracking, is_own=folder != weights.run)})
        tracker.inputs(data_of(sources, sets))
        if weights.step is not None and folder == weights.run:
            tracker.checkpoint(weights.step, weights.uri)
        tracker.log(weights.step or 0, logged(metrics))
        pages = {name: storage.read_bytes(storage.join(output, name)).decode() for name in PAGES}
        for name, content in {**pages, **documents}.items():
            tracker.artifact(name, content)


def _note(weights: Weights, metrics: Mapping[str, Metric], tracking: Tracking, *, is_own: bool) -> str:
    makers = lineage.makers(tracking.made_from, tracking.uri)
    if is_own:
        lines = [f"- of `{weights.uri}`", *(f"- trained by {maker}" for maker in makers)]
        return description(metrics=metrics, step=weights.step) + "\n" + "\n".join(lines) + "\n"
    story = run_folder.story(weights.run)
    return description(
        recipe=story.get("recipe", ""),
        differing=story.get("differing", ()),
        command=story.get("command", ""),
        metrics=metrics,
        step=weights.step,
        sources=makers,
    )


def _own_run(weights: Weights, of_run: Tracking | None, output: str) -> Tracking | None:
    """In the store of the run that is evaluated or, without one, in that beside the output."""
    store = (of_run.uri, of_run.artifact_location) if of_run else store_beside(output)
    if store is None:
        return None
    name = output.rstrip("/").rpartition("/")[2]
    return Tracking(
        uri=store[0],
        run_name=name if "evaluation" in name else f"evaluation {name}",
        artifact_location=store[1],
        made_from=(weights.run,) if weights.run else (),
        tags=context_tags() | {"stage": "evaluation", "checkpoint": weights.uri},
    )
