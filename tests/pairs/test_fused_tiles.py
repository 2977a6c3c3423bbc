"""Tiles for GPUs, on the CPU: against the literal form, what they store, and what a compiler makes of them."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import fake_gpu, literal
from helpers.traced import error_of_traced_stage
from test_losses import compare as compare_loss
from test_pair_scores import compare, force, gradients, literal_under_autocast, regime
from torch._subclasses.fake_tensor import FakeTensorMode

from llip import devices
from llip.config import Head, LossName, ObjectiveConfig
from llip.model.features import Mixture, Query
from llip.pairs import fused_tiles, scoring
from llip.pairs.losses import LOSSES, ScoreParameters, loss_of_features

COMPILED = replace(devices.A100, triton=False)
EAGER = replace(COMPILED, compiled=False)
KINDS: tuple[Head, ...] = ("text_query", "class_token")


@pytest.fixture(params=["gram", "metric"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    force(request.param, monkeypatch)
    return request.param


@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (2, 16), (33, 2), (128, 1)])
def test_mixtures_equal_the_literal_form(tokens: int, heads: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for tile in (1, 1000, 1 << 25):
        with devices.as_on(replace(EAGER, tile=tile)):
            assert compare("text_query", 3, 7, monkeypatch, chunk=4, tokens=tokens, heads=heads, width=3) < 1e-12
            assert compare("image_query", 5, 70, monkeypatch, tokens=tokens, heads=heads, width=3) < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_equal_the_literal_form(loss: LossName, form: str) -> None:
    for tile in (1, 400, 1 << 25):
        with devices.as_on(replace(EAGER, tile=tile)):
            for kind in KINDS:
                assert compare_loss(kind, 7, 2, ObjectiveConfig(loss=loss), tokens=3, heads=4, width=4) < 1e-12


@pytest.mark.parametrize("name", ["uniform", "shared", "plain", "peaked", "cancelling"])
def test_bf16_is_no_less_accurate_than_the_literal_form(name: str, form: str) -> None:
    tensors = regime(name)
    exact = gradients([t.double() for t in tensors], literal.scores)
    with devices.as_on(EAGER):
        ours = gradients(tensors, scoring.pair_scores)
    theirs = gradients(tensors, literal_under_autocast)
    for a, b, e in zip(ours, theirs, exact, strict=True):
        assert (a.double() - e).norm() <= (b.double() - e).norm()


def passes_of_a_tile(device: devices.Device, *, tokens: int, width: int) -> float:
    """Passes over fp32 [rows, columns, M·K] that a tile takes between its products."""
    with FakeTensorMode(), devices.as_on(device):
        heads, images, texts = 8, 256, 512
        with torch.device("cuda"):
            empty = partial(torch.empty, dtype=torch.bfloat16, requires_grad=True)
            image = Mixture(*(empty(images, heads, tokens, width) for _ in range(2)))
            text = Query(empty(texts, heads, width), empty(texts, heads * width))
            out_proj_DD = torch.empty(heads * width, heads * width)
            prepared = scoring.prepare(
                image, text, out_proj_DD=out_proj_DD, temperature=5.0, total=texts, gradients=True
            )
            tiles = prepared.tiles([t.detach() for t in prepared.rows], gradients=True)
            message_JW, gradient_IJ = torch.empty(texts, 2 * heads * width), torch.empty(images, texts)
            tiles.open(slice(0, images))
            with fake_gpu.Count() as count:
                tiles.scores(message_JW.bfloat16())
                tiles.backward(gradient_IJ, message_JW)
    return count.bytes["elementwise"] / (4 * images * texts * heads * tokens)


def test_a_tile_takes_few_passes_over_memory(form: str) -> None:
    """The tiles of L/14 with 32 tokens and of B/32 with 64."""
    width, cpu, gpu = {"gram": (96, 41, 10.2), "metric": (64, 50, 13.8)}[form]
    before, after = (
        passes_of_a_tile(device, tokens=32 if form == "gram" else 64, width=width) for device in (devices.CPU, COMPILED)
    )
    assert before == pytest.approx(cpu, rel=0.1) and after < gpu, (before, after)


@pytest.mark.slow
def test_a_stage_of_fused_tiles_is_traced_whole(form: str) -> None:
    assert error_of_traced_stage(EAGER) < 1e-12


@pytest.mark.slow
def test_what_inductor_makes_for_an_a100() -> None:
    """One Triton kernel of each function, which reads its inputs and writes its outputs, and no more."""
    heads, tokens, rows, columns, dim = 8, 32, 128, 512, 768
    with torch.device("meta"):
        full, pairs = torch.empty(heads, tokens, rows, columns), torch.empty(rows, columns)
        sums, like = torch.empty(heads, rows, columns), torch.empty(0, dtype=torch.bfloat16)
        gram, edge = torch.empty(rows, heads, tokens, columns), torch.empty(heads, tokens, rows, 1)
        mixed, mean, target = torch.empty(dim, rows, columns), torch.empty(dim, rows, 1), torch.empty(dim, 1, columns)
        rounded = mixed.bfloat16()
    calls = {
        fused_tiles.mixing_weights: (full, like),
        fused_tiles.gram_sums: (full, sums, full, gram, edge),
        fused_tiles.gram_slopes: (full, sums, full, gram, edge, sums, sums, pairs, pairs, like),
        fused_tiles.round_mixture: (mixed, target, like),
        fused_tiles.mixed_square: (rounded, mixed, mean),
        fused_tiles.mixed_slopes: (rounded, mixed, mean, target, pairs, pairs),
        fused_tiles.sum_of_rows: (mixed, pairs),
        fused_tiles.mean_slopes: (full, sums, full),
        fused_tiles.softmax_slopes: (full, sums, full, sums, like),
        fused_tiles.cosines: (pairs, pairs),
        fused_tiles.score_slopes: (pairs, pairs, pairs, pairs > 0),
    }
    for function, inputs in calls.items():
        outputs = function.function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert all(t.is_contiguous() for t in outputs)
        compiled = fake_gpu.compile_for_a100(function.function, *inputs)
        assert compiled[:2] == (1, sum(t.nbytes for t in (*inputs, *outputs))), function.function.__name__


@pytest.mark.slow
def test_compiled_functions_give_the_same_loss(form: str) -> None:
    image, text, out_proj_DD = literal.features("text_query", 8, 16, tokens=5, heads=4, width=4, dtype=torch.float32)
    assert out_proj_DD is not None
    own = ScoreParameters(out_proj_DD, 1.7, torch.tensor(1.0), torch.tensor(-2.0))
    found = []
    for device in (EAGER, COMPILED):
        with devices.as_on(device):
            loss = loss_of_features(image, text, own, config=ObjectiveConfig(), captions_per_image=2).loss
            found.append((loss, *torch.autograd.grad(loss, (*image, *text, out_proj_DD))))
    assert literal.errors(*found) < 1e-5


def test_a_function_that_does_not_compile_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    double = devices.Fused(lambda tensor: 2 * tensor)
    with devices.as_on(COMPILED):
        for _ in range(2):
            assert double(torch.ones(())) == 2
    assert caplog.text.count("no compiler here") == 1
