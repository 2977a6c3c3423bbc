"""The loop: what is learned, logged, saved and evaluated, and when it stops."""

import contextlib
import errno
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.faults import numbers, survives
from helpers.noted_pretrain import noted

import llip
from llip import interop, storage
from llip.config import HeadConfig, TrainingConfig
from llip.contrastive import ContrastiveModel, create_model
from llip.fields import override
from llip.training import checkpoint, loop, stopping
from llip.training import run_folder as runs
from llip.training.loop import every, train
from llip.training.metrics import MEASURES
from llip.training.parallel import current_world
from llip.training.stopping import NonFiniteError, StoppedError
from llip.training.tracking import Tracker, read_metrics

Folder = Callable[[str], str]
Note = Callable[[str, object], None]


def _train(config: TrainingConfig, shards: str | tuple[str, ...], folder: str, **options: object) -> ContrastiveModel:
    with noted(folder), Tracker(None, folder) as tracker:
        return train(config, shards=shards, folder=folder, world=current_world(), tracker=tracker, **options)


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

        def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...

        def update(self, n: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise CrashError

    return Bar


def test_clipped_gradients_have_the_norm_that_is_given(
    small: TrainingConfig, shards: str, run_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against PyTorch's own clipping; a norm that no gradient reaches changes nothing."""

    def trained(name: str, maximum: float | None) -> list[torch.Tensor]:
        config = replace(small, steps=3, optimizer=replace(small.optimizer, max_gradient_norm=maximum))
        return [p.detach() for p in _train(config, shards, run_folder(name)).parameters()]

    plain, loose, tight = (trained(name, norm) for name, norm in (("plain", None), ("loose", 1e9), ("tight", 0.1)))
    assert all(torch.equal(a, b) for a, b in zip(plain, loose, strict=True))

    def by_torch(model: torch.nn.Module, norm: float, maximum: float) -> None:
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), maximum).item() == pytest.approx(norm)

    monkeypatch.setattr(loop, "clip_gradient", by_torch)
    for own, expected in zip(tight, trained("torch", 0.1), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
    assert not all(torch.equal(a, b) for a, b in zip(plain, tight, strict=True))


def test_every() -> None:
    assert [step for step in range(10) if every(step, 3)] == [3, 6, 9]
    assert not any(every(step, None) for step in range(10))


def test_training_learns_and_logs_the_registry(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    config = replace(small, steps=40, peak_flops=1e12)
    _train(config, shards, run_folder("a"), profile=True)
    lines = read_metrics(run_folder("a"))
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert lines[-1].keys() == MEASURES.keys() | {"step"}
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["samples"] == config.samples


def test_a_jump_of_the_learning_rate_is_logged_as_a_spike(
    small: TrainingConfig,
    shards: str,
    run_folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rate = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda step, *rest: (100 if step == 50 else 1) * rate(step, *rest))
    with caplog.at_level(logging.WARNING, "llip"):
        _train(replace(small, steps=60), shards, run_folder("a"))
    assert next(line["step"] for line in read_metrics(run_folder("a")) if line["loss_spikes"]) == 52
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("step 52: loss spike: ")]
    assert not [r for r in caplog.records if "spike" in r.getMessage() and not r.getMessage().startswith("step 5")]


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
    assert numbers(run_folder("broken")) == numbers(run_folder("whole"))
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_in_a_bucket_resumes_too(small: TrainingConfig, shards: str, run_folder: Folder, s3_bucket: str) -> None:
    config, folder = replace(small, checkpoint_every=1, steps=4), f"{s3_bucket}/runs/a"
    with pytest.raises(CrashError):
        _train(config, shards, folder, progress=_crashing_after(3))
    _train(config, shards, folder)
    _train(config, shards, run_folder("whole"))
    assert numbers(folder) == numbers(run_folder("whole"))
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
    assert [line["step"] for line in read_metrics(run_folder("a"))] == [1, 2, 3, 4, 5]


def test_steps_go_on_while_a_checkpoint_is_written(
    small: TrainingConfig, shards: str, run_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, third = [], threading.Event()
    write = checkpoint.write

    def write_once_a_third_step_is_made(*args: object) -> object:
        assert third.wait(60), "training waits for the checkpoint"
        return write(*args)

    def progress(**settings: object) -> object:
        def update(images: int) -> None:
            steps.append(images)
            if len(steps) == 3:
                third.set()

        return contextlib.nullcontext(SimpleNamespace(update=update, set_postfix_str=lambda *_, **__: None))

    monkeypatch.setattr(checkpoint, "write", write_once_a_third_step_is_made)
    _train(replace(small, checkpoint_every=2), shards, run_folder("a"), progress=progress)
    kept = sorted(path.name for path in (Path(run_folder("a")) / "checkpoints").glob("step-*"))
    assert kept == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "latest.json", "metrics.jsonl"])
