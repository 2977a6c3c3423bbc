"""Checkpoints of a run as MLflow's LoggedModels: pending while they are written, ready once complete, deleted after."""

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llip import storage

FAMILY = "llip"
"""MLflow's type of the models."""
TAG = "checkpoint"
"""Tag of a model: the URI of its weights."""
NOTE, LOADER = "checkpoint.json", "llip.training.served"
REFUSED = re.compile(r"""[/:.%"']""")
"""Characters that a model's name must not have; a run's name may, such as those of a learning rate."""
IMAGE, TEXT, SCORE = "image", "text", "score"
EXAMPLE = {TEXT: ["a red apple", "two blue stars"]}


@dataclass
class _Known:
    id: str
    uri: str
    """The file that makes the checkpoint complete."""
    ready: bool
    served: bool = False


class LoggedModels:
    """The models of one run, by step. Its server may be asked anew at any time: what is there already is found."""

    def __init__(self, client: Any, run_id: str, parameters: Callable[[], Mapping[str, str]]) -> None:
        self._client, self._run_id, self._parameters = client, run_id, parameters
        info = client.get_run(run_id).info
        self._experiment, self._name = info.experiment_id, REFUSED.sub("_", info.run_name)
        found = client.search_logged_models([self._experiment], filter_string=f"source_run_id = '{run_id}'")
        self._known = {
            int(model.tags["step"]): _Known(
                model.model_id, model.tags["state"], model.status.name == "READY", "served" in model.tags
            )
            for model in found
            if "step" in model.tags
        }

    def add(self, step: int, state: str) -> None:
        """A checkpoint that is being written; `state` is its last file."""
        from mlflow.entities import LoggedModelOutput

        if step in self._known:
            return
        model = self._client.create_logged_model(
            self._experiment,
            name=f"{self._name}-step{step}",
            source_run_id=self._run_id,
            tags={TAG: state.rpartition("/")[0], "state": state, "step": str(step)},
            params={"step": str(step), **self._parameters()},
            model_type=FAMILY,
        )
        self._client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step)])
        self._known[step] = _Known(model.model_id, state, False)

    def of_step(self, step: int) -> str | None:
        """Id of the model of a step; None where nothing was saved."""
        return self._known[step].id if step in self._known else None

    def refresh(self) -> None:
        """Make ready what is complete by now; where something is, delete what is gone."""
        finished = [k for k in self._known.values() if not k.ready and storage.exists(k.uri)]
        for known in finished:
            self._client.finalize_logged_model(known.id, "READY")
            known.ready = True
        if finished:
            self._delete([s for s, k in self._known.items() if k.ready and not storage.exists(k.uri)])

    def finish(self) -> None:
        """At the end of the run: delete what was never complete; the last one gets its `python_function` flavour."""
        self.refresh()
        self._delete([s for s, k in self._known.items() if not k.ready])
        if not self._known:
            return
        last = self._known[max(self._known)]
        if last.served:
            return
        with tempfile.TemporaryDirectory() as folder:
            write_flavour(Path(folder), last.uri.rpartition("/")[0], model_id=last.id, run_id=self._run_id)
            self._client.log_model_artifacts(last.id, f"{folder}/model")
        self._client.set_logged_model_tags(last.id, {"served": "python_function"})

    def _delete(self, steps: list[int]) -> None:
        for step in steps:
            self._client.delete_logged_model(self._known.pop(step).id)


def write_flavour(folder: Path, checkpoint: str, *, model_id: str, run_id: str) -> None:
    """Files by which `mlflow models serve` and `mlflow.pyfunc.load_model` serve a checkpoint."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    data = folder / "data"
    data.mkdir(parents=True)
    (data / NOTE).write_bytes(storage.to_json({TAG: checkpoint}))
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.binary, IMAGE, required=False),
        ColSpec(DataType.string, TEXT, required=False),
    ]
    features = [ColSpec(Array(DataType.double), f"{side}_features", required=False) for side in (IMAGE, TEXT)]
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.double, SCORE, required=False), *features]
    mlflow.pyfunc.save_model(
        folder / "model",
        loader_module=LOADER,
        data_path=str(data),
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        signature=ModelSignature(Schema(inputs), Schema(outputs)),
        input_example=pd.DataFrame(EXAMPLE),
        pip_requirements=[f"llip=={version('llip')}", f"torch=={version('torch').partition('+')[0]}"],
    )
