"""The `open_clip_config.json` beside a checkpoint: each of its keys is honoured, changes nothing here, or is refused.

Defaults are those of open_clip, so that a key that is not there has a value too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llip import storage
from llip.config import NORM_EPSILON, Activation, ModelConfig, PreprocessConfig, TextConfig, VisionConfig
from llip.fields import to_dict
from llip.interop.tensor_files import read_json

CONFIG = "open_clip_config.json"

Neutral = dict[str, tuple[Any, ...]]
"""Values of a key with which a model computes what this project's does; none: any value."""

ATTENTION: Neutral = {
    "block_type": (None, "default"),
    "qk_norm": (False, None),
    "scaled_cosine_attn": (False, None),
    "scale_heads": (False, None),
    "scale_attn_inner": (False, None),
    "scale_attn": (False, None),
    "scale_fc": (False, None),
    "ls_init_value": (None,),
    "output_tokens": (),  # what is returned besides
    "final_ln_after_pool": (),  # a norm of one position is the same before and after that position is taken
}

VISION: Neutral = ATTENTION | {
    "attentional_pool": (False, None),
    "attn_pooler_queries": (),
    "attn_pooler_heads": (),  # without attentional_pool
    "no_ln_pre": (False, None),
    "pos_embed_type": (),  # either is in the weights
    "pool_type": ("tok",),
    "timm_model_name": (None, ""),
    "timm_model_pretrained": (),
    "timm_pool": (),
    "timm_proj": (),
    "timm_proj_bias": (),
    "timm_drop": (),
    "timm_drop_path": (),  # without timm_model_name
}

TEXT: Neutral = ATTENTION | {
    "hf_tokenizer_name": (None, ""),
    "tokenizer_mode": (),  # of Hugging Face's
    "embed_cls": (False, None),
    "pad_id": (),  # what stands behind the end of text is seen by nothing under a causal mask
    "no_causal_mask": (False, None),
    "proj_bias": (False, None),
    "proj_type": ("linear",),
    "hf_model_name": (None, ""),
    "hf_model_pretrained": (),
    "hf_proj_type": (),
    "hf_pooler_type": (),  # without hf_model_name
}

MODEL: Neutral = {
    "init_logit_scale": (),
    "init_logit_bias": (),
    "nonscalar_logit_scale": (),  # the weights hold the numbers
    "custom_text": (),  # shows in the names of the weights
    "multimodal_cfg": (None,),
}

TOP: Neutral = {"model_cfg": (), "preprocess_cfg": ()}

