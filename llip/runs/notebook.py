"""A run's page in MLflow: names of its metrics, tags, data sets, and a description in Markdown."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from llip import storage
from llip.config import MIXTURE_HEADS, TrainingConfig
from llip.data import manifest
from llip.headline import headline
from llip.runs import run_folder

HEADLINE, TRAIN, EVALUATION = "Headline/", "train/", "eval/"
"""Sections of MLflow's charts, which it orders by code point: the one of few charts comes first, for its capital."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment without which MLflow opens it at its traces."""
DIGEST_CHARACTERS = 32
"""MLflow takes at most 36."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set as MLflow knows it."""

    name: str
    digest: str
    """The same for the same content, wherever it lies."""
    uri: str
    rows: int
    context: str
    """training, evaluation, input or output."""

    @property
    def short_digest(self) -> str:
        return self.digest[:DIGEST_CHARACTERS]

    def entity(self) -> Any:
        """MLflow's DatasetInput."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=self.name,
            digest=self.short_digest,
            source_type="local" if storage.is_local(self.uri) else "s3",
            source=json.dumps({"uri": self.uri}),
            profile=json.dumps({"num_rows": self.rows}),
        )
        return DatasetInput(dataset, [InputTag("mlflow.data.context", self.context)])


def shards_data(shards: str | Sequence[str], context: str = "training") -> list[Data]:
    """One data set for each folder of shards."""
    folders = (shards,) if isinstance(shards, str) else shards
    return [
        Data(
            name=folder.rstrip("/").rpartition("/")[2],
            digest=run_folder.fingerprint(folder),
            uri=folder,
            rows=manifest.read(folder, "shards").rows,
            context=context,
        )
        for folder in folders
    ]


def published(name: str) -> str:
    """The name in MLflow of a logged quantity: `train/loss`, `eval/<set>/top1`."""
    if name.startswith(("system/", TRAIN, EVALUATION, HEADLINE)):
        return name
    return (EVALUATION if "/" in name else TRAIN) + name


def with_headlines(values: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a step by their names in MLflow, and once more in its first section the loss and the headlines."""
    first = {HEADLINE + name.replace("/", " "): values[name] for name in headline(n for n in values if "/" in n)}
    first |= {f"{HEADLINE}Loss": values["loss"]} if "loss" in values else {}
    return {published(name): value for name, value in values.items()} | first


def context_tags() -> dict[str, str]:
    """User, source and commit by MLflow's own resolution, of the process whose command this is."""
    from mlflow.tracking.context.registry import resolve_tags

    revision = run_folder.git_revision()
    commit, _, changed = revision.partition("+")
    found = {name: str(value) for name, value in resolve_tags().items()}
    found.setdefault("mlflow.source.git.commit", commit)
    return found | {"mlflow.source.git.dirty": str(bool(changed)).lower()}


def family(config: TrainingConfig) -> str:
    """llip, clip or siglip; the kind of the head for what is none of them."""
    kind = config.model.head.kind
    if kind == "text_query":
        return "llip"
    if kind == "class_token":
        return "clip" if config.objective.loss == "softmax" else "siglip"
    return kind


def tags(config: TrainingConfig, *, recipe: str, shards: str | Sequence[str], world_size: int) -> dict[str, str]:
    """Tags by which runs are searched and sorted."""
    import torch

    folders = (shards,) if isinstance(shards, str) else shards
    found = {
        "recipe": recipe,
        "objective": config.objective.loss,
        "family": family(config),
        "dataset": ", ".join(folder.rstrip("/").rpartition("/")[2] for folder in folders),
        "host": socket.gethostname(),
        "gpus": f"{world_size} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "none",
        "processes": str(world_size),
    }
    if config.model.head.kind in MIXTURE_HEADS:
        found |= {"K": str(config.model.mixture_tokens), "heads": str(config.model.head.heads)}
    return {name: value for name, value in found.items() if value}


def description(
    *,
    metrics: Mapping[str, Any],
    recipe: str = "",
    differing: Sequence[str] = (),
    command: str = "",
    step: int | None = None,
    sources: Sequence[Any] = (),
) -> str:
    """Markdown: the headline metrics beside chance, what differs from the recipe, the command that repeats it.

    `sources` are links to the runs that made the shards, `metrics` are `llip.evaluation.Metric`s by name.
    """
    lines = []
    if names := headline(metrics):
        lines += [f"After step {step:,}:" if step is not None else "", ""]
        lines += ["| evaluation set | metric | value | chance | 95 % interval |", "| --- | --- | ---: | ---: | ---: |"]
        for name in names:
            data, _, metric = name.partition("/")
            found = metrics[name]
            lines.append(f"| {data} | {metric} | **{found.value:.3f}** | {found.chance:.3f} | {found.interval} |")
        lines += [""]
    if recipe:
        lines += [f"Recipe `{recipe}`" + (", with" if differing else ", as it is."), ""]
        lines += [*(f"- `{line}`" for line in differing), ""] if differing else []
    lines += [f"- trained on what {source} made" for source in sources] + [""] * bool(sources)
    if command:
        lines += ["To repeat it:", "", "```", command, "```", ""]
    return "\n".join(lines).strip() + "\n" if lines else ""


def experiment_page(server: str, experiment: str, *parts: str) -> str:
    """Address of a page of an experiment, given by id: `runs`, one of them and its tab, or `models`."""
    return f"{server.rstrip('/')}/#/experiments/{'/'.join([experiment, *parts])}?workflowType=machine_learning"


def comparison_page(server: str, experiments: Sequence[str], runs: Sequence[str]) -> str:
    """Address of the page that compares runs, by ids."""
    listed = {"runs": json.dumps(list(runs)), "experiments": json.dumps(list(dict.fromkeys(experiments)))}
    return f"{server.rstrip('/')}/#/compare-runs?" + "&".join(f"{k}={quote(v)}" for k, v in listed.items())


def wants_system_metrics() -> bool:
    """MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING, and where it says nothing, whether there is a GPU."""
    import torch
    from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING as ASKED

    return bool(ASKED.get()) if ASKED.name in os.environ else torch.cuda.is_available()