def test_a_full_disk_costs_one_checkpoint(
    file: str,
    small: TrainingConfig,
    shards: str,
    run_folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    record_property: Note,
) -> None:
    write, left = storage.write_pieces, [1]

    def full(uri: str, *content: Any) -> None:
        if uri.endswith(file) and ("step-00000002" in uri or "step" not in uri) and left:
            left.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        write(uri, *content)

    _train(small, shards, run_folder("whole"))
    monkeypatch.setattr(storage, "write_pieces", full)
    with caplog.at_level(logging.WARNING, "llip"):
        _train(small, shards, run_folder("full"))
    assert not left and "No space left on device" in caplog.text
    fault, ended = f"full disk at {file}", "a warning; went on to the end"
    survives(record_property, fault, ended, run=run_folder("full"), undisturbed=run_folder("whole"))
    assert checkpoint.latest(run_folder("full")).endswith("step-00000006")


def test_checkpoints_are_also_due_by_time(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    for minutes, steps in ((1e-9, [1, 2, 3, 4, 5, 6]), (60.0, [5, 6]), (None, [5, 6])):
        folder = run_folder(str(minutes))
        _train(replace(small, checkpoint_every=5, checkpoint_minutes=minutes, keep_checkpoints=9), shards, folder)
        assert [checkpoint.step_of(str(path)) for path in sorted(Path(folder).glob("checkpoints/step-*"))] == steps


def test_the_last_checkpoint_has_to_be_written(
    small: TrainingConfig, shards: str, run_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: str, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(OSError, match=r"step 6 was not written \(rank 0: .*No space left on device"):
        _train(small, shards, run_folder("a"))


def test_a_run_that_is_asked_to_stop_saves_first(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    config = replace(small, ema_decay=0.9)  # the average comes back too
    whole = _train(config, shards, run_folder("whole"))
    answers = iter([False, False, True])
    with pytest.raises(StoppedError, match="stopped after step 3 of 6"):
        _train(config, shards, run_folder("stopped"), stop=lambda: next(answers))
    assert checkpoint.latest(run_folder("stopped")).endswith("step-00000003")
    evaluated = []
    resumed = _train(config, shards, run_folder("stopped"), evaluate=lambda _, model: evaluated.append(model))
    assert numbers(run_folder("stopped")) == numbers(run_folder("whole"))
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    exported = llip.load_model(checkpoint.latest(run_folder("stopped")))
    for a, b, weight in zip(exported.parameters(), evaluated[-1].parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, weight)


def test_the_request_to_stop_is_a_file_that_sigterm_writes(run_folder: Folder) -> None:
    folder = run_folder("a")
    with stopping.watched(folder) as stop, stopping.on_sigterm(folder):
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while not stop():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    stopping.clear_stop(folder)
    with stopping.watched(folder) as stop:
        time.sleep(1.5 * stopping.SECONDS_BETWEEN_LOOKS)
        assert not stop()


def test_a_run_starts_from_the_weights_of_clip_once(
    small: TrainingConfig, shards: str, run_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip_config = replace(
        small.model,
        vision=replace(small.model.vision, tokens=1),
        head=HeadConfig(kind="class_token"),
        init_logit_bias=None,
    )
    clip = create_model(clip_config)
    interop.export_open_clip(clip, str(tmp_path / "clip"))
    weights = tmp_path / "clip" / "open_clip_model.safetensors"
    config = replace(
        small,
        init_from=str(weights),
        steps=2,
        optimizer=replace(small.optimizer, learning_rate=1e-9, warmup_steps=1),
    )
    model = _train(config, shards, run_folder("run"))
    torch.testing.assert_close(model.vision.patch_embedding.weight, clip.vision.patch_embedding.weight)
    torch.testing.assert_close(model.text.token_embedding.weight, clip.text.token_embedding.weight)
    assert "made of its weights: vision.tokens" in caplog.text
    assert "new: logit_bias, head.image.key_proj, head.text.query_proj" in caplog.text
    weights.unlink()
    _train(config, shards, run_folder("run"))  # goes on from its own checkpoint


def test_accumulation_learns_the_same(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    _train(small, shards, run_folder("one"))
    _train(replace(small, objective=replace(small.objective, accumulation=4)), shards, run_folder("four"))
    one, four = ([line["loss"] for line in read_metrics(run_folder(name))] for name in ("one", "four"))
    assert four == pytest.approx(one, rel=1e-5)


def test_a_run_that_died_goes_on_in_smaller_parts(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    _train(small, shards, run_folder("whole"))
    with pytest.raises(CrashError):
        _train(small, shards, run_folder("parts"), progress=_crashing_after(3))
    runs.claim(run_folder("parts"), small, shards)
    smaller = override(small, {"objective.accumulation": 2})
    runs.check(run_folder("parts"), smaller, shards)
    _train(smaller, shards, run_folder("parts"))
    whole, parts = ([line["loss"] for line in read_metrics(run_folder(name))] for name in ("whole", "parts"))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_scale_stays_below_its_maximum(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    config = replace(small, optimizer=replace(small.optimizer, max_logit_scale=14.3))
    _train(config, shards, run_folder("a"))
    scales = [line["logit_scale"] for line in read_metrics(run_folder("a"))]
    assert max(scales) == pytest.approx(14.3, rel=1e-6) or max(scales) < 14.3


@pytest.fixture(params=["loss", "gradient"])
def poison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the fourth update makes of a batch that is not finite; afterwards the model and its weights before."""
    backward, seen = loop.accumulation.backward, {"kind": request.param, "calls": 0}

    def poisoned(model: ContrastiveModel, *args: object, **options: object) -> object:
        output = backward(model, *args, **options)
        seen["calls"] += 1
        if seen["calls"] == 4:
            seen["model"], seen["weights"] = model, [p.detach().clone() for p in model.parameters()]
            if request.param == "loss":
                return output._replace(loss=output.loss * float("nan"))
            model.vision.position.grad[0, 0] = float("inf")
        return output

    monkeypatch.setattr(loop.accumulation, "backward", poisoned)
    return seen


DIAGNOSES = {
    "loss": r"update 3 was not made: loss nan",
    "gradient": r"update 3 was not made: loss \d.*, gradient norm inf; .* not finite: 1, first vision.position",
}


def test_what_is_not_finite_stops_before_the_update(
    poison: dict[str, object], small: TrainingConfig, shards: str, run_folder: Folder, record_property: Note
) -> None:
    with pytest.raises(NonFiniteError, match=DIAGNOSES[poison["kind"]]):
        _train(small, shards, run_folder("a"))
    assert all(torch.equal(a, b) for a, b in zip(poison["weights"], poison["model"].parameters(), strict=True))
    assert checkpoint.latest(run_folder("a")).endswith("step-00000002")
    for name in ("a", "whole"):  # there is poison in the fourth update of this process only
        _train(small, shards, run_folder(name))
    fault, ended = f"{poison['kind']} not finite", "NonFiniteError before the update; run again, went on to the end"
    survives(record_property, fault, ended, run=run_folder("a"), undisturbed=run_folder("whole"))


def test_what_is_not_finite_is_left_out_where_the_policy_says_so(
    poison: dict[str, object],
    small: TrainingConfig,
    shards: str,
    run_folder: Folder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = replace(small, nonfinite="skip", steps=4)
    with caplog.at_level(logging.WARNING, "llip"):
        model = _train(config, shards, run_folder("a"))
    assert re.search(DIAGNOSES[poison["kind"]], caplog.text)
    assert all(torch.equal(a, b) for a, b in zip(poison["weights"], model.parameters(), strict=True))
    assert [line["skipped"] for line in read_metrics(run_folder("a"))] == [0, 0, 0, 1]


def test_a_run_on_mixed_sets_resumes_and_belongs_to_them(
    small: TrainingConfig, shards: str, run_folder: Folder
) -> None:
    both, config = (shards, shards), replace(small, data=replace(small.data, weights=(2, 1)))
    _train(config, both, run_folder("whole"))
    runs.claim(run_folder("broken"), config, both)
    with pytest.raises(CrashError):
        _train(config, both, run_folder("broken"), progress=_crashing_after(3))
    runs.claim(run_folder("broken"), config, both)
    _train(config, both, run_folder("broken"))
    assert numbers(run_folder("broken")) == numbers(run_folder("whole"))
    with pytest.raises(ValueError, match="which holds other samples"):
        runs.claim(run_folder("broken"), config, (shards,))


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
