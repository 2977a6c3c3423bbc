"""A GPU without one: fake CUDA tensors, what a compiler would make for an A100, and counts of kernels and bytes."""

import contextlib
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from llip import devices
from llip.devices import Fused
from llip.pairs import triton_costs

A100 = types.SimpleNamespace(
    name="NVIDIA A100-SXM4-80GB",
    major=8,
    minor=0,
    multi_processor_count=108,
    total_memory=80 * 2**30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=166912,
    L2_cache_size=40 * 2**20,
    gcnArchName="",
)


class Compiled(NamedTuple):
    """What inductor makes of a function on an A100."""

    kernels: int
    bytes: int
    """Read and written by all kernels."""
    elementwise: int
    """Of these, by others than products and attention."""


@contextlib.contextmanager
def a100() -> Iterator[None]:
    """Compilers take this machine for one with an A100."""
    import torch.utils._triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.async_compile import AsyncCompile
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    properties = staticmethod(lambda *_: A100)
    target = types.SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 80, 32), get_current_device=lambda: 0)
    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (CudaInterface, "get_device_properties", properties),
            (CudaInterface, "get_compute_capability", staticmethod(lambda *_: 80)),
            (CudaInterface, "is_available", staticmethod(lambda: True)),
            (CudaInterface.Worker, "get_device_properties", properties),
            (torch.cuda, "get_device_properties", lambda *_: A100),
            (torch.cuda, "get_device_capability", lambda *_: (8, 0)),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: 1),
            (torch.utils._triton, "triton_hash_with_backend", lambda: ""),
            (driver, "_active", target),
            (AsyncCompile, "use_process_pool", staticmethod(lambda: False)),  # they go no further than Triton
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        _forget_triton()
        stack.callback(_forget_triton)
        yield


def _forget_triton() -> None:
    """What PyTorch found out about Triton on this machine, it asks again."""
    for function in list(vars(torch.utils._triton).values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def compile_for_a100(function: Callable[..., Any], *inputs: Tensor) -> Compiled:
    """Lower a function of tensors on the CPU, of which only shapes count, to Triton code for a GPU."""
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode() as mode:
        fake = _on_cuda(inputs)
        traced = make_fx(lambda *tensors: function(*tensors), decomposition_table=select_decomp_table())(*fake)
        return _lowered(traced, fake, mode)


def _on_cuda(tensors: Any) -> list[Tensor]:
    return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in tensors]


def _lowered(traced: torch.fx.GraphModule, fake: list[Tensor], mode: Any) -> Compiled:
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import ExternKernelSchedulerNode
    from torch._inductor.virtualized import V
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    graph = GraphLowering(traced, example_inputs=fake, shape_env=ShapeEnv())
    with V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()), a100():
        graph.run(*fake)
        code = graph.codegen()[0].value
        total, numbers, _ = graph.count_bytes()  # numbers count four bytes each
        products = sum(4 * int(count) for node, count in numbers if isinstance(node, ExternKernelSchedulerNode))
        return Compiled(code.count("async_compile.triton("), int(total), int(total) - products)


def compile_with_gradients(module: torch.nn.Module, *shape: int) -> Compiled:
    """Forward and backward of a module under autocast, as AOT autograd parts them and inductor fuses them for an A100.

    Of a tensor of some shape; nothing is allocated, and a graph that breaks is an error.
    """
    from functorch.compile import aot_function, make_boxed_func, min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    names = [name for name, _ in module.named_parameters()]
    graphs: list[tuple[torch.fx.GraphModule, Any]] = []

    def forward(x: Tensor, *parameters: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x, None))

    def note(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append((graph, inputs))
        return make_boxed_func(graph)

    with FakeTensorMode():
        parameters = [torch.empty(p.shape, requires_grad=True) for p in module.parameters()]
        aot_function(
            forward,
            fw_compiler=note,
            bw_compiler=note,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )(torch.empty(shape, requires_grad=True), *parameters).sum().backward()
    found = []
    for graph, inputs in graphs:
        for node in graph.graph.nodes:
            node.meta = {}
            if node.kwargs.get("device") is not None:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        graph.recompile()
        with FakeTensorMode() as mode:
            fake = _on_cuda(inputs)
            FakeTensorProp(graph, mode).propagate(*fake)
            found.append(_lowered(graph, fake, mode))
    return Compiled(*(sum(values) for values in zip(*found, strict=True)))


PRODUCTS = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "baddbmm_",
    "addmm_",
    "wide_product",
    "convolution",
    "convolution_backward",
)
FILLS = ("zeros_like", "new_zeros", "new_full", "full", "zeros", "zero_", "fill_")
UNCOUNTED = (
    "_unsafe_view",
    "_reshape_alias",
    "detach",
    "lift_fresh",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
)


