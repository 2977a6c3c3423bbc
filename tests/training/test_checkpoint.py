"""Checkpoints: complete or not there."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llip
from llip import storage
from llip.config import TrainingConfig
from llip.training import checkpoint
from llip.training.checkpoint import TrainingState
from llip.training.optimizer import MovingAverage, build_optimizer
from llip.training.parallel import single_process


def _trained(config: TrainingConfig, updates: int) -> TrainingState:
    torch.manual_seed(0)
    model = llip.create_model(config)
    optimizer = build_optimizer(model, config)
    for _ in range(updates):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return TrainingState(model, optimizer)


def _assert_equal(a: TrainingState, b: TrainingState) -> None:
    for kind, tensors in a.tensors().items():
        others = b.tensors()[kind]
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_model_and_optimizer_come_back_to_the_bit(small: TrainingConfig, tmp_path: Path) -> None:
    state = _trained(small, 2)
    folder = checkpoint.save(str(tmp_path), 2, state, small)
    assert checkpoint.latest(str(tmp_path)) == folder and checkpoint.step_of(folder) == 2
    other = _trained(replace(small, seed=1), 1)
    assert other.restore(folder, single_process()) == 2
    _assert_equal(state, other)
    loaded = llip.load_model(folder)
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), loaded.parameters(), strict=True))


def test_a_parameter_that_was_never_updated_has_no_state(small: TrainingConfig, tmp_path: Path) -> None:
    folder = checkpoint.save(str(tmp_path), 2, _trained(small, 0), small)
    other = _trained(small, 1)
    other.restore(folder, single_process())
    assert not other.optimizer.state


def test_the_average_is_the_model_and_the_weights_are_kept_beside_it(small: TrainingConfig, tmp_path: Path) -> None:
    state = _trained(small, 1)
    state.average = MovingAverage(state.model, 0.9)
    initial = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    expected = dict(initial)
    for _ in range(2):
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter.add_(1.0)
        state.average.update()
        expected = {name: 0.9 * expected[name] + 0.1 * p.detach() for name, p in state.model.named_parameters()}
    for name, tensor in expected.items():
        torch.testing.assert_close(state.average.tensors[name], tensor)

    folder = checkpoint.save(str(tmp_path), 2, state, small)
    for name, parameter in llip.load_model(folder).named_parameters():
        assert torch.equal(parameter, state.average.tensors[name])
    other = _trained(small, 1)
    other.average = MovingAverage(other.model, 0.9)
    other.restore(folder, single_process())
    _assert_equal(state, other)


def test_a_checkpoint_holds_no_pickle_and_says_what_it_is(small: TrainingConfig, tmp_path: Path) -> None:
    folder = Path(checkpoint.save(str(tmp_path), 4, _trained(small, 1), small))
    names = {"model.safetensors", "model.json", "optimizer.safetensors", "state.json"}
    assert {p.name for p in folder.iterdir()} == names
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["samples"]) == (4, 4 * small.data.batch_size)
    assert state["files"].keys() == names - {"state.json"}
    assert json.loads((folder.parent / "latest.json").read_text()) == {"step": 4, "folder": "step-00000004"}


def test_the_newest_are_kept(small: TrainingConfig, tmp_path: Path) -> None:
    state = _trained(small, 1)
    for step in (2, 4, 6, 8):
        checkpoint.save(str(tmp_path), step, state, replace(small, keep_checkpoints=3))
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == [f"step-0000000{n}" for n in (4, 6, 8)]


def test_an_old_checkpoint_is_removed_only_after_the_pointer_has_moved(
    small: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = _trained(small, 1)
    first = checkpoint.save(str(tmp_path), 2, state, replace(small, keep_checkpoints=1))
    write_pieces = storage.write_pieces

    def full_disk(uri: str, *content: Any) -> None:
        if uri.endswith("latest.json"):
            raise OSError("No space left on device")
        write_pieces(uri, *content)

    monkeypatch.setattr(storage, "write_pieces", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(str(tmp_path), 4, state, replace(small, keep_checkpoints=1))
    assert Path(first).exists()


def _truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])


def _flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "optimizer.safetensors").read_bytes())
    content[-7] ^= 1
    (folder / "optimizer.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "model.safetensors is not what was written"),
        (_flip_a_bit, "optimizer.safetensors is not what was written"),
        (lambda folder: (folder / "model.json").unlink(), "model.json is missing"),
        (lambda folder: (folder / "state.json").unlink(), "state.json is missing: saving it was interrupted"),
        (lambda folder: (folder / "state.json").write_text('{"step": '), "state.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None],
    reason: str,
    small: TrainingConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = _trained(small, 1)
    first = checkpoint.save(str(tmp_path), 2, state, small)
    second = checkpoint.save(str(tmp_path), 4, state, small)
    damage(Path(second))
    with caplog.at_level(logging.WARNING, "llip"):
        assert checkpoint.latest(str(tmp_path)) == first
    assert [r.getMessage() for r in caplog.records] == [
        f"checkpoint {second} is not usable ({reason}); trying the one before it"
    ]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(str(tmp_path / "nothing")) is None
