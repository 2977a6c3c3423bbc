"""From a recipe and overrides to a training configuration; contradictions are refused in the command line's words."""

from dataclasses import replace
from typing import Any, Literal

from llip.config import Head, HeadConfig, ModelConfig, TrainingConfig
from llip.recipes import SIZES, recipe, size_of

Objective = Literal["clip", "siglip", "llip", "register", "mean", "learned_query"]

HEADS: dict[Objective, Head] = {
    "clip": "class_token",
    "siglip": "class_token",
    "llip": "text_query",
    "register": "register",
    "mean": "mean",
    "learned_query": "learned_query",
}
QUERIED: tuple[Head, ...] = ("learned_query", "text_query", "image_query")
"""Heads with a query, for which the number of heads and the temperature mean something."""


def configure(
    name: str,
    *,
    objective: Objective | None = None,
    k: int | None = None,
    heads: int | None = None,
    temperature: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    captions_per_image: int | None = None,
    synthetic_share: float | None = None,
    weights: tuple[float, ...] | None = None,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    checkpoint_every: int | None = None,
    evaluate_every: int | None = None,
    parallel: Literal["ddp", "fsdp"] | None = None,
    ema_decay: float | None = None,
    nonfinite: Literal["stop", "skip"] | None = None,
    init_from: str | None = None,
    peak_flops: float | None = None,
    seed: int | None = None,
) -> TrainingConfig:
    """The configuration of recipe `name` with some of its values replaced; None keeps the recipe's.

    Raises ValueError for options that contradict each other or the recipe, naming them as the command line does.
    """
    config = recipe(name)
    for flag, value in (("--k", k), ("--steps", steps), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} is {value}; it has to be at least 1")
    if objective is not None:
        config = _with_objective(config, objective, name)
    config = replace(config, model=_with_head(config.model, _family(config), k=k, heads=heads, temperature=temperature))
    if logit_bias is not None and config.objective.loss == "softmax":
        raise ValueError(f"--logit-bias {logit_bias:g}: no bias changes CLIP's softmax; it belongs to sigmoid losses")
    config = replace(config, model=_given(config.model, init_logit_scale=logit_scale, init_logit_bias=logit_bias))
    if batch_size is not None and batch_size % config.data.lanes:
        raise ValueError(
            f"--batch-size {batch_size} is not a multiple of the {config.data.lanes} lanes of recipe {name}"
        )
    if steps is not None:  # a short run keeps a short warm-up
        warmup = min(config.optimizer.warmup_steps, steps // 8)
        config = replace(config, steps=steps, optimizer=replace(config.optimizer, warmup_steps=warmup))
    config = replace(
        config,
        optimizer=_given(config.optimizer, learning_rate=learning_rate),
        data=_given(
            config.data,
            batch_size=batch_size,
            captions_per_image=captions_per_image,
            synthetic_share=synthetic_share,
            weights=weights,
        ),
    )
    return _given(
        config,
        precision=precision,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
        parallel=parallel,
        ema_decay=ema_decay,
        nonfinite=nonfinite,
        init_from=init_from,
        peak_flops=peak_flops,
        seed=seed,
    )


def run_name(name: str, config: TrainingConfig) -> str:
    """A name that says what a run trains: size, family, K, M, whatever differs from recipe `name`, and the seed."""
    model, family = config.model, _family(config)
    size = size_of(model)
    pieces = [f"{family}_{size}"]
    pieces += [f"k{model.mixture_tokens}"] if family not in ("clip", "siglip") else []
    pieces += [f"m{model.head.heads}"] if model.head.kind in QUERIED else []
    base = recipe(name)
    changed = {
        "tau": (base.model.head.temperature, model.head.temperature),
        "steps": (base.steps, config.steps),
        "batch": (base.data.batch_size, config.data.batch_size),
        "lr": (base.optimizer.learning_rate, config.optimizer.learning_rate),
        "captions": (base.data.captions_per_image, config.data.captions_per_image),
        "synthetic": (base.data.synthetic_share, config.data.synthetic_share),
        "scale": (base.model.init_logit_scale, model.init_logit_scale),
        "bias": (SIZES[size].logit_bias, model.init_logit_bias),
    }
    rest = [f"{what}{new:g}" for what, (old, new) in changed.items() if new is not None and old != new]
    rest += ["mix" + "-".join(f"{weight:g}" for weight in config.data.weights)] if config.data.weights else []
    rest += [f"ema{config.ema_decay:g}"] if config.ema_decay is not None else []
    rest += ["started"] if config.init_from is not None else []
    rest += [config.precision] if config.precision != base.precision else []
    return "-".join(["_".join(pieces), *rest, f"seed{config.seed}"])


def _family(config: TrainingConfig) -> str:
    """The name that people give to a head and a loss."""
    if config.model.head.kind == "class_token":
        return "clip" if config.objective.loss == "softmax" else "siglip"
    return "llip" if config.model.head.kind == "text_query" else config.model.head.kind


def _with_objective(config: TrainingConfig, objective: Objective, name: str) -> TrainingConfig:
    """The same towers under another objective; what the recipe says of the mixture is kept for those that mix."""
    if objective == _family(config):
        return config
    kind = HEADS[objective]
    if kind != "class_token" and config.model.head.kind in ("class_token", "image_query"):
        raise ValueError(
            f"--objective {objective} needs a recipe that says how many image tokens are mixed; {name} does not: "
            f"take one of the {objective}_… recipes"
        )
    softmax = objective == "clip"
    model = replace(
        config.model,
        vision=replace(config.model.vision, tokens=1 if kind == "class_token" else config.model.vision.tokens),
        text=replace(config.model.text, tokens=1),
        head=HeadConfig(kind=kind) if kind == "class_token" else replace(config.model.head, kind=kind),
        init_logit_bias=None if softmax else SIZES[size_of(config.model)].logit_bias,
    )
    return replace(
        config,
        model=model,
        objective=replace(config.objective, loss="softmax" if softmax else "sigmoid"),
        optimizer=replace(config.optimizer, betas=(0.9, 0.98) if softmax else (0.9, 0.95)),
    )


def _with_head(
    model: ModelConfig, family: str, *, k: int | None, heads: int | None, temperature: float | None
) -> ModelConfig:
    kind = model.head.kind
    if k is not None and kind == "class_token":
        raise ValueError(
            f"--k {k}: {family} has one class token; --k belongs to --objective llip, register, mean or learned_query"
        )
    for flag, value in (("--heads", heads), ("--temperature", temperature)):
        if value is not None and kind not in QUERIED:
            raise ValueError(
                f"{flag} {value:g}: {family} has no query that mixes tokens; "
                f"{flag} belongs to --objective llip or learned_query"
            )
    if heads is not None and (heads < 1 or model.embed_dim % heads):
        divisors = [str(n) for n in range(1, model.embed_dim + 1) if model.embed_dim % n == 0]
        raise ValueError(
            f"--heads {heads} does not divide the width {model.embed_dim}; it can be {', '.join(divisors)}"
        )
    model = replace(model, head=_given(model.head, heads=heads, temperature=temperature))
    if kind == "image_query":
        return replace(model, text=_given(model.text, tokens=k))
    return replace(model, vision=_given(model.vision, tokens=k))


def _given(config: Any, **values: Any) -> Any:
    """The configuration with the values that are not None."""
    return replace(config, **{name: value for name, value in values.items() if value is not None})