class Count(TorchDispatchMode):
    """Adds up kernels, bytes and FLOPs of what runs inside; views are free, a broadcast operand counts as it is stored.

    A `Fused` function is one kernel that reads its inputs and writes its outputs, unless `fused` is False.
    """

    def __init__(self, *, fused: bool = True) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        """By kind: product, elementwise, attention, collective, copy, triton; cache: what Triton's programs move."""
        self.flops = 0.0
        """Of products, those of Triton's kernels included."""
        self.single_flops = 0.0
        """Of products of fp32, which are among `flops`."""
        self.triton_flops = 0.0
        self.triton_seconds = 0.0
        """By products, memory or cache of an A100, whichever takes longest in a kernel."""
        self.synchronisations: Counter[str] = Counter()
        self._fused = fused
        self._quiet = False
        self._patch = mock.patch.object(Fused, "__call__", lambda of, *tensors: self._call(of, *tensors))

    def __enter__(self) -> "Count":
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.stop()

    def _call(self, of: Fused, *tensors: Tensor) -> Any:
        if not self._fused:
            return of.function(*tensors)
        before, self._quiet = self._quiet, True
        try:
            result = of.function(*tensors)
        finally:
            self._quiet = before
        self._add("elementwise", tensors, result)
        return result

    def _add(self, kind: str, *tensors: Any) -> None:
        self.kernels[kind] += 1
        self.bytes[kind] += sum(stored(t) for t in pytree.tree_leaves(tensors) if isinstance(t, Tensor))

    def _triton(self, name: str, tensors: Any) -> None:
        """Kernels of mixtures: see `triton_costs.work`."""
        if name == "score_mixtures":
            weight_IXJ, slope_IXJ, key_MNE, grams_IXX = tensors[0], tensors[1], tensors[5], tensors[8]
            split, chosen = len(grams_IXX) > 1, ["mix", "score"]
        else:
            weight_IXJ, slope_IXJ, key_MNE, split = tensors[5], tensors[6], tensors[9], False
            chosen = ["rows_backward", "columns_backward", "gram_backward"]
        (rows, size, columns), (heads, _, width) = weight_IXJ.shape, key_MNE.shape
        done = triton_costs.work(
            rows, columns, heads, size // heads, width, split=split, gradients=slope_IXJ is not None
        )
        for kernel in chosen:
            self.kernels["triton"] += 1
            self.bytes["triton"] += int(done[kernel].memory)
            self.bytes["cache"] += int(done[kernel].cache)
            self.triton_flops += done[kernel].flops
            self.flops += done[kernel].flops
            self.triton_seconds += triton_costs.seconds(done[kernel], devices.A100)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name in ("_local_scalar_dense", "item", "nonzero"):
            self.synchronisations[name] += 1
        if self._quiet or func.is_view or func.namespace == "prim" or name in UNCOUNTED:
            return result
        if name in ("score_mixtures", "mixture_gradients"):
            self._triton(name, args)
        elif name in PRODUCTS:
            self._add("product", args, result if torch.is_tensor(result) and not name.endswith("_") else ())
            flops = flops_of(name, args, result)
            self.flops += flops
            if all(t.dtype == torch.float32 for t in args if torch.is_tensor(t)):
                self.single_flops += flops
        elif "attention" in name:
            self._add("attention", args, result)
            self.flops += flops_of(name, args, result)
        elif func.namespace == "c10d":
            self.kernels["collective"] += 1  # a ring passes on about as much as the larger side, input or output, has
            self.bytes["collective"] += max(stored(t) for t in pytree.tree_leaves(args) if isinstance(t, Tensor))
        elif name in FILLS:
            self._add("elementwise", result)
        else:
            self._add("elementwise", args, result)
        return result


def stored(tensor: Tensor) -> int:
    """Bytes of a tensor in memory of this rank, where an expanded axis takes none."""
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return torch.Size(sizes).numel() * tensor.element_size()


def flops_of(name: str, args: Any, result: Any) -> float:
    from torch.utils.flop_counter import flop_registry

    if name == "wide_product":
        out, left, _, _, _ = args
        return 2.0 * out.numel() * left.shape[-1]
    packet = getattr(torch.ops.aten, name.rstrip("_"))
    if packet not in flop_registry:
        return 0.0
    return float(flop_registry[packet](*args, out_val=result))
