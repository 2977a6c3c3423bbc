"""The loop: what is learned, logged, saved and evaluated, and when it stops."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llip import storage
from llip.config import TrainingConfig
from llip.model.build import ContrastiveModel
from llip.training import checkpoint, loop, record
from llip.training import run_folder as runs
from llip.training.loop import NonFiniteError, every, train
from llip.training.metrics import MEASURES
from llip.training.parallel import current_world
from llip.training.tracking import Tracker

Folder = Callable[[str], str]


def _train(config: TrainingConfig, shards: str, folder: str, **options: object) -> ContrastiveModel:
    with Tracker(None, folder) as tracker:
        return train(config, shards=shards, folder=folder, world=current_world(), tracker=tracker, **options)


def _numbers(folder: str) -> list[tuple[float, ...]]:
    """What must not depend on interruptions."""
    names = ("step", "loss", "gradient_norm", "logit_scale", "logit_bias", "learning_rate", "samples")
    return [tuple(line[name] for name in names) for line in record.read(folder)]


class CrashError(Exception):
    pass


def _crashing_after(step: int) -> Callable[..., object]:
    """A bar that raises in the middle of training, after `step` updates."""

    class Bar:
        def __init__(self, **settings: object) -> None:
            self.left = step

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, n: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise CrashError

    return Bar


def test_every() -> None:
    assert [step for step in range(10) if every(step, 3)] == [3, 6, 9]
    assert not any(every(step, None) for step in range(10))


def test_training_learns_and_logs_the_registry(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    config = replace(small, steps=40)
    _train(config, shards, run_folder("a"))
    lines = record.read(run_folder("a"))
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert lines[-1].keys() == MEASURES.keys() | {"step"}
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["samples"] == config.samples


def test_resuming_after_a_crash_repeats_the_undisturbed_run_to_the_bit(
    small: TrainingConfig, shards: str, run_folder: Folder
) -> None:
    small = replace(
        small, model=replace(small.model, vision=replace(small.model.vision, patch_dropout=0.5))
    )  # a step's randomness must come back too
    whole = _train(small, shards, run_folder("whole"))
    for crash in (3, 2):  # after updates 3 and, resumed from checkpoint 2, 4
        with pytest.raises(CrashError):
            _train(small, shards, run_folder("broken"), progress=_crashing_after(crash))
    resumed = _train(small, shards, run_folder("broken"))
    assert _numbers(run_folder("broken")) == _numbers(run_folder("whole"))
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_in_a_bucket_resumes_too(small: TrainingConfig, shards: str, run_folder: Folder, s3_bucket: str) -> None:
    config, folder = replace(small, checkpoint_every=1, steps=4), f"{s3_bucket}/runs/a"
    with pytest.raises(CrashError):
        _train(config, shards, folder, progress=_crashing_after(3))
    _train(config, shards, folder)
    _train(config, shards, run_folder("whole"))
    assert _numbers(folder) == _numbers(run_folder("whole"))
    runs.claim(folder, config, shards)
    runs.claim(folder, config, shards)
    names = [uri.removeprefix(f"{folder}/checkpoints/") for uri in storage.listing(f"{folder}/checkpoints")]
    files = ("model.json", "model.safetensors", "optimizer.safetensors", "state.json")
    assert names == ["latest.json", *(f"step-0000000{n}/{f}" for n in (3, 4) for f in files)]


def test_the_end_is_saved_and_evaluated_and_once_more_when_nothing_is_left(
    small: TrainingConfig, shards: str, run_folder: Folder
) -> None:
    config, calls = replace(small, steps=5, evaluate_every=2), []
    for _ in range(2):
        _train(config, shards, run_folder("a"), evaluate=lambda step, model: calls.append(step))
    assert calls == [2, 4, 5, 5]
    assert checkpoint.latest(run_folder("a")).endswith("step-00000005")
    assert [line["step"] for line in record.read(run_folder("a"))] == [1, 2, 3, 4, 5]


def test_accumulation_learns_the_same(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    _train(small, shards, run_folder("one"))
    _train(replace(small, objective=replace(small.objective, accumulation=4)), shards, run_folder("four"))
    one, four = ([line["loss"] for line in record.read(run_folder(name))] for name in ("one", "four"))
    assert four == pytest.approx(one, rel=1e-5)


def test_scale_stays_below_its_maximum(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    config = replace(small, optimizer=replace(small.optimizer, max_logit_scale=14.3))
    _train(config, shards, run_folder("a"))
    scales = [line["logit_scale"] for line in record.read(run_folder("a"))]
    assert max(scales) == pytest.approx(14.3, rel=1e-6) or max(scales) < 14.3


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_update(
    poison: str, small: TrainingConfig, shards: str, run_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward, seen = loop.accumulation.backward, {}

    def poisoned(model: ContrastiveModel, *args: object, **options: object) -> object:
        output = backward(model, *args, **options)
        seen["calls"] = seen.get("calls", 0) + 1
        if seen["calls"] == 4:
            seen["model"], seen["weights"] = model, [p.detach().clone() for p in model.parameters()]
            if poison == "loss":
                return output._replace(loss=output.loss * float("nan"))
            model.vision.position.grad[0, 0] = float("inf")
        return output

    monkeypatch.setattr(loop.accumulation, "backward", poisoned)
    message = {
        "loss": r"update 3 was not made: loss nan",
        "gradient": r"update 3 was not made: loss \d.*, gradient norm inf; .* not finite: 1, first vision.position",
    }
    with pytest.raises(NonFiniteError, match=message[poison]):
        _train(small, shards, run_folder("a"))
    assert all(torch.equal(a, b) for a, b in zip(seen["weights"], seen["model"].parameters(), strict=True))
    assert checkpoint.latest(run_folder("a")).endswith("step-00000002")


def test_a_folder_holds_one_run(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    folder = run_folder("a")
    runs.claim(folder, small, shards)
    runs.claim(folder, replace(small, log_every=5, checkpoint_every=3), shards)
    other = replace(small, steps=12, optimizer=replace(small.optimizer, learning_rate=1.0))
    with pytest.raises(
        ValueError, match=r"another configuration \(optimizer.learning_rate: 0.01 → 1.0; steps: 6 → 12\)"
    ):
        runs.claim(folder, other, shards)


def test_a_folder_belongs_to_its_samples(
    small: TrainingConfig, shards: str, run_folder: Folder, tmp_path: Path
) -> None:
    folder = run_folder("a")
    runs.claim(folder, small, shards)
    values = json.loads((Path(shards) / "manifest.json").read_text())
    moved, changed = tmp_path / "moved", tmp_path / "changed"
    for place in (moved, changed):
        place.mkdir()
    (moved / "manifest.json").write_text(json.dumps(values))
    runs.claim(folder, small, str(moved))
    values["files"][0]["sha256"] = "0" * 64
    (changed / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"shards: .* → .*changed, which holds other samples"):
        runs.claim(folder, small, str(changed))