HONOURED = {
    "model_cfg": ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu"),
    "vision_cfg": (
        "image_size",
        "patch_size",
        "width",
        "layers",
        "head_width",
        "mlp_ratio",
        "patch_dropout",
        "norm_kwargs",
        "act_kwargs",
    ),
    "text_cfg": (
        "context_length",
        "vocab_size",
        "width",
        "heads",
        "layers",
        "mlp_ratio",
        "pool_type",
        "eos_id",
        "norm_kwargs",
        "act_kwargs",
        "tokenizer_kwargs",
    ),
    "preprocess_cfg": ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"),
}


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Settings of the file that shapes do not show. A setting that this project does not compute is refused."""

    uri: str
    activation: Activation
    """Activation of the image tower, and of the text tower where that has no other."""
    text_activation: Activation | None
    vision_norm_epsilon: float
    text_norm_epsilon: float
    vision_head_width: int
    text_head_width: int
    patch_dropout: float
    preprocessing: PreprocessConfig
    shapes: dict[str, Any]
    """By key, what the tensors have to have as well; only keys that the file has."""

    def applied_to(self, config: ModelConfig) -> ModelConfig:
        """The configuration that shapes tell, completed. Raises ValueError where it contradicts the file."""
        vision, text = config.vision, config.text
        found = {
            "embed_dim": config.embed_dim,
            "vision_cfg.image_size": vision.image_size,
            "vision_cfg.patch_size": vision.patch_size,
            "vision_cfg.width": vision.width,
            "vision_cfg.layers": vision.layers,
            "vision_cfg.mlp_ratio": vision.mlp_width or 4 * vision.width,
            "text_cfg.context_length": text.context_length,
            "text_cfg.vocab_size": text.vocabulary,
            "text_cfg.width": text.width,
            "text_cfg.layers": text.layers,
            "text_cfg.mlp_ratio": text.mlp_width or 4 * text.width,
            "preprocess_cfg.size": vision.image_size,
        }
        for key, value in self.shapes.items():
            if value != found[key]:
                says = f"{value} hidden units" if key.endswith("mlp_ratio") else value
                raise ValueError(f"{self.uri}: {key} says {says}, and the weights beside it have {found[key]}")
        return replace(
            config,
            activation=self.activation,
            vision=replace(vision, patch_dropout=self.patch_dropout, norm_epsilon=self.vision_norm_epsilon),
            text=replace(text, activation=self.text_activation, norm_epsilon=self.text_norm_epsilon),
            preprocessing=self.preprocessing,
        )


def read(checkpoint: str) -> Sidecar | None:
    """The file beside a checkpoint; None where there is none.

    Raises ValueError, naming the key and what it would have to be, where a model of it computes anything else.
    """
    uri = storage.beside(checkpoint, CONFIG) if "/" in checkpoint else CONFIG
    if not storage.exists(uri):
        return None
    content = read_json(uri)
    _check(uri, "", content, TOP)
    model = _section(uri, content, "model_cfg")
    _check(uri, "model_cfg", model, MODEL)
    vision, text = _section(uri, model, "vision_cfg"), _section(uri, model, "text_cfg")
    _check(uri, "vision_cfg", vision, VISION)
    _check(uri, "text_cfg", text, TEXT)
    preprocess = content.get("preprocess_cfg") or {}
    _check(uri, "preprocess_cfg", preprocess, {})
    quick_gelu = bool(model.get("quick_gelu"))
    activation = _activation(uri, "vision_cfg", vision, quick_gelu=quick_gelu)
    of_text = _activation(uri, "text_cfg", text, quick_gelu=quick_gelu)
    _check_end_of_text(uri, text)
    if (cleaning := text.get("tokenizer_kwargs")) not in (None, {}, {"clean": "lower"}):
        _refuse(uri, "text_cfg.tokenizer_kwargs", cleaning, "absent: captions are cleaned as CLIP's are")
    if isinstance(vision.get("layers"), list):
        _refuse(uri, "vision_cfg.layers", vision["layers"], "one number: this one is a ResNet")
    width, heads = text.get("width", 512), text.get("heads", 8)
    if width % heads:
        _refuse(uri, "text_cfg.heads", heads, f"a divisor of the width {width}")
    return Sidecar(
        uri=uri,
        activation=activation,
        text_activation=of_text if of_text != activation else None,
        vision_norm_epsilon=_norm_epsilon(uri, "vision_cfg", vision),
        text_norm_epsilon=_norm_epsilon(uri, "text_cfg", text),
        vision_head_width=vision.get("head_width", 64),
        text_head_width=width // heads,
        patch_dropout=vision.get("patch_dropout") or 0.0,
        preprocessing=_preprocessing(uri, preprocess),
        shapes=dict(_shapes(uri, model, vision, text, preprocess)),
    )


def describe(config: ModelConfig) -> dict[str, Any]:
    """The content of the file for a class-token model. Raises ValueError for QuickGELU in one tower alone."""
    vision, text, preprocessing = config.vision, config.text, to_dict(config.preprocessing)
    if ((text.activation or config.activation) == "quick_gelu") != (config.activation == "quick_gelu"):
        raise ValueError(
            f"open_clip has QuickGELU in both towers or in none; model.activation is {config.activation}, "
            f"model.text.activation {text.activation}"
        )
    model_cfg = {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.activation == "quick_gelu",
        "init_logit_bias": config.init_logit_bias,
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.width,
            "layers": vision.layers,
            "head_width": vision.head_width,
            "mlp_ratio": _mlp_ratio(vision),
            "patch_dropout": vision.patch_dropout,
            "norm_kwargs": {"eps": vision.norm_epsilon},
            "act_kwargs": _act_kwargs(config.activation),
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocabulary,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": _mlp_ratio(text),
            "norm_kwargs": {"eps": text.norm_epsilon},
            "act_kwargs": _act_kwargs(text.activation or config.activation),
        },
    }
    preprocess_cfg = {
        "size": vision.image_size,
        "mean": preprocessing["mean"],
        "std": preprocessing["std"],
        "interpolation": preprocessing["interpolation"],
        "resize_mode": preprocessing["resize"],
        "fill_color": preprocessing["fill"],
    }
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}


def _mlp_ratio(tower: VisionConfig | TextConfig) -> float:
    """Half a unit above the ratio: open_clip truncates `width * ratio`, which rounding could bring below the width."""
    return ((tower.mlp_width or 4 * tower.width) + 0.5) / tower.width


def _shapes(
    uri: str, model: dict[str, Any], vision: dict[str, Any], text: dict[str, Any], preprocess: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    if "embed_dim" in model:
        yield "embed_dim", model["embed_dim"]
    for where, tower, keys in (
        ("vision_cfg", vision, ("image_size", "patch_size", "width", "layers")),
        ("text_cfg", text, ("context_length", "vocab_size", "width", "layers")),
        ("preprocess_cfg", preprocess, ("size",)),
    ):
        for key in keys:
            if tower.get(key) is not None:
                yield f"{where}.{key}", _square(uri, f"{where}.{key}", tower[key])
        if "mlp_ratio" in tower and "width" in tower:
            yield f"{where}.mlp_ratio", int(tower["width"] * tower["mlp_ratio"])


def _square(uri: str, key: str, size: Any) -> Any:
    if not isinstance(size, list):
        return size
    sides = size[-2:]
    if len(set(sides)) != 1:
        _refuse(uri, key, size, "a square")
    return sides[0]


def _preprocessing(uri: str, values: dict[str, Any]) -> PreprocessConfig:
    """Raises ValueError for what is no preparation of RGB images."""
    if values.get("mode", "RGB") != "RGB":
        _refuse(uri, "preprocess_cfg.mode", values["mode"], "RGB")
    renamed = {"resize_mode": "resize", "fill_color": "fill"}
    keys = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    given = {renamed.get(key, key): values[key] for key in keys if values.get(key) is not None}
    for key in ("mean", "std"):
        if key in given:
            given[key] = tuple(given[key]) if isinstance(given[key], list) else (given[key],) * 3
    if given.get("interpolation") == "random":  # in training; open_clip evaluates with bicubic then
        given["interpolation"] = "bicubic"
    try:
        return PreprocessConfig(**given)
    except ValueError as error:
        raise ValueError(f"{uri}: preprocess_cfg: {error}") from error


def _section(uri: str, content: dict[str, Any], key: str) -> dict[str, Any]:
    section = content.get(key)
    if not isinstance(section, dict):
        raise ValueError(f"{uri} has no {key}; open_clip writes one")
    return section


def _check(uri: str, where: str, values: dict[str, Any], neutral: Neutral) -> None:
    """Raises ValueError for a key that nothing here knows, and for a value that nothing here computes."""
    for key, value in values.items():
        name = f"{where}.{key}".lstrip(".").removeprefix("model_cfg.")
        if key in HONOURED.get(where, ()):
            continue
        if key not in neutral:
            _refuse(uri, name, value, "absent: what it changes is not known here")
        if neutral[key] and value not in neutral[key]:
            _refuse(uri, name, value, " or ".join(_json(v) for v in neutral[key] if v != ""))


def _norm_epsilon(uri: str, where: str, tower: dict[str, Any]) -> float:
    """The epsilon of a tower's norms. Raises ValueError for other arguments of theirs that change anything."""
    arguments = tower.get("norm_kwargs") or {}
    for key, value in arguments.items():
        if key == "eps":
            if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
                _refuse(uri, f"{where}.norm_kwargs.eps", value, "a positive number")
        elif (key, value) not in (("elementwise_affine", True), ("bias", True)):
            _refuse(uri, f"{where}.norm_kwargs.{key}", value, "absent")
    return float(arguments.get("eps", NORM_EPSILON))


