"""Triton kernels of mixtures, in Triton's interpreter: against the literal form, and as a compiler makes them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import literal, triton_bf16
from helpers.traced import error_of_traced_stage
from test_losses import compare as compare_loss
from test_pair_scores import compare, force, gradients, literal_under_autocast, regime

from llip import devices
from llip.config import LossName, ObjectiveConfig
from llip.pairs import scoring, triton_costs, triton_tiles
from llip.pairs.losses import LOSSES, ScoreParameters, loss_of_features
from llip.pairs.triton_tiles import TritonGramTiles

EAGER = replace(devices.A100, compiled=False)


@pytest.fixture(autouse=True)
def gram(monkeypatch: pytest.MonkeyPatch) -> None:
    force("gram", monkeypatch)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that hold little, so that few rows and columns take several turns of every loop."""

    def small(heads: int, tokens: int, width: int) -> triton_costs.Blocks:
        own = triton_costs.blocks(heads, tokens, width)
        return own._replace(
            mix_rows=1, mix_columns=4, gram=4, gram_inner=4, score_columns=4, width_step=2, rows=4, columns=4, inner=4
        )

    monkeypatch.setattr(triton_tiles, "blocks", small)


def test_small_blocks_equal_the_literal_form(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with devices.as_on(EAGER):
        assert compare("text_query", 2, 5, monkeypatch, tokens=3, heads=2, width=3) < 1e-12


@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 2, 20), (33, 2, 3), (128, 1, 5)])
def test_mixtures_equal_the_literal_form(tokens: int, heads: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with devices.as_on(EAGER):
        assert compare("image_query", 130, 3, monkeypatch, tokens=tokens, heads=heads, width=width) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "heads", "width"), [(1, 16, 16), (32, 4, 40), (64, 1, 128), (113, 2, 24), (320, 1, 16)]
)
def test_mixtures_equal_the_literal_form_at_size(
    tokens: int, heads: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with devices.as_on(EAGER):
        assert compare("text_query", 3, 130, monkeypatch, tokens=tokens, heads=heads, width=width) < 1e-12


@pytest.mark.parametrize(
    "loss", [loss if loss == "sigmoid" else pytest.param(loss, marks=pytest.mark.slow) for loss in LOSSES]
)
def test_losses_equal_the_literal_form(loss: LossName) -> None:
    with devices.as_on(replace(EAGER, tile=60)):  # tiles of a few rows and columns
        assert compare_loss("text_query", 7, 2, ObjectiveConfig(loss=loss), tokens=3, heads=4, width=4) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared", "cancelling"])
def test_bf16_is_no_less_accurate_than_the_literal_form(name: str) -> None:
    tensors = regime(name)
    exact = gradients([t.double() for t in tensors], literal.scores)
    with devices.as_on(EAGER), triton_bf16.as_on_a_gpu():
        ours = gradients(tensors, scoring.pair_scores)
    theirs = gradients(tensors, literal_under_autocast)
    for a, b, e in zip(ours, theirs, exact, strict=True):
        assert (a.double() - e).norm() <= (b.double() - e).norm()


def test_the_same_loss_to_the_bit() -> None:
    image, text, out_proj_DD = literal.features("text_query", 5, 5, tokens=3, dtype=torch.float32)
    assert out_proj_DD is not None
    own = ScoreParameters(out_proj_DD, 1.7, torch.tensor(1.0), torch.tensor(-2.0))
    found = []
    with devices.as_on(EAGER):
        for _ in range(2):
            loss = loss_of_features(image, text, own, config=ObjectiveConfig()).loss
            found.append((loss, *torch.autograd.grad(loss, (*image, *text, out_proj_DD))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_more_tokens_than_a_program_holds(caplog: pytest.LogCaptureFixture) -> None:
    triton_tiles.runs.cache_clear()
    for tokens, made in ((512, True), (513, False), (513, False)):
        image, text, out_proj_DD = literal.features("text_query", 1, 1, tokens=tokens, heads=1, width=2)
        with devices.as_on(EAGER):
            prepared = scoring.prepare(image, text, out_proj_DD=out_proj_DD, temperature=1.0, total=1, gradients=True)
        assert isinstance(prepared.tiles([t.detach() for t in prepared.rows], gradients=True), TritonGramTiles) is made
    assert caplog.text.count("513 tokens are more than 512") == 1


@pytest.mark.parametrize(
    ("installed", "capability", "triton", "said"),
    [(True, (8, 0), True, ""), (True, (7, 5), False, "capability below 8.0"), (False, (9, 0), False, "not installed")],
)
def test_gpus_that_cannot_run_triton(
    installed: bool,
    capability: tuple[int, int],
    triton: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object() if installed else None)
    devices._gpu.cache_clear()
    try:
        assert [devices.of("cuda").triton for _ in range(2)] == [triton, triton]
    finally:
        devices._gpu.cache_clear()
    assert said in caplog.text and len(caplog.records) == (not triton)


def test_kernels_that_a_gpu_refuses(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Here it is one that does not exist."""
    monkeypatch.setattr(devices, "simulated", lambda: False)
    triton_tiles.runs.cache_clear()
    assert not any(triton_tiles.runs(torch.device("cuda"), torch.bfloat16, 2, 3, 4, True) for _ in range(2))
    assert caplog.text.count("its kernels failed on cuda") == 1
    assert not triton_tiles.runs(torch.device("cuda"), torch.float32, 2, 3, 4, True)
    triton_tiles.runs.cache_clear()


def test_work_of_a_tile_by_hand() -> None:
    """L/14 with 32 tokens: 256 weights a pair, of which a Gram matrix has four blocks; heads 96 wide, padded to 128."""
    rows, columns = 256, 2048
    done = triton_costs.work(rows, columns, 8, 32, 96, split=True)
    flops = {name: kernel.flops / (rows * columns) for name, kernel in done.items()}
    assert flops == {
        "mix": 4 * 256 * 96,
        "score": 2 * 2 * 256**2 + 2 * 256 * 96,
        "rows_backward": 4 * 256 * 128,
        "columns_backward": 4 * 256 * 128,
        "gram_backward": 2 * 3 * 128**2,
    }
    token, message, weight = 2 * rows * 256 * 96, 2 * columns * 768, 2 * rows * columns * 256
    assert done["mix"].memory == 2 * token + 2 * message + weight + 4 * rows * columns
    # A program has four rows and 64 columns.
    assert done["mix"].cache == 32 * 2 * token + 64 * 2 * message + weight + 4 * rows * columns


@pytest.mark.parametrize(("dim", "most"), [(512, 148), (1024, 224)])
def test_very_many_tokens_are_left_to_the_output_gram_matrix(
    dim: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As llip/pairs/README.md says."""
    monkeypatch.undo()  # the form is chosen
    choose = partial(scoring.gram_is_cheaper, heads=8, dim=dim, columns=32_768, gradients=True, device=devices.A100)
    assert choose(tokens=most) and not choose(tokens=most + 4)


def test_triton_is_a_third_faster_than_compiled_functions() -> None:
    """By the arithmetic of both, at the sizes of the paper."""
    assert devices.A100.bandwidth is not None and devices.A100.product_flops is not None
    for tokens, width in ((32, 96), (64, 64), (64, 128)):
        own = triton_costs.seconds_of_pair(devices.A100, heads=8, tokens=tokens, width=width, split=True)
        forms = scoring.fused_costs(8 * tokens, 8 * width, gradients=True, split=True)
        shared = 6 * tokens * 8 * width
        compiled = min(
            4 * numbers / devices.A100.bandwidth + 2 * (products + shared) / devices.A100.product_flops
            for numbers, products in forms
        )
        assert compiled > 1.3 * own


@pytest.mark.slow
def test_a_stage_of_triton_tiles_is_traced_whole() -> None:
    assert error_of_traced_stage(EAGER) < 1e-12


@pytest.mark.slow
def test_kernels_compile_for_an_a100() -> None:
    """Those of L/14 with 32 tokens, to machine code, in a process whose Triton compiles: they fit, and spill little."""
    script = Path(__file__).parents[1] / "helpers" / "triton_for_a100.py"
    done = subprocess.run(
        [sys.executable, script, "8", "32", "96"],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert set(found) == {"mix", "score", "rows_backward", "columns_backward", "gram_backward"}
    for kernel in found.values():
        assert kernel["shared"] <= 163 * 1024 and kernel["stack"] <= 512, found
