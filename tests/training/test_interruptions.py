"""Runs that crash, are stopped, lose their disk or meet what is not finite: what is left, and how they go on."""

import errno
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.faults import numbers, survives
from helpers.short_runs import CrashError, crashing_after, newest, train_noted

import llip
from llip import storage
from llip.config import TrainingConfig
from llip.contrastive import ContrastiveModel
from llip.fields import override
from llip.pairs import accumulation
from llip.pairs.losses import LossOutput
from llip.runs import run_folder as runs
from llip.runs import stopping
from llip.runs.stopping import NonFiniteError, StoppedError
from llip.runs.tracking import read_metrics
from llip.training import checkpoint

Folder = Callable[[str], str]
Note = Callable[[str, object], None]


def test_resuming_after_a_crash_repeats_the_undisturbed_run_to_the_bit(
    small: TrainingConfig, shards: str, run_folder: Folder
) -> None:
    small = replace(
        small, model=replace(small.model, vision=replace(small.model.vision, patch_dropout=0.5))
    )  # a step's randomness must come back too
    whole = train_noted(small, shards, run_folder("whole"))
    for crash in (3, 2):  # after updates 3 and, resumed from checkpoint 2, 4
        with pytest.raises(CrashError):
            train_noted(small, shards, run_folder("broken"), progress=crashing_after(crash))
    resumed = train_noted(small, shards, run_folder("broken"))
    assert numbers(run_folder("broken")) == numbers(run_folder("whole"))
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_in_a_bucket_resumes_too(small: TrainingConfig, shards: str, run_folder: Folder, s3_bucket: str) -> None:
    config, folder = replace(small, checkpoint_every=1, steps=4), f"{s3_bucket}/runs/a"
    with pytest.raises(CrashError):
        train_noted(config, shards, folder, progress=crashing_after(3))
    train_noted(config, shards, folder)
    train_noted(config, shards, run_folder("whole"))
    assert numbers(folder) == numbers(run_folder("whole"))
    runs.claim(folder, config, shards)
    runs.claim(folder, config, shards)
    names = [uri.removeprefix(f"{folder}/checkpoints/") for uri in storage.listing(f"{folder}/checkpoints")]
    files = ("model.json", "model.safetensors", "optimizer.safetensors", "state.json")
    assert names == ["latest.json", *(f"step-0000000{n}/{f}" for n in (3, 4) for f in files)]


def test_a_run_on_mixed_sets_resumes_and_belongs_to_them(
    small: TrainingConfig, shards: str, run_folder: Folder
) -> None:
    both, config = (shards, shards), replace(small, data=replace(small.data, weights=(2, 1)))
    train_noted(config, both, run_folder("whole"))
    runs.claim(run_folder("broken"), config, both)
    with pytest.raises(CrashError):
        train_noted(config, both, run_folder("broken"), progress=crashing_after(3))
    runs.claim(run_folder("broken"), config, both)
    train_noted(config, both, run_folder("broken"))
    assert numbers(run_folder("broken")) == numbers(run_folder("whole"))
    with pytest.raises(ValueError, match="which holds other samples"):
        runs.claim(run_folder("broken"), config, (shards,))


