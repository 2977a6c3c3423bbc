"""A step in parts has the gradients of the step in one piece."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import literal

from llip.config import (
    QUERIED_HEADS,
    Head,
    HeadConfig,
    LossName,
    ModelConfig,
    ObjectiveConfig,
    TextConfig,
    VisionConfig,
)
from llip.contrastive import ContrastiveModel, create_model
from llip.model.features import concatenate
from llip.pairs import accumulation
from llip.pairs.losses import loss_of_features, score_parameters

IMAGES, CAPTIONS = 12, 2


def small_model(kind: Head, patch_dropout: float = 0.0) -> ContrastiveModel:
    torch.manual_seed(0)
    tokens = {"class_token": (1, 1), "image_query": (1, 3)}.get(kind, (3, 1))
    config = ModelConfig(
        embed_dim=12,
        vision=VisionConfig(
            image_size=16, patch_size=4, width=16, layers=1, head_width=8, tokens=tokens[0], patch_dropout=patch_dropout
        ),
        text=TextConfig(context_length=9, vocabulary=40, width=16, heads=2, layers=1, tokens=tokens[1]),
        head=HeadConfig(kind=kind, heads=3, temperature=2.0) if kind in QUERIED_HEADS else HeadConfig(kind=kind),
        init_logit_bias=None if kind == "class_token" else -3.0,
    )
    return create_model(config).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and caption-major token ids, of captions of several lengths."""
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(1, 38, (CAPTIONS * IMAGES, 9), generator=generator)
    for row, length in enumerate(torch.randint(3, 10, (len(token_ids),), generator=generator).tolist()):
        token_ids[row, length - 1] = 39
        token_ids[row, length:] = 0
    return torch.randn(IMAGES, 3, 16, 16, generator=generator, dtype=torch.float64), token_ids


def parts(pixels: torch.Tensor, token_ids: torch.Tensor, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    texts = token_ids.unflatten(0, (CAPTIONS, -1)).tensor_split(count, dim=1)
    return [(p, t.flatten(0, 1)) for p, t in zip(pixels.tensor_split(count), texts, strict=True)]


def step(model: ContrastiveModel, count: int, config: ObjectiveConfig, **options: Any) -> list[torch.Tensor]:
    """The loss and every gradient of a step in `count` parts."""
    model.zero_grad()
    output = accumulation.backward(model, parts(*batch(), count), config=config, captions_per_image=CAPTIONS, **options)
    assert not output.loss.requires_grad
    return [output.loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("kind", "loss"), [("text_query", "sigmoid"), ("image_query", "sigmoid"), ("class_token", "softmax")]
)
def test_parts_have_the_gradients_of_the_whole(kind: Head, loss: LossName) -> None:
    model, config = small_model(kind), ObjectiveConfig(loss=loss)
    whole = step(model, 1, config)
    assert len(whole) == 1 + len(list(model.parameters()))
    for count in (2, 3, 4, 5):  # 5 parts are of unequal size
        assert literal.errors(step(model, count, config), whole) < 1e-12


def test_the_teacher_is_of_all_parts() -> None:
    model, config = small_model("text_query"), ObjectiveConfig(distillation=0.5)
    teacher = literal.teacher(IMAGES, CAPTIONS)
    whole = step(model, 1, config, teacher=teacher)
    assert literal.errors(step(model, 3, config, teacher=teacher), whole) < 1e-12
    assert literal.errors(step(model, 1, ObjectiveConfig()), whole) > 1e-3


def test_equal_captions_are_found_in_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, _ = batch()
    token_ids = torch.nn.functional.pad(literal.repeated_captions(CAPTIONS * IMAGES), (0, 5))
    token_ids[token_ids == 9] = 39
    monkeypatch.setitem(globals(), "batch", lambda: (pixels, token_ids))
    model, config = small_model("text_query"), ObjectiveConfig(multi_positive=True)
    whole = step(model, 1, config)
    assert literal.errors(step(model, 3, config), whole) < 1e-12
    assert literal.errors(step(model, 1, ObjectiveConfig()), whole) > 1e-3


def test_the_second_pass_drops_the_same_patches() -> None:
    """Against one graph of the same forward passes, drawn from the same generator."""
    model, config = small_model("text_query", patch_dropout=0.5), ObjectiveConfig()
    model.train()
    torch.manual_seed(5)
    outputs = [model(*part) for part in parts(*batch(), 3)]
    images = concatenate([images for images, _ in outputs])
    texts = accumulation.concatenate_captions([texts for _, texts in outputs], CAPTIONS)
    parameters = score_parameters(model)
    loss = loss_of_features(images, texts, parameters, config=config, captions_per_image=CAPTIONS).loss
    expected = [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    after = torch.rand(3)

    torch.manual_seed(5)
    assert literal.errors(step(model, 3, config), expected) < 1e-12
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(6)
    assert literal.errors(step(model, 3, config), expected) > 1e-6


def test_gradients_are_added_to_those_that_are_there() -> None:
    model, config = small_model("text_query"), ObjectiveConfig()
    once = step(model, 3, config)[1:]
    accumulation.backward(model, parts(*batch(), 3), config=config, captions_per_image=CAPTIONS)
    twice = [p.grad for p in model.parameters() if p.grad is not None]
    assert literal.errors(twice, [2 * gradient for gradient in once]) < 1e-12


def test_only_the_last_part_synchronises() -> None:
    """The last backward pass brings every gradient, also those of W_O, scale and bias: DDP waits for all of them."""
    model = small_model("text_query")
    synchronised, ready = list[tuple[bool, bool]](), list[tuple[str, bool]]()

    class Wrapper:
        on = True

        def __call__(self, *part: torch.Tensor) -> tuple[Any, Any]:
            synchronised.append((torch.is_grad_enabled(), self.on))
            return model(*part)

        @contextlib.contextmanager
        def no_sync(self) -> Iterator[None]:
            self.on = False
            yield
            self.on = True

    wrapper = Wrapper()
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: ready.append((name, wrapper.on)))
    step(model, 3, ObjectiveConfig(), forward=wrapper)
    assert [on for graph, on in synchronised if graph] == [False, False, True]
    assert sorted(name for name, on in ready if on) == sorted(name for name, _ in model.named_parameters())
    own = [name for name, _ in ready if name in ("head.out_proj", "logit_scale", "logit_bias")]
    assert sorted(own) == ["head.out_proj", "logit_bias", "logit_scale"]


@pytest.mark.parametrize("locked", ["vision.", "text.", "logit_"])
def test_locked_parameters(locked: str) -> None:
    model = small_model("text_query")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(locked))
    whole = step(model, 1, ObjectiveConfig())
    assert literal.errors(step(model, 3, ObjectiveConfig()), whole) < 1e-12
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith(locked))
