"""Capacity planner: what a recipe needs on a cluster, before anybody pays for one.

    python cluster/plan.py --recipe llip_h14_k64 --gpus 256
    python cluster/plan.py --recipe llip_b16_k32_cc12m --gpus 1 --objective.micro-batch 256 --pool 12000000

Parameters and FLOPs of the towers are counted on the model itself; memory is an estimate.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from llip.config import ModelConfig, TextConfig, TrainingConfig, VisionConfig
from pipelines import command
from pipelines.command import Trained

if TYPE_CHECKING:
    from llip.summary import ModelSize

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One GPU, from its maker's data sheet."""

    bf16_flops: float
    """Dense matrix FLOPs a second in bf16."""
    memory: int
    """Bytes."""
    bandwidth: float
    """Bytes a second of that memory."""


ACCELERATORS = {
    "a100-40gb": Accelerator(bf16_flops=312e12, memory=40 * GIB, bandwidth=1.555e12),
    "a100-80gb": Accelerator(bf16_flops=312e12, memory=80 * GIB, bandwidth=2.039e12),
    "h100-80gb": Accelerator(bf16_flops=989e12, memory=80 * GIB, bandwidth=3.35e12),
}


@dataclass(frozen=True, kw_only=True)
class Plan(Trained):
    """Run to plan."""

    gpus: int
    """GPUs that train together, with shares of the batch as equal as its lanes allow."""
    gpu: Literal["a100-40gb", "a100-80gb", "h100-80gb"] = "a100-80gb"
    mfu: float = 0.35
    """Model FLOPs utilisation of the towers: the share of the GPUs' peak that they reach, 0.37 for the paper's CLIP
    L/14. Pair scores take the time of their bytes and products."""
    caption_tokens: int | None = None
    """Tokens of a caption on average; the context length where not given."""
    pool: int = 400_000_000
    """Images in the shards, of which epochs are counted."""
    image_bytes: int = 30_000
    """Bytes of an image in the shards (JPEG, short side 256)."""

    def __post_init__(self) -> None:
        for name in ("gpus", "caption_tokens", "pool", "image_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it has to be at least 1")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is {self.mfu}; it has to be a share in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU under data parallelism: every GPU holds the whole model."""

    parameters: int
    """fp32, and the bf16 copies that autocast keeps during a step."""
    gradients: int
    optimizer: int
    """AdamW's two moments, fp32."""
    activations: int
    """Tensors that both towers keep for the backward pass."""
    pairs: int
    """Scoring one tile, and the gathered captions with their gradients."""

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.pairs


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The plan's result."""

    batch_size: int
    batch_per_gpu: int
    steps: int
    size: "ModelSize"
    """Parameters, and forward FLOPs of an image and of a caption."""
    tower_flops: float
    """Model FLOPs of a step in the towers, the head's projections and the prediction of words, forward and backward."""
    pair_flops: float
    """Model FLOPs of a step in the pair scores, forward and backward."""
    memory: Memory
    seconds_per_step: float
    pair_seconds: float
    """Seconds of a step in the pair scores."""
    days: float
    shard_bytes: int
    read_bytes_per_second: float
    """Bytes a second that all GPUs together read, so that none waits."""
    checkpoint_bytes: int

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.seconds_per_step


