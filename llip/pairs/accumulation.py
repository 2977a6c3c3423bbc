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
from torch.profiler import record_function

from llip.config import ObjectiveConfig
from llip.model.features import Extra, Features, ImageFeatures, Outputs, Pooled, Query, Terms, TextFeatures, concatenate
from llip.pairs.distillation import Teacher
from llip.pairs.losses import LossOutput, ScoreParameters, loss_of_features, score_parameters
from llip.pairs.positives import caption_ids

LEARNED = ("out_proj_DD", "logit_scale", "logit_bias")
"""Parameters that take part in the loss without passing through `forward`."""

Forward = Callable[[Tensor, Tensor], Outputs]


def backward(
    model: Any,
    parts: Sequence[tuple[Tensor, Tensor]],
    *,
    config: ObjectiveConfig,
    captions_per_image: int,
    group: dist.ProcessGroup | None = None,
    images_by_rank: Sequence[int] | None = None,
    forward: Forward | None = None,
    teacher: Teacher | None = None,
) -> LossOutput:
    """Forward and backward of one step; the gradients are added to `.grad`, the loss comes back detached.

    A part is `(pixels, token_ids)`, its captions caption-major among themselves. Parts and the batches of ranks may
    differ in size (`images_by_rank`; without it, all ranks have as many images). `forward` is called in place of
    `model`: the same model wrapped for several ranks, compiled or under autocast. `teacher` has the embeddings of all
    parts, where a share of the loss follows one.

    A model that predicts words counts those of the batch first.

    W_O, the scale and the bias take part in the loss, not in `forward`. DistributedDataParallel averages them with the
    rest because it waits for the gradient of every parameter, wherever it was used (`find_unused_parameters` has to be
    off); with several parts their gradients are handed over together with those of the last part, the only one that
    synchronises.
    """
    forward = model if forward is None else forward
    if model.words is not None:
        model.words.count([token_ids for _, token_ids in parts], group)
    parameters = score_parameters(model)
    ids = [caption_ids(token_ids) for _, token_ids in parts] if config.multi_positive else None
    loss = partial(
        _loss,
        global_weight=model.config.head.global_weight,
        config=config,
        captions_per_image=captions_per_image,
        group=group,
        images_by_rank=images_by_rank,
        caption_ids_T=_concatenate_captions(ids, captions_per_image) if ids else None,
        teacher=teacher,
    )
    if len(parts) == 1:
        images, texts, *extras = forward(*parts[0])
        with record_function("loss"):
            output = loss(images, texts, extras, parameters)
        with record_function("backward"):
            output.loss.backward()
        return LossOutput(output.loss.detach(), output.clamped_pairs)

    states, leaves = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_RandomState(part[0].device))
            leaves.append([_leaves(features) for features in forward(*part)])
    learned = {name: getattr(parameters, name) for name in LEARNED}
    learned = {name: tensor for name, tensor in learned.items() if tensor is not None and tensor.requires_grad}
    own = {name: tensor.detach().requires_grad_() for name, tensor in learned.items()}
    with record_function("loss"):
        images, texts, *extras = zip(*leaves, strict=True)
        output = loss(
            concatenate(images),
            concatenate_captions(texts, captions_per_image),
            [concatenate(extra) for extra in extras],
            parameters._replace(**own),
        )
        output.loss.backward()

    last = len(parts) - 1
    for index, part in enumerate(parts):
        states[index].restore()
        with contextlib.nullcontext() if index == last or not hasattr(forward, "no_sync") else forward.no_sync():
            outputs = [tensor for features in forward(*part) for tensor in features]
            gradients = [leaf.grad for features in leaves[index] for leaf in features]
            if index == last:
                outputs += learned.values()
                gradients += [tensor.grad for tensor in own.values()]
            with record_function("backward"):
                _backward(outputs, gradients)
    return LossOutput(output.loss.detach(), output.clamped_pairs)


def _loss(
    images: ImageFeatures,
    texts: TextFeatures,
    extras: Sequence[Extra],
    parameters: ScoreParameters,
    *,
    global_weight: float,
    **layout: Any,
) -> LossOutput:
    """The loss of the pairs, mixed with the global one, and what each image adds; made for the mean over ranks.

    The global loss compares an image's own feature with the captions' targets: `(1 - w) L_mixture + w L_global`, which
    is FLAIR's ½ (L_tcs + L_mps) at w = ½ (arXiv 2412.03561).
    """
    output = loss_of_features(images, texts, parameters, **layout)
    group, images_by_rank = layout["group"], layout["images_by_rank"]
    ranks = 1 if group is None else dist.get_world_size(group)
    total = sum(images_by_rank) if images_by_rank else ranks * len(images[0])
    for extra in extras:
        if isinstance(extra, Terms):
            output = output._replace(loss=output.loss + extra.loss_B.sum() * (ranks / total))
        else:
            assert isinstance(texts, Query)
            pooled = loss_of_features(extra, Pooled(texts.target_BD), parameters, **layout)
            loss = torch.lerp(output.loss, pooled.loss, global_weight)
            output = LossOutput(loss, output.clamped_pairs + pooled.clamped_pairs)
    return output


def _leaves(features: Features) -> Features:
    return type(features)(*(tensor.detach().requires_grad_() for tensor in features))


def _backward(outputs: list[Tensor], gradients: list[Tensor | None]) -> None:
    """Backward pass from the outputs that depend on something learned: those of a locked tower do not."""
    pairs = [(output, gradient) for output, gradient in zip(outputs, gradients, strict=True) if output.requires_grad]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


def concatenate_captions(parts: list[Any], captions: int) -> Any:
    """Parts `[C·b, ...]`, caption-major each, as one `[C·B, ...]`, caption-major."""
    return type(parts[0])(*(_concatenate_captions(tensors, captions) for tensors in zip(*parts, strict=True)))


def _concatenate_captions(tensors: Sequence[Tensor], captions: int) -> Tensor:
    return torch.cat([tensor.unflatten(0, (captions, -1)) for tensor in tensors], dim=1).flatten(0, 1)


class _RandomState:
    """The generators that `forward` draws from: what the second pass drops has to be what the first one dropped."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
