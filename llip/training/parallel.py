"""Everything about devices, ranks, wrapping and precision: the model and the loop stay single-device code."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Shard
from torch.nn.parallel import DistributedDataParallel

from llip import devices
from llip.config import TrainingConfig
from llip.contrastive import ContrastiveModel, create_model
from llip.model.features import Outputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None
    """None for a single process."""

    def scalars(self, values: Sequence[Tensor | float]) -> list[tuple[float, ...]]:
        """Each of some scalars as it is on every rank, in the order of ranks; one message, the same on all of them."""
        # Numbers go to the device in one copy, for which nothing waits.
        numbers = torch.tensor(
            [0.0 if isinstance(v, Tensor) else float(v) for v in values],
            dtype=torch.float64,
            pin_memory=self.device.type == "cuda",
        ).to(self.device, non_blocking=True)
        found = zip(values, numbers.unbind(), strict=True)
        own_V = torch.stack([v.detach().double() if isinstance(v, Tensor) else number for v, number in found])
        everyone = own_V
        if self.group is not None:
            everyone = own_V.new_empty(self.size * len(own_V))
            dist.all_gather_single(everyone, own_V, group=self.group)
        return list(zip(*everyone.view(self.size, -1).tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on every one of them."""
        if self.group is None:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def collect(self, value: Any) -> list[Any] | None:
        """The values of all ranks, in their order, on rank 0; None on the others."""
        if self.group is None:
            return [value]
        values = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, group=self.group)
        return values

    def hand_on(self, content: bytes | None, source: int) -> bytes:
        """The bytes that rank `source` has, on every rank."""
        if self.group is None:
            assert content is not None
            return content
        size = torch.tensor([len(content or b"")], device=self.device)
        dist.broadcast(size, source, group=self.group)
        own = bytearray(content) if content else bytearray(int(size))
        bytes_N = torch.frombuffer(own, dtype=torch.uint8).to(self.device)
        dist.broadcast(bytes_N, source, group=self.group)
        return content if content else bytes_N.cpu().numpy().tobytes()

    def barrier(self) -> None:
        if self.group is not None:
            dist.barrier(group=self.group)


def single_process() -> World:
    """One process on the CPU."""
    return World(rank=0, size=1, device=torch.device("cpu"), group=None)