def plan(settings: Plan) -> Capacity:
    """Capacity for a configuration. Raises ValueError for one that contradicts itself and for more GPUs than lanes."""
    from llip.summary import step_flops, summarise

    config = settings.training().for_rows(settings.pool)
    data = config.data
    if settings.gpus > data.lane_count:
        raise ValueError(f"gpus is {settings.gpus}; it has to be at most the {data.lane_count} lanes of a batch")
    largest_share = -(-data.lane_count // settings.gpus) * (data.batch_size // data.lane_count)
    gpu = ACCELERATORS[settings.gpu]
    tokens = settings.caption_tokens or config.model.text.context_length
    size, flops = summarise(config.model, tokens), step_flops(config, tokens)
    recomputed = 4 / 3 if config.activation_checkpointing or config.objective.micro_batches(largest_share) > 1 else 1
    of_pairs = data.captions_per_image * data.batch_size**2 / settings.gpus * pair_seconds(config, gpu)
    seconds = recomputed * flops.towers / (settings.gpus * gpu.bf16_flops * settings.mfu) + of_pairs
    return Capacity(
        batch_size=data.batch_size,
        batch_per_gpu=largest_share,
        steps=config.total_steps,
        size=size,
        tower_flops=flops.towers,
        pair_flops=flops.pairs,
        memory=memory(config, size.parameters, largest_share, tokens),
        seconds_per_step=seconds,
        pair_seconds=of_pairs,
        days=config.total_steps * seconds / 86_400,
        shard_bytes=settings.pool * settings.image_bytes,
        read_bytes_per_second=data.batch_size * settings.image_bytes / seconds,
        checkpoint_bytes=12 * size.parameters,
    )


def pair_seconds(config: TrainingConfig, gpu: Accelerator) -> float:
    """Seconds of one (image, caption) pair, forward and backward: what goes through memory, and the products.

    Counted for the tiles that a GPU takes, at the share of its bandwidth and of its peak that `llip.devices` assumes of
    an A100: kernels of Triton and the making of Gram matrices, or compiled functions between products.
    tests/benchmarks/bench_gpu_budget.py counts the same on the step as it runs.
    """
    from llip.devices import A100
    from llip.pairs.scoring import fused_costs, gram_is_cheaper, gram_making
    from llip.pairs.triton_costs import seconds_of_pair

    assert A100.bandwidth is not None and A100.product_flops is not None and A100.single_flops is not None
    reference = ACCELERATORS["a100-80gb"]
    of_memory, of_products = gpu.bandwidth / reference.bandwidth, gpu.bf16_flops / reference.bf16_flops
    device = replace(
        A100,
        bandwidth=A100.bandwidth * of_memory,
        cache_bandwidth=A100.cache_bandwidth * of_memory,
        product_flops=A100.product_flops * of_products,
        kernel_flops=A100.kernel_flops * of_products,
        single_flops=A100.single_flops * of_products,
    )
    assert device.bandwidth is not None and device.product_flops is not None and device.single_flops is not None
    model, columns = config.model, config.data.batch_size * config.data.captions_per_image
    d, k, m = model.embed_dim, model.mixture_tokens, model.head.heads
    of_loss = 4 * LOSS_NUMBERS / device.bandwidth
    if model.head.kind not in ("text_query", "image_query"):
        return of_loss + 3 * 2 * d / device.product_flops
    split = config.objective.split_gram
    if gram_is_cheaper(tokens=k, heads=m, dim=d, columns=columns, gradients=True, split=split, device=device):
        making = 2 * gram_making(m * k, d, m, gradients=True) / device.single_flops / columns
        return of_loss + making + seconds_of_pair(device, heads=m, tokens=k, width=d // m, split=split)
    _, (numbers, multiplications) = fused_costs(m * k, d, gradients=True, split=split)
    return of_loss + 4 * numbers / device.bandwidth + 2 * (multiplications + 6 * k * d) / device.product_flops


LOSS_NUMBERS = 30
"""fp32 numbers of a pair that its loss reads and writes, scores and slopes included."""


def memory(config: TrainingConfig, parameters: int, batch_per_gpu: int, caption_tokens: int) -> Memory:
    """Memory of one GPU for its share of a step."""
    model, images = config.model, math.ceil(batch_per_gpu / config.objective.micro_batches(batch_per_gpu))
    bf16 = config.precision == "bf16"
    block = partial(block_bytes, bf16=bf16, checkpointing=config.activation_checkpointing)
    activations = images * (model.vision.tokens + model.vision.patches) * block(model.vision)
    activations += images * config.data.captions_per_image * caption_tokens * block(model.text)
    return Memory(
        parameters=(6 if bf16 else 4) * parameters,
        gradients=4 * parameters,
        optimizer=8 * parameters,
        activations=activations + _word_bytes(model, images),
        pairs=_pair_bytes(config, batch_per_gpu),
    )


def _word_bytes(model: ModelConfig, images: int) -> int:
    """Logits of words and their gradient, in fp32."""
    return 2 * 4 * images * model.text.vocabulary if model.word_weight else 0


def block_bytes(tower: VisionConfig | TextConfig, *, bf16: bool, checkpointing: bool) -> int:
    """Bytes that the blocks of a tower keep for the backward pass, for one position.

    A block keeps the residual stream twice (fp32, before each LayerNorm) and, in the precision of its matrices, the
    input of the query, key and value projection, these three, the mixed values, the input of the MLP, and the hidden
    layer before and after its activation. Checkpointing keeps the input of every block, and one block while it is
    computed again.
    """
    item, width = 2 if bf16 else 4, tower.width
    whole = 2 * 4 * width + item * (6 * width + 2 * (tower.mlp_width or 4 * width))
    return 4 * width * tower.layers + whole if checkpointing else whole * tower.layers


PAIR_TENSORS = 5
"""fp32 tensors of the size of the mixing weights that are alive at once, of a bf16 one half: logits, values, products
with the Gram matrix, and what the next products read."""


def _pair_bytes(config: TrainingConfig, batch_per_gpu: int) -> int:
    """One tile, and every caption of the step as query and target with their gradients, in fp32."""
    from llip.devices import A100

    model, data = config.model, config.data
    mixed = model.head.kind in ("text_query", "image_query")
    columns = min(config.objective.chunk or data.batch_size, data.batch_size)
    tile = min(A100.tile, batch_per_gpu * columns * (model.head.heads * model.mixture_tokens if mixed else 1))
    gathered = (2 if mixed else 1) * model.embed_dim * data.batch_size * data.captions_per_image
    return PAIR_TENSORS * 4 * tile + 2 * 4 * gathered


def table(settings: Plan, capacity: Capacity) -> str:
    """The plan as aligned text."""
    c, m, gpu = capacity, capacity.memory, ACCELERATORS[settings.gpu]
    flops = c.tower_flops + c.pair_flops
    remedy = "--activation-checkpointing, --objective.accumulation or more GPUs"
    share = m.total / gpu.memory
    fits = "fits" if share < 0.85 else f"tight: {remedy}" if share < 0.95 else f"does NOT fit: {remedy}"
    rows = [
        ("recipe", f"{settings.recipe} on {settings.gpus} x {settings.gpu}"),
        ("images seen", f"{c.steps * c.batch_size:,}"),
        ("steps", f"{c.steps:,} of {c.batch_size:,} images, {c.batch_per_gpu:,} a GPU"),
        (
            "parameters",
            f"{c.size.parameters / 1e6:,.1f} M: vision {c.size.vision_parameters / 1e6:,.1f}, "
            f"text {c.size.text_parameters / 1e6:,.1f}, head {c.size.head_parameters / 1e6:,.1f}"
            + (f", words {c.size.word_parameters / 1e6:,.1f}" if c.size.word_parameters else ""),
        ),
        ("model FLOPs a step", f"{flops:.3g}, pair scores {c.pair_flops / flops:.1%}"),
        ("time a step", f"{c.seconds_per_step:.2f} s at {settings.mfu:.0%} MFU, {c.images_per_second:,.0f} images/s"),
        ("  pair scores", f"{c.pair_seconds:.2f} s"),
        ("time of the run", f"{c.days:,.1f} days, {c.days * 24 * settings.gpus:,.0f} GPU hours"),
        ("memory a GPU", f"{m.total / GIB:.1f} of {gpu.memory / GIB:.0f} GiB, {fits}"),
        ("  parameters", f"{m.parameters / GIB:.1f} GiB"),
        ("  gradients", f"{m.gradients / GIB:.1f} GiB"),
        ("  optimizer", f"{m.optimizer / GIB:.1f} GiB"),
        ("  activations", f"{m.activations / GIB:.1f} GiB"),
        ("  pair scores", f"{m.pairs / GIB:.1f} GiB"),
        ("shards", f"{c.shard_bytes / 1e12:.1f} TB for {settings.pool:,} images"),
        ("reading", f"{c.read_bytes_per_second / 1e9:.2f} GB/s in all"),
        ("checkpoint", f"{c.checkpoint_bytes / 1e9:.1f} GB"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def main(settings: Plan) -> Capacity:
    """Print the plan."""
    capacity = plan(settings)
    print(table(settings, capacity))
    return capacity


def cli() -> None:
    """The command line."""
    command.run(Plan, main, "What a recipe needs on a cluster: steps, FLOPs, time, memory a GPU, storage.")


if __name__ == "__main__":
    cli()
