"""Exact gradient accumulation: a step in parts whose gradient is that of the whole batch.

A contrastive loss is no sum over micro-batches, as every image meets every caption. So the features of all parts are
computed first, without a graph; the loss gives the gradient of each; then each part runs again, with a graph, and takes
its features' gradient backwards (the gradient cache of Gao et al. 2021, arXiv 2101.06983).
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llip.config import ObjectiveConfig
from llip.model.features import concatenate
from llip.objective.losses import LossOutput, loss_of_features, score_parameters

Forward = Callable[[Tensor, Tensor], tuple[Any, Any]]


def backward(
    model: Any,
    parts: Sequence[tuple[Tensor, Tensor]],
    *,
    config: ObjectiveConfig,
    captions_per_image: int,
    group: dist.ProcessGroup | None = None,
    forward: Forward | None = None,
) -> LossOutput:
    """Forward and backward of one step; the gradients are added to `.grad`, the loss comes back detached.

    A part is `(pixels, token_ids)`, its captions caption-major among themselves. `forward` is what is called in place
    of `model`: the same model wrapped for several ranks, compiled or under autocast.

    W_O, the scale and the bias take part in the loss, not in `forward`. DistributedDataParallel averages them with the
    rest because it waits for the gradient of every parameter, wherever it was used (`find_unused_parameters` has to be
    off); with several parts their gradients are handed over together with those of the last part, the only one that
    synchronises.
    """
    forward = model if forward is None else forward
    parameters = score_parameters(model)
    loss = partial(loss_of_features, config=config, captions_per_image=captions_per_image, group=group)
    if len(parts) == 1:
        images, texts = forward(*parts[0])
        output = loss(images, texts, parameters)
        output.loss.backward()
        return LossOutput(output.loss.detach(), output.guard_hits)

    device = parts[0][0].device
    states, cached = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(device))
            cached.append(forward(*part))
    leaves = [tuple(type(side)(*(t.detach().requires_grad_() for t in side)) for side in part) for part in cached]
    own = parameters._replace(
        **{
            name: tensor.detach().requires_grad_(tensor.requires_grad)
            for name, tensor in parameters._asdict().items()
            if isinstance(tensor, Tensor)
        }
    )
    images = concatenate([part_images for part_images, _ in leaves])
    texts = _concatenate_captions([part_texts for _, part_texts in leaves], captions_per_image)
    output = loss(images, texts, own)
    output.loss.backward()

    for index, (part, state, leaf) in enumerate(zip(parts, states, leaves, strict=True)):
        last = index == len(parts) - 1
        _restore_random_state(device, state)
        with contextlib.nullcontext() if last or not hasattr(forward, "no_sync") else forward.no_sync():
            outputs = [tensor for side in forward(*part) for tensor in side]
            gradients = [tensor.grad for side in leaf for tensor in side]
            pairs = list(zip(outputs, gradients, strict=True))
            if last:
                pairs += [
                    (tensor, copy.grad)
                    for tensor, copy in zip(parameters, own, strict=True)
                    if isinstance(tensor, Tensor) and tensor.requires_grad
                ]
            torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
    return LossOutput(output.loss.detach(), output.guard_hits)


def _concatenate_captions(parts: list[Any], captions: int) -> Any:
    """Parts `[C·b, ...]`, caption-major each, as one `[C·B, ...]`, caption-major."""
    return type(parts[0])(
        *(
            torch.cat([tensor.unflatten(0, (captions, -1)) for tensor in tensors], dim=1).flatten(0, 1)
            for tensors in zip(*parts, strict=True)
        )
    )


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    """The dropped patches of the second pass have to be those of the first."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
