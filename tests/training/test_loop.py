"""The loop: what is learned, logged, saved and evaluated, and when it stops."""

import contextlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.short_runs import newest, train_noted

from llip import interop
from llip.config import HeadConfig, TrainingConfig
from llip.contrastive import create_model
from llip.runs import run_folder as runs
from llip.runs.tracking import read_metrics
from llip.training import checkpoint, loop
from llip.training.loop import every
from llip.training.metrics import MEASURES
from llip.training.optimizer import learning_rate

Folder = Callable[[str], str]
Note = Callable[[str, object], None]


def test_clipped_gradients_have_the_norm_that_is_given(
    small: TrainingConfig, shards: str, run_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against PyTorch's own clipping; a norm that no gradient reaches changes nothing."""

    def trained(name: str, maximum: float | None) -> list[torch.Tensor]:
        config = replace(small, steps=3, optimizer=replace(small.optimizer, max_gradient_norm=maximum))
        return [p.detach() for p in train_noted(config, shards, run_folder(name)).parameters()]

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
    train_noted(config, shards, run_folder("a"), profile=True)
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
    def jumping(step: int, *rest: Any) -> float:
        return (100 if step == 50 else 1) * learning_rate(step, *rest)

    monkeypatch.setattr(loop, "learning_rate", jumping)
    with caplog.at_level(logging.WARNING, "llip"):
        train_noted(replace(small, steps=60), shards, run_folder("a"))
    assert next(line["step"] for line in read_metrics(run_folder("a")) if line["loss_spikes"]) == 52
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("step 52: loss spike: ")]
    assert not [r for r in caplog.records if "spike" in r.getMessage() and not r.getMessage().startswith("step 5")]


def test_the_end_is_saved_and_evaluated_and_once_more_when_nothing_is_left(
    small: TrainingConfig, shards: str, run_folder: Folder
) -> None:
    config, calls = replace(small, steps=5, evaluate_every=2), []
    for _ in range(2):
        train_noted(config, shards, run_folder("a"), evaluate=lambda step, model: calls.append(step))
    assert calls == [2, 4, 5, 5]
    assert newest(run_folder("a")).endswith("step-00000005")
    assert [line["step"] for line in read_metrics(run_folder("a"))] == [1, 2, 3, 4, 5]


def test_steps_go_on_while_a_checkpoint_is_written(
    small: TrainingConfig, shards: str, run_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, third = [], threading.Event()
    write = checkpoint.write

    def write_once_a_third_step_is_made(*args: Any) -> Any:
        assert third.wait(60), "training waits for the checkpoint"
        return write(*args)

    def progress(**settings: object) -> object:
        def update(images: int) -> None:
            steps.append(images)
            if len(steps) == 3:
                third.set()

        return contextlib.nullcontext(SimpleNamespace(update=update, set_postfix_str=lambda *_, **__: None))

    monkeypatch.setattr(checkpoint, "write", write_once_a_third_step_is_made)
    train_noted(replace(small, checkpoint_every=2), shards, run_folder("a"), progress=progress)
    kept = sorted(path.name for path in (Path(run_folder("a")) / "checkpoints").glob("step-*"))
    assert kept == ["step-00000004", "step-00000006"]


def test_checkpoints_are_also_due_by_time(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    for minutes, steps in ((1e-9, [1, 2, 3, 4, 5, 6]), (60.0, [5, 6]), (None, [5, 6])):
        folder = run_folder(str(minutes))
        train_noted(replace(small, checkpoint_every=5, checkpoint_minutes=minutes, keep_checkpoints=9), shards, folder)
        assert [checkpoint.step_of(str(path)) for path in sorted(Path(folder).glob("checkpoints/step-*"))] == steps


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
    model = train_noted(config, shards, run_folder("run"))
    torch.testing.assert_close(model.vision.patch_embedding.weight, clip.vision.patch_embedding.weight)
    torch.testing.assert_close(model.text.token_embedding.weight, clip.text.token_embedding.weight)
    assert "made of its weights: vision.tokens" in caplog.text
    assert "new: logit_bias, head.image.key_proj, head.text.query_proj" in caplog.text
    weights.unlink()
    train_noted(config, shards, run_folder("run"))  # goes on from its own checkpoint


def test_accumulation_learns_the_same(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    train_noted(small, shards, run_folder("one"))
    train_noted(replace(small, objective=replace(small.objective, accumulation=4)), shards, run_folder("four"))
    one, four = ([line["loss"] for line in read_metrics(run_folder(name))] for name in ("one", "four"))
    assert four == pytest.approx(one, rel=1e-5)


def test_scale_stays_below_its_maximum(small: TrainingConfig, shards: str, run_folder: Folder) -> None:
    config = replace(small, optimizer=replace(small.optimizer, max_logit_scale=14.3))
    train_noted(config, shards, run_folder("a"))
    scales = [line["logit_scale"] for line in read_metrics(run_folder("a"))]
    assert max(scales) == pytest.approx(14.3, rel=1e-6) or max(scales) < 14.3


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
