"""Losses and gradients over 1 to 5 ranks against one process with the whole batch, in fp64.

Five processes start once. Groups of the first 1, 2, 3, 4 and 5 of them run every case; the largest error over the ranks
of a group comes back and is what the tests look at.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
import torch.distributed as dist
from helpers import forkserver, literal
from test_accumulation import CAPTIONS, batch, parts, small_model, step
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from llip.config import ObjectiveConfig
from llip.model.features import Pooled, batch_slice
from llip.pairs import accumulation
from llip.pairs.losses import LOSSES, ScoreParameters, loss_of_features
from llip.pairs.positives import caption_ids

BATCHES = {1: (3,), 2: (3, 3), 3: (3, 2, 4), 4: (2, 3, 3, 2), 5: (3, 2, 2, 3, 2)}
"""Images of each rank, by the number of ranks: no multiples of the chunk, and of unequal size from 3 ranks on."""
RANKS = tuple(BATCHES)
WORLD = max(RANKS)
KINDS = ("text_query/2", "image_query/2", "class_token/1", "class_token/2")
"""Heads and captions an image: of pooled features the captions travel, or the images where captions are more."""
CASES = ["/".join(case) for case in product(KINDS, LOSSES, ("gather", "ring"), ("own", "equal", "taught"))]


def error_of_loss(case: str, group: dist.ProcessGroup) -> float:
    """Of the means of the loss and of the gradients over the ranks."""
    fields: list[Any] = case.split("/")
    kind, number, loss, exchange, positives = fields
    captions = int(number)
    rank, batches = dist.get_rank(group), BATCHES[dist.get_world_size(group)]
    images, texts, out_proj_DD = literal.features(kind, sum(batches), captions * sum(batches))
    scale, bias = (torch.tensor(x, dtype=torch.float64).requires_grad_() for x in (1.2, -2.0))
    shared = [t for t in (out_proj_DD, scale, bias) if t is not None]
    score_BT = literal.scores(images, texts, out_proj_DD=out_proj_DD, temperature=1.7)
    token_ids_TL = literal.repeated_captions(len(texts[0])) if positives == "equal" else None
    expected = literal.loss(loss, score_BT, scale, bias, captions, token_ids_TL)
    teacher, share = literal.teacher(sum(batches), captions), 0.4 if positives == "taught" else 0.0
    if share:
        expected = literal.loss_with(teacher, share, expected, score_BT, scale, captions)

    first = sum(batches[:rank])
    mine = slice(first, first + batches[rank])

    def own_captions(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (captions, -1))[:, mine].flatten(0, 1)

    config = ObjectiveConfig(loss=loss, exchange=exchange, chunk=2, distillation=share)
    own = ScoreParameters(out_proj_DD, 1.7, scale, bias)
    actual = loss_of_features(
        batch_slice(images, mine),
        type(texts)(*map(own_captions, texts)),
        own,
        config=config,
        captions_per_image=captions,
        group=group,
        images_by_rank=batches,
        caption_ids_T=None if token_ids_TL is None else caption_ids(own_captions(token_ids_TL)),
        teacher=teacher._replace(image_BD=teacher.image_BD[mine], caption_TD=own_captions(teacher.caption_TD))
        if share
        else None,
    ).loss
    leaves = [*images, *texts, *shared]
    return literal.errors(
        mean([actual.detach(), *torch.autograd.grad(actual, leaves)], group),
        [expected, *torch.autograd.grad(expected, leaves)],
    )


def mean(tensors: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Over the ranks, in one message."""
    flat = torch.cat([t.flatten() for t in tensors]) / dist.get_world_size(group)
    dist.all_reduce(flat, group=group)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def error_of_step(count: int, group: dist.ProcessGroup) -> float:
    """Of a step in `count` parts under DistributedDataParallel."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    batches = [len(pixels) for pixels, _ in parts(*batch(), ranks)]
    config = ObjectiveConfig(chunk=2)
    expected = step(small_model("text_query"), 1, config)
    model = small_model("text_query")
    wrapped = DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True)
    pixels, token_ids = parts(*batch(), ranks)[rank]
    own = [pixels.tensor_split(count), token_ids.unflatten(0, (CAPTIONS, -1)).tensor_split(count, dim=1)]
    for _ in range(2):  # a second step shows that the reducer was left ready
        model.zero_grad()
        output = accumulation.backward(
            model,
            [(p, t.flatten(0, 1)) for p, t in zip(*own, strict=True)],
            config=config,
            captions_per_image=CAPTIONS,
            group=group,
            images_by_rank=batches,
            forward=wrapped,
        )
    return literal.errors([*mean([output.loss], group), *(p.grad for p in model.parameters())], expected)


def refusal_of_unequal_batches(kind: Literal["gather", "ring"]) -> str:
    """The message of a rank whose batch has another size than those of the others."""
    group = dist.new_group(list(range(WORLD)))
    assert isinstance(group, dist.ProcessGroup)
    images = 3 + dist.get_rank()
    features = Pooled(torch.randn(images, 4)), Pooled(torch.randn(images, 4))
    own = ScoreParameters(None, 1.0, torch.tensor(1.0), torch.tensor(-2.0))
    with pytest.raises(ValueError) as refusal:
        loss_of_features(*features, own, config=ObjectiveConfig(exchange=kind), group=group)
    return str(refusal.value)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    errors = {}
    for ranks in RANKS:
        group = dist.new_group(list(range(ranks)))
        if rank >= ranks:
            continue
        assert isinstance(group, dist.ProcessGroup)
        for case in CASES:
            errors[f"{case}/{ranks}"] = error_of_loss(case, group)
        for count in (1, 2):
            errors[f"step/{count}/{ranks}"] = error_of_step(count, group)
    refusals = {"gather": refusal_of_unequal_batches("gather"), "ring": refusal_of_unequal_batches("ring")}
    Path(folder, f"{rank}.json").write_text(json.dumps({"errors": errors, "refusals": refusals}))
    dist.barrier()
    dist.destroy_process_group()


class Found(NamedTuple):
    errors: dict[str, float]
    """Largest over the ranks, by case."""
    refusals: list[dict[str, str]]
    """Of each rank, by exchange."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    forkserver.start(work, WORLD, str(folder))
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]
    cases = ranks[0]["errors"]
    largest = {case: max(rank["errors"].get(case, 0.0) for rank in ranks) for case in cases}
    return Found(largest, [rank["refusals"] for rank in ranks])


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", CASES)
def test_ranks_equal_one_process(case: str, ranks: int, found: Found) -> None:
    assert found.errors[f"{case}/{ranks}"] < 1e-12


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("count", [1, 2])
def test_accumulation_under_data_parallelism(count: int, ranks: int, found: Found) -> None:
    assert found.errors[f"step/{count}/{ranks}"] < 1e-12


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_batches_of_unequal_size_are_refused_on_every_rank(exchange: str, found: Found) -> None:
    for rank, refusals in enumerate(found.refusals):
        assert f"this rank has {3 + rank} columns in its batch, and ranks have from 3 to 7" in refusals[exchange]