GELUS: dict[str, Activation] = {"none": "gelu", "tanh": "gelu_tanh"}
"""By the argument `approximate` of PyTorch's."""


def _activation(uri: str, where: str, tower: dict[str, Any], *, quick_gelu: bool) -> Activation:
    """The activation of a tower's MLPs. Raises ValueError for arguments that they do not take."""
    arguments = tower.get("act_kwargs") or {}
    for key, value in arguments.items():
        if quick_gelu:
            _refuse(uri, f"{where}.act_kwargs.{key}", value, "absent: QuickGELU takes no arguments")
        if key != "approximate" or value not in GELUS:
            _refuse(uri, f"{where}.act_kwargs.{key}", value, "none or tanh" if key == "approximate" else "absent")
    return "quick_gelu" if quick_gelu else GELUS[arguments.get("approximate", "none")]


def _act_kwargs(activation: Activation) -> dict[str, str] | None:
    return {"approximate": "tanh"} if activation == "gelu_tanh" else None


def _check_end_of_text(uri: str, text: dict[str, Any]) -> None:
    """A caption's state is that at its highest token, which CLIP's end of text is."""
    pool, end = text.get("pool_type", "argmax"), text.get("vocab_size", 49408) - 1
    if pool == "eos" and text.get("eos_id", 2) != end:
        _refuse(uri, "text_cfg.eos_id", text.get("eos_id", 2), f"{end}, the highest id, which ends a caption")
    if pool not in ("argmax", "eos"):
        _refuse(uri, "text_cfg.pool_type", pool, "argmax, or eos with the highest id")


def _json(value: Any) -> str:
    return {None: "null", False: "false", True: "true"}.get(value, str(value))


def _refuse(uri: str, key: str, value: Any, right: str) -> None:
    raise ValueError(f"{uri}: {key} is {value!r}, which this project's models do not compute; it has to be {right}")
