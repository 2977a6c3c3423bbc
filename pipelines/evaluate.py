"""Evaluate a checkpoint: zero-shot classification, retrieval, context analysis, hard negatives and associations, each
beside its chance level and with a 95 % interval.

    uv run pipelines/evaluate.py --checkpoint output/runs/<name> --evaluation output/evaluation

Leaves `report.html`, `report.md` and, last, `metrics.json`, which says what it was made from. Results of a set, with
the scores of its single items, are kept in `evaluated/` at once: an interrupted evaluation that is run again goes on
with the sets that are missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llip import storage
from llip.config import MIXTURE_HEADS
from llip.fields import differences
from llip.runs import run_folder
from llip.runs.run_folder import git_revision
from pipelines import command
from pipelines.checkpoints import WeightsOptions, chosen_device

if TYPE_CHECKING:  # torch is imported once the options are right, so that --help and a refusal come at once
    from llip.contrastive import ContrastiveModel
    from llip.evaluation import Metric
    from llip.evaluation.encode import Runner
    from llip.evaluation.evaluate import Outcome
    from llip.evaluation.sets import FoundSet
    from llip.evaluation.sets.evaluation_set import EvaluationSet
    from llip.training.weights import Weights
    from pipelines.evaluation_cache import EvaluationCache

SCHEMA_VERSION = 3
SCORED_WITH = ("candidates", "context_length")
"""Options that change the scores of a set; those not given are left out of what is noted."""
MOST = 20
"""Characters of a commit or a date on the page."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(WeightsOptions):
    """Settings of every command that evaluates a model on sets."""

    checkpoint: str
    """A run folder (its newest checkpoint is taken), a checkpoint, a folder of open_clip, or a file of weights."""
    evaluation: str = "output/evaluation"
    """Folder with evaluation sets at any depth: this project's, WebDataset of CLIP_benchmark, COCO, Flickr30k,
    SugarCrepe, ARO, Winoground, WinoGAViL, Parquet, or image folders such as ImageNet's (see llip/evaluation/sets)."""
    sets: tuple[str, ...] = ()
    """Names of the sets to use; all of them where none is named."""
    output: str | None = None
    """Folder for metrics.json and the report; the run or checkpoint folder where not given. A file needs one."""
    workers: int = 0
    """Ray actors that encode images; 0: this process alone."""
    batch_size: int = 64
    """Images encoded at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"--workers {self.workers}: 0 for this process alone, or the number of actors")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size} has to be at least 1")


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluationOptions):
    """Settings of an evaluation."""

    candidates: int | None = None
    """Retrieval in two stages, for galleries too large for all pairs: exact scores for so many candidates of every
    query only, which an index finds."""
    context_length: int | None = None
    """Tokens of a caption, above those that the model was trained with: positions are interpolated. For retrieval with
    long captions; captions of 20 tokens are scored as without it."""
    controls: bool = False
    """Negative controls as sets of their own: `<set>-shuffled`, images in the places of others, and `<set>-blind`, the
    choices without an image. Chance is what they should give."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates is not None:
            from llip.evaluation.metrics import RANKS

            if self.candidates < RANKS[-1]:
                raise ValueError(
                    f"--candidates {self.candidates} has to be at least {RANKS[-1]}, for recall at that rank"
                )


def evaluate(settings: Evaluate) -> dict[str, Metric]:
    """Evaluate, unless the output says that this was done. Returns the metrics, named `<set>/<metric>`.

    Raises ValueError, before any work, for a checkpoint or a set that cannot be used, and for an output of other
    settings.
    """
    from llip.evaluation import long_captions
    from llip.evaluation.evaluate import named
    from llip.evaluation.report import NAME
    from pipelines import evaluation_cache, evaluation_runs

    weights = settings.weights(settings.checkpoint)
    output = output_folder(settings, weights)
    sources = sources_of(settings)
    request: dict[str, Any] = {
        "checkpoint": weights.given,
        "evaluation": storage.absolute(settings.evaluation),
        "sets": settings.sets,
    }
    scored_with = {name: value for name in SCORED_WITH if (value := getattr(settings, name)) is not None}
    request |= {"weights": weights.told} if weights.told else {}
    request |= scored_with | ({"controls": True} if settings.controls else {})
    of_sets = {source.name: source.digest() for source in sources}
    inputs = {"model": weights.digest(), "sets": of_sets}
    if (finished := _finished(output, request, inputs)) is not None:
        print(f"{storage.join(output, NAME)} is complete: nothing to do")
        print(f"\n{_headlines(finished)}")
        return finished
    sets = [source.read() for source in sources]
    model = weights.load()
    if settings.context_length is not None:
        long_captions.stretch_context(model, settings.context_length)
    started = time.monotonic()
    controls = _controls(sets) if settings.controls else {}
    digests = of_sets | {control.name: of_sets[name] for name, of_set in controls.items() for control in of_set}
    made_with = [inputs["model"], weights.told, scored_with]
    keys = {name: [*made_with, digest] for name, digest in digests.items()}
    cache = evaluation_cache.EvaluationCache(output, keys)
    evaluated = [*sets, *(control for of_set in controls.values() for control in of_set)]
    outcomes = list(_evaluated(model, evaluated, cache, settings))
    metrics = named(outcomes)
    result = {
        "schema_version": SCHEMA_VERSION,
        "request": request,
        "inputs": inputs,
        "step": weights.step,
        "seconds": round(time.monotonic() - started, 2),
        "git_revision": git_revision(),
        "metrics": {name: metric.stored() for name, metric in metrics.items()},
        "calibration": {o.data.name: o.calibration.stored() for o in outcomes if o.calibration},
    }
    _write_report(output, weights, model, outcomes)
    scores = evaluation_cache.scores_file(outcomes)
    documents: dict[str, Any] = {NAME: result, evaluation_cache.SCORES: scores}
    evaluation_runs.track(weights, metrics, sources, sets, output, documents)
    storage.write_json(storage.join(output, NAME), result)
    print(_headlines(metrics))
    if settings.controls:
        print(f"\n{_verdict(metrics)}")
    print(f"\nall {len(metrics)} metrics, figures, examples: {storage.join(output, 'report.html')}")
    return metrics