def test_a_run_that_died_goes_on_in_smaller_parts(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    train_noted(small, shards, run_folder("whole"))
    with pytest.raises(CrashError):
        train_noted(small, shards, run_folder("parts"), progress=crashing_after(3))
    runs.claim(run_folder("parts"), small, shards)
    smaller = override(small, {"objective.accumulation": 2})
    runs.check(run_folder("parts"), smaller, shards)
    train_noted(smaller, shards, run_folder("parts"))
    whole, parts = ([line["loss"] for line in read_metrics(run_folder(name))] for name in ("whole", "parts"))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_run_that_is_asked_to_stop_saves_first(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    config = replace(small, ema_decay=0.9)  # the average comes back too
    whole = train_noted(config, shards, run_folder("whole"))
    answers = iter([False, False, True])
    with pytest.raises(StoppedError, match="stopped after step 3 of 6"):
        train_noted(config, shards, run_folder("stopped"), stop=lambda: next(answers))
    assert newest(run_folder("stopped")).endswith("step-00000003")
    evaluated: list[ContrastiveModel] = []
    resumed = train_noted(config, shards, run_folder("stopped"), evaluate=lambda _, model: evaluated.append(model))
    assert numbers(run_folder("stopped")) == numbers(run_folder("whole"))
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    exported = llip.load_model(newest(run_folder("stopped")))
    for a, b, weight in zip(exported.parameters(), evaluated[-1].parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, weight)


def test_the_request_to_stop_is_a_file_that_sigterm_writes(run_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_LOOKS", 0.1)
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

    train_noted(small, shards, run_folder("whole"))
    monkeypatch.setattr(storage, "write_pieces", full)
    with caplog.at_level(logging.WARNING, "llip"):
        train_noted(small, shards, run_folder("full"))
    assert not left and "No space left on device" in caplog.text
    fault, ended = f"full disk at {file}", "a warning; went on to the end"
    survives(record_property, fault, ended, run=run_folder("full"), undisturbed=run_folder("whole"))
    assert newest(run_folder("full")).endswith("step-00000006")


def test_the_last_checkpoint_has_to_be_written(
    small: TrainingConfig, shards: str, run_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: str, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(OSError, match=r"step 6 was not written \(rank 0: .*No space left on device"):
        train_noted(small, shards, run_folder("a"))


@pytest.fixture(params=["loss", "gradient"])
def poison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the fourth update makes of a batch that is not finite; afterwards the model and its weights before."""
    backward = accumulation.backward
    seen: dict[str, Any] = {"kind": request.param, "calls": 0}

    def poisoned(model: ContrastiveModel, *args: Any, **options: Any) -> LossOutput:
        output = backward(model, *args, **options)
        seen["calls"] += 1
        if seen["calls"] == 4:
            seen["model"], seen["weights"] = model, [p.detach().clone() for p in model.parameters()]
            if request.param == "loss":
                return output._replace(loss=output.loss * float("nan"))
            gradient = model.vision.position.grad
            assert gradient is not None
            gradient[0, 0] = float("inf")
        return output

    monkeypatch.setattr(accumulation, "backward", poisoned)
    return seen


DIAGNOSES = {
    "loss": r"update 3 was not made: loss nan",
    "gradient": r"update 3 was not made: loss \d.*, gradient norm inf; .* not finite: 1, first vision.position",
}


def test_what_is_not_finite_stops_before_the_update(
    poison: dict[str, Any], small: TrainingConfig, shards: str, run_folder: Folder, record_property: Note
) -> None:
    with pytest.raises(NonFiniteError, match=DIAGNOSES[poison["kind"]]):
        train_noted(small, shards, run_folder("a"))
    assert all(torch.equal(a, b) for a, b in zip(poison["weights"], poison["model"].parameters(), strict=True))
    assert newest(run_folder("a")).endswith("step-00000002")
    for name in ("a", "whole"):  # there is poison in the fourth update of this process only
        train_noted(small, shards, run_folder(name))
    fault, ended = f"{poison['kind']} not finite", "NonFiniteError before the update; run again, went on to the end"
    survives(record_property, fault, ended, run=run_folder("a"), undisturbed=run_folder("whole"))


def test_what_is_not_finite_is_left_out_where_the_policy_says_so(
    poison: dict[str, Any],
    small: TrainingConfig,
    shards: str,
    run_folder: Folder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = replace(small, nonfinite="skip", steps=4)
    with caplog.at_level(logging.WARNING, "llip"):
        model = train_noted(config, shards, run_folder("a"))
    assert re.search(DIAGNOSES[poison["kind"]], caplog.text)
    assert all(torch.equal(a, b) for a, b in zip(poison["weights"], model.parameters(), strict=True))
    assert [line["skipped"] for line in read_metrics(run_folder("a"))] == [0, 0, 0, 1]