def current_world() -> World:
    """The ranks of the process group that Ray Train or torchrun has set up, or this process alone; its GPU, if any."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if not dist.is_initialized():
        return World(rank=0, size=1, device=device, group=None)
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device, group=dist.group.WORLD)


class Towers:
    """A model's forward pass as a rank runs it: compiled, recomputing, under autocast, averaging gradients.

    With `config.parallel` "fsdp" or "hsdp" the parameters of the model become shards (DTensors): optimizers
    come after this.
    """

    def __init__(self, model: ContrastiveModel, config: TrainingConfig, world: World) -> None:
        model.set_activation_checkpointing(config.activation_checkpointing)
        self._autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        self._world = world
        self._replicated: list[nn.Parameter] = []
        sharded = world.group is not None and config.parallel != "ddp"
        compiled = devices.compiles(world.device) if config.compile is None else config.compile
        if compiled and sharded:
            for block in _blocks(model):  # what FSDP does around a block does not compile
                block.compile(fullgraph=True)
        elif compiled:
            model.compile_towers()
        self._model, self._forward = model, cast(Any, model)
        if sharded:
            self._replicated = _shard(model, config, world)
        elif world.group is not None:
            # W_O, scale and bias are used by the loss alone; DDP waits for their gradients as well.
            self._forward = DistributedDataParallel(model, process_group=world.group, gradient_as_bucket_view=True)

    def __call__(self, pixels_BCHW: Tensor, token_ids_TL: Tensor) -> Outputs:
        """Features in the run's precision."""
        packed = self._model.pack(token_ids_TL)  # here, as FSDP would send the ids to the device first
        with self._autocast:
            outputs: Outputs = self._forward(pixels_BCHW, packed)
        return outputs

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside keep their gradients to this rank: all but the last part of an accumulated step."""
        if isinstance(self._forward, DistributedDataParallel):
            with self._forward.no_sync():
                yield
        elif isinstance(self._forward, FSDPModule):
            self._forward.set_requires_gradient_sync(False)
            yield
            self._forward.set_requires_gradient_sync(True)
        else:
            yield

    def average_replicated(self) -> None:
        """Average the gradients of what FSDP does not shard, after the backward pass of a step."""
        for parameter in self._replicated:
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad, group=self._world.group)
            parameter.grad /= self._world.size


def _shard(model: ContrastiveModel, config: TrainingConfig, world: World) -> list[nn.Parameter]:
    """Shard blocks, towers and projections over the ranks (FSDP2): see `_axis`. Returns what stays whole.

    W_O, scale and bias stay whole: the loss uses them outside of any forward pass, where FSDP would have freed them.
    Parameters travel in fp32, as autocast wants them: the numbers are those of DistributedDataParallel. In bf16 they
    are what autocast makes of them anyway, but for norms, biases and embeddings; activations stay as they are.
    """
    # Features are views, and nothing works on them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = _mesh(config, world)
    policy = MixedPrecisionPolicy()
    if config.shard_precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    used_by_loss = (model.head.out_proj, model.logit_scale, model.logit_bias)
    replicated = [parameter for parameter in used_by_loss if parameter is not None]
    whole = {*replicated, *(parameter for parameter in model.parameters() if not parameter.requires_grad)}
    axis = partial(_axis, ranks=mesh.size(mesh.ndim - 1))
    for module in (*_blocks(model), model.vision, model.text, model.head.image, model.head.text, model):
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=whole, shard_placement_fn=axis)
    return replicated


def _axis(parameter: nn.Parameter, ranks: int) -> Shard:
    """Rows of a parameter to each rank; what has fewer rows than there are ranks, such as projections of each token, is
    cut along its longest axis that they divide, since FSDP2 pads rows: 32 tokens would travel as those of 128 ranks."""
    if parameter.ndim < 2 or len(parameter) >= ranks:
        return Shard(0)
    even = [axis for axis in range(1, parameter.ndim) if parameter.shape[axis] % ranks == 0]
    return Shard(max(even, key=lambda axis: parameter.shape[axis], default=0))


def _mesh(config: TrainingConfig, world: World) -> DeviceMesh:
    """All ranks in a row, or (hsdp) a row a node: shards lie along a row, replicas of them below each other.

    Ranks are numbered node by node. Nodes of unequal numbers of ranks form no rows: all ranks share then.
    """
    local = set(world.gather(int(os.environ.get("LOCAL_WORLD_SIZE", world.size))))  # Ray Train and torchrun set it
    if config.parallel == "hsdp" and len(local) == 1 and (size := local.pop()) < world.size:
        names = ("replicate", "shard")
        return init_device_mesh(world.device.type, (world.size // size, size), mesh_dim_names=names)
    if config.parallel == "hsdp" and local and world.rank == 0:
        logger.warning("nodes have %s ranks each: parameters are sharded over all of them, as with fsdp", sorted(local))
    return DeviceMesh.from_group(world.group, world.device.type)  # type: ignore[arg-type]


def part_of(tensors: Iterable[Tensor], world: World) -> tuple[int, int, bool]:
    """The part of some tensors that this rank writes: its number, how many there are, and whether the rank writes it.

    Each rank writes a part of replicated tensors, and its own shard of sharded ones; the first of the ranks that hold
    the same shard writes it.
    """
    mesh = next((t.device_mesh for t in tensors if isinstance(t, DTensor)), None)
    if mesh is None or mesh.ndim == 1:
        return world.rank, world.size, True
    replica, shard = mesh.get_coordinate() or (0, 0)
    return shard, mesh.size(1), replica == 0


def _blocks(model: ContrastiveModel) -> list[nn.Module]:
    return [*model.vision.transformer.blocks, *model.text.transformer.blocks]


def full(tensor: Tensor) -> Tensor:
    """A tensor with the shards of all ranks, which all have to ask for it; the same object if nothing is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_model(model: ContrastiveModel, weights: Mapping[str, Tensor] | None = None) -> ContrastiveModel:
    """The model unsharded on this rank, with its own weights or with others; the same object if nothing changes.

    Every rank has to make the call.
    """
    if weights is None and not any(isinstance(p, DTensor) for p in model.parameters()):
        return model
    copy = create_model(model.config).to(model.logit_scale)
    copy.load_state_dict({name: full(tensor) for name, tensor in (weights or model.state_dict()).items()})
    return copy


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor; the same object if nothing is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows_of(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor, as `torch.chunk` cuts them: the memory of its shard where that is so cut, else a
    copy, for which all ranks with other shards of it have to ask."""
    return local(_cut(tensor, Shard(0)) if _is_cut_otherwise(tensor) else tensor)


def set_rows(tensor: Tensor, rows: Tensor) -> None:
    """Fill a sharded tensor from what `rows_of` gave for it on each rank, which all have to do."""
    if _is_cut_otherwise(tensor):
        placements = [*tensor.placements[:-1], Shard(0)]
        whole = DTensor.from_local(
            rows, tensor.device_mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
        local(tensor).copy_(local(_cut(whole, tensor.placements[-1])))


def _is_cut_otherwise(tensor: Tensor) -> TypeGuard[DTensor]:
    return isinstance(tensor, DTensor) and tensor.placements[-1] != Shard(0)


def _cut(tensor: DTensor, placement: Placement) -> DTensor:
    return tensor.redistribute(placements=[*tensor.placements[:-1], placement])


def gradient_norm(model: nn.Module) -> Tensor:
    """L2 norm of the gradient of all parameters, a scalar, the same on every rank."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norms = [
        full(torch.nn.utils.get_total_norm([g for g in gradients if isinstance(g, DTensor) == sharded]))
        for sharded in {isinstance(g, DTensor) for g in gradients}
    ]
    return torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def clip_gradient(model: nn.Module, norm: float, maximum: float) -> None:
    """Scale a gradient of L2 norm `norm` down to `maximum`, if it is larger (Pascanu et al., arXiv 1211.5063)."""
    if norm > maximum:
        torch._foreach_mul_([local(p.grad) for p in model.parameters() if p.grad is not None], maximum / norm)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the randomness of a step a function of (seed, step, rank): no generator state has to be saved."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**63)