def _evaluated(
    model: ContrastiveModel, sets: list[EvaluationSet], cache: EvaluationCache, settings: Evaluate
) -> Iterator[Outcome]:
    """The outcomes of all sets in their order; those that are not in the cache are made and stored."""
    from llip.evaluation.evaluate import evaluate_sets

    found = {data.name: cache.load(data) for data in sets}
    if missing := [data for data in sets if found[data.name] is None]:
        for outcome in evaluate_sets(model, missing, runner(model, settings), candidates=settings.candidates):
            cache.save(outcome)
            found[outcome.data.name] = outcome
    return filter(None, found.values())


def _controls(sets: list[EvaluationSet]) -> dict[str, list[EvaluationSet]]:
    """The negative controls of each set, by its name. Raises ValueError where a set has the name of a control."""
    from llip.evaluation import controls

    found = {data.name: controls.of(data) for data in sets}
    if taken := [control.name for of_set in found.values() for control in of_set if control.name in found]:
        raise ValueError(f"--controls: {taken[0]} is the name of a set and that of a control; rename the set")
    return found


def _verdict(metrics: dict[str, Metric]) -> str:
    """Sentence on the controls."""
    from llip.evaluation.controls import above_chance
    from llip.headline import headline

    found = above_chance({name: metrics[name] for name in headline(metrics)})
    if not found:
        return "controls: no headline lies above chance"
    return f"controls: above chance without what they ask for: {', '.join(found)}"


def _headlines(metrics: dict[str, Metric]) -> str:
    """A line a set, beside chance."""
    from llip.evaluation.report import table
    from llip.headline import headline

    lines = table({name: metrics[name] for name in headline(metrics)}).splitlines()
    return "\n".join(filter(None, lines))


def output_folder(settings: EvaluationOptions, weights: Weights) -> str:
    if settings.output is None and weights.is_file:
        raise ValueError(f"--output is needed: {settings.checkpoint} is a file, and its metrics have no folder")
    return storage.absolute(settings.output or settings.checkpoint).rstrip("/")


def sources_of(settings: EvaluationOptions) -> list[FoundSet]:
    """The chosen sets."""
    from llip.evaluation.sets import find_sets

    found = {source.name: source for source in find_sets(settings.evaluation)}
    if not found:
        raise ValueError(f"--evaluation {settings.evaluation} holds no evaluation set")
    if unknown := [name for name in settings.sets if name not in found]:
        raise ValueError(f"--sets {unknown[0]}: {settings.evaluation} holds {', '.join(found)}")
    return [found[name] for name in settings.sets or found]


def _finished(output: str, request: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Metric] | None:
    """The metrics that an earlier run left; None where there are none, or where its inputs have changed since."""
    from llip.evaluation.report import NAME, metrics_of

    uri = storage.join(output, NAME)
    if not storage.exists(uri):
        return None
    found = storage.read_json(uri)
    if changed := differences(found.get("request"), request):
        raise ValueError(
            f"{uri} was made with other settings ({'; '.join(changed)}); choose another --output or remove it"
        )
    if found["inputs"] != inputs or found["schema_version"] != SCHEMA_VERSION:
        print(f"{uri} is of another state of its checkpoint, its sets or the metrics: evaluating again")
        return None
    return metrics_of(found)


def runner(model: ContrastiveModel, settings: EvaluationOptions) -> Runner:
    """Moves the model to this process's device, and says who encodes images."""
    from llip.evaluation.encode import InProcess

    elsewhere = settings.device == "cuda" and settings.workers > 0  # the actors have the GPUs, this process may not
    model.to(chosen_device("auto" if elsewhere else settings.device))
    if settings.workers == 0:
        return InProcess(model=model, batch_size=settings.batch_size)
    import ray

    from pipelines.evaluation_actors import OnActors

    command.start_ray()
    gpu = settings.device == "cuda" or (settings.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    return OnActors(model=model, workers=settings.workers, batch_size=settings.batch_size, gpu=gpu)


def _write_report(output: str, weights: Weights, model: ContrastiveModel, outcomes: list[Outcome]) -> None:
    from llip.evaluation.report import Report
    from llip.runs.tracking import read_metrics

    config = model.config
    facts = {
        "checkpoint": weights.uri,
        "head": config.head.kind,
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M",
    }
    if config.head.kind in MIXTURE_HEADS:
        facts |= {"mixture tokens": str(config.mixture_tokens), "heads": str(config.head.heads)}
    facts |= {"step": f"{weights.step:,}"} if weights.step is not None else {}
    story = run_folder.story(weights.run)
    facts |= {name: story[name][:MOST] for name in ("commit", "date") if name in story}
    report = Report(
        title=f"Evaluation of {weights.given.rsplit('/', 1)[1]}",
        facts=facts,
        outcomes=outcomes,
        story=story,
        curve=read_metrics(weights.run) if weights.run else (),
    )
    storage.write_bytes(storage.join(output, "report.html"), report.html().encode())
    storage.write_bytes(storage.join(output, "report.md"), report.markdown().encode())


def cli() -> None:
    """The command line."""
    command.run(Evaluate, evaluate, "Evaluate a checkpoint on evaluation sets.")


if __name__ == "__main__":
    cli()
