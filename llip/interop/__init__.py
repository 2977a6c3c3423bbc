"""Models in and out of files: this project's own, Llip's public release, and CLIP in the names of OpenAI and open_clip.

No code is ever run: a `.pt` or `.bin` file may hold tensors and plain containers, and any other content is refused.
"""

import math
import pickle
import re
import warnings
import zipfile
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from llip import storage
from llip.config import HeadConfig, ModelConfig, TextConfig, VisionConfig, from_dict, to_dict
from llip.contrastive import ContrastiveModel
from llip.interop import parts, torchscript
from llip.recipes import SIGLIP_INIT_BIAS

WEIGHTS, CONFIG = "model.safetensors", "model.json"
OPEN_CLIP_WEIGHTS, OPEN_CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"

TOWER_NAMES = {
    "vision.patch_embedding": "visual.conv1",
    "vision.tokens": "visual.class_embedding",
    "vision.position": "visual.positional_embedding",
    "vision.norm_before": "visual.ln_pre",
    "vision.norm_after": "visual.ln_post",
    "vision.transformer.blocks": "visual.transformer.resblocks",
    "text.token_embedding": "token_embedding",
    "text.position": "positional_embedding",
    "text.norm_after": "ln_final",
    "text.transformer.blocks": "transformer.resblocks",
    "attention_norm": "ln_1",
    "attention.qkv.": "attn.in_proj_",
    "attention.out": "attn.out_proj",
    "mlp_norm": "ln_2",
    "mlp_up": "mlp.c_fc",
    "mlp_down": "mlp.c_proj",
}
"""Parts of parameter names, here and in OpenAI's CLIP, whose names open_clip, MetaCLIP and Llip's release keep."""

CLIP_NAMES = TOWER_NAMES | {"head.image.proj": "visual.proj", "head.text.proj": "text_projection"}

RELEASE_NAMES = TOWER_NAMES | {
    "head.image.key_proj": "k_proj",
    "head.image.value_proj": "v_proj",
    "head.image.key_norm": "K_norm",
    "head.image.value_norm": "V_norm",
    "head.text.query_proj": "q_proj",
    "head.text.query_norm": "Q_norm",
    "head.text.target_proj": "text_projection",
    "head.out_proj": "pred.out_proj",
}

NO_PARAMETERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Numbers that OpenAI's files hold beside the weights, and the causal mask."""

OTHER_ARCHITECTURES = {
    "text_decoder.": "CoCa",
    "visual.attn_pool.": "a vision transformer with attention pooling (CoCa, SigLIP)",
    "visual.trunk.attn_pool.": "SigLIP with attention pooling (MAP)",
    "visual.trunk.": "a model with an image tower of timm",
    "visual.attnpool.": "CLIP with a ResNet",
    "text.transformer.": "a model with a text tower of its own class",
    "text_model.": "a model in the names of Hugging Face's transformers",
}
"""By how names of their parameters start."""

VISION_HEAD_WIDTHS = {1280: 80, 1664: 104}
"""Width of an attention head where it is not 64, by the width of the tower: H/14 and bigG/14."""


def save_model(model: ContrastiveModel, folder: str) -> None:
    """Write `model.safetensors` and `model.json`, its configuration, into a folder, local or remote."""
    storage.write_bytes(storage.join(folder, WEIGHTS), parts.serialise(model.state_dict()))
    storage.write_json(storage.join(folder, CONFIG), to_dict(model.config))


def load_model(folder: str) -> ContrastiveModel:
    """The model that `save_model` or a training run wrote, on the CPU.

    Raises ValueError where the folder does not hold one.
    """
    config_file = storage.join(folder, CONFIG)
    if not storage.exists(config_file):
        raise ValueError(f"{config_file} does not exist: {folder} does not hold a model")
    return _assemble(from_dict(ModelConfig, storage.read_json(config_file)), parts.read(folder, "model"), {}, folder)


def load_llip_release(
    path: str,
    *,
    num_heads: int = 8,
    temperature: float = 5.0,
    vision_head_width: int = 64,
    text_head_width: int = 64,
) -> ContrastiveModel:
    """A checkpoint of Llip's public release (facebookresearch/Llip), local or remote.

    The keyword arguments are what shapes cannot tell: B/32 and B/16 have the defaults, L/14 `temperature=1.0`, H/14
    `vision_head_width=80`, bigG/14 104. Raises ValueError for a file of another format, naming what does not fit.
    """
    state = _read_state(path)
    if "out_proj" in state:  # its name in older files
        state["pred.out_proj"] = state.pop("out_proj")
    _check_tokens(state, 2, "[K, width] of Llip's tokens", path)
    head = HeadConfig(heads=num_heads, temperature=temperature, norm="K_norm.weight" in state)
    return _assemble(_config_of(state, head, vision_head_width, text_head_width, path), state, RELEASE_NAMES, path)


def load_open_clip(path: str, *, quick_gelu: bool | None = None) -> ContrastiveModel:
    """A CLIP checkpoint of OpenAI, open_clip or MetaCLIP with a vision transformer, local or remote.

    Weights show neither their activation nor the number of heads: an `open_clip_config.json` beside them tells.
    Without one, heads have the widths of the published sizes, and `quick_gelu` says which activation: that of OpenAI's
    and MetaCLIP's weights, or the exact GELU of most that open_clip's authors trained. None takes QuickGELU and warns,
    unless the file is one of OpenAI's. Raises ValueError for any other model, naming what does not fit.
    """
    state = _read_state(path)
    by_openai = "input_resolution" in state
    state = {name: tensor for name, tensor in state.items() if not name.endswith(NO_PARAMETERS)}
    sidecar = _read_sidecar(path)
    if sidecar is not None and quick_gelu not in (None, sidecar.quick_gelu):
        raise ValueError(f"quick_gelu={quick_gelu} contradicts the {OPEN_CLIP_CONFIG} beside {path}")
    _refuse_other_architectures(state, path)
    _check_tokens(state, 1, "of one class token", path)
    if "visual.class_embedding" in state:
        state["visual.class_embedding"] = state["visual.class_embedding"][None]
    width = len(state.get("visual.conv1.weight", ()))
    told = sidecar or _Sidecar(quick_gelu is not False, None, None)
    head_widths = told.vision_head_width or VISION_HEAD_WIDTHS.get(width, 64), told.text_head_width or 64
    config = _config_of(state, HeadConfig(kind="class_token"), *head_widths, path)
    config = replace(config, activation="quick_gelu" if told.quick_gelu else "gelu")
    model = _assemble(config, state, CLIP_NAMES, path)
    if sidecar is None and quick_gelu is None and not by_openai:
        warnings.warn(
            f"{path} does not say its activation, and no {OPEN_CLIP_CONFIG} lies beside it: taken for QuickGELU, "
            "as OpenAI's and MetaCLIP's weights are. Say quick_gelu=True, or quick_gelu=False for the exact GELU",
            stacklevel=2,
        )
    return model


def export_open_clip(model: ContrastiveModel, folder: str) -> None:
    """Write a CLIP or SigLIP model so that `open_clip.create_model("local-dir:<folder>")` reads it.

    Raises ValueError for a model that open_clip cannot express: any head but `class_token`.
    """
    config = model.config
    if config.head.kind != "class_token":
        raise ValueError(f"open_clip has no {config.head.kind} head; only class_token models can be exported to it")
    state = {_their_name(name, CLIP_NAMES): tensor for name, tensor in model.state_dict().items()}
    state["visual.class_embedding"] = state["visual.class_embedding"][0]
    storage.write_bytes(storage.join(folder, OPEN_CLIP_WEIGHTS), parts.serialise(state))
    model_cfg = {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.activation == "quick_gelu",
        "init_logit_bias": config.init_logit_bias,
        "vision_cfg": {
            "image_size": config.vision.image_size,
            "patch_size": config.vision.patch_size,
            "width": config.vision.width,
            "layers": config.vision.layers,
            "head_width": config.vision.head_width,
            "mlp_ratio": _mlp_ratio(config.vision),
        },
        "text_cfg": {
            "context_length": config.text.context_length,
            "vocab_size": config.text.vocabulary,
            "width": config.text.width,
            "heads": config.text.heads,
            "layers": config.text.layers,
            "mlp_ratio": _mlp_ratio(config.text),
        },
    }
    storage.write_json(storage.join(folder, OPEN_CLIP_CONFIG), {"model_cfg": model_cfg, "preprocess_cfg": {}})


def _mlp_ratio(tower: VisionConfig | TextConfig) -> float:
    """Half a unit above the ratio: open_clip truncates `width * ratio`, which rounding could bring below the width."""
    return ((tower.mlp_width or 4 * tower.width) + 0.5) / tower.width


class _Sidecar(NamedTuple):
    """What the `open_clip_config.json` beside a checkpoint tells of what shapes do not; None where untold."""

    quick_gelu: bool
    vision_head_width: int | None
    text_head_width: int | None


def _read_sidecar(path: str) -> _Sidecar | None:
    folder, slash, _ = path.rpartition("/")
    file = f"{folder}{slash}{OPEN_CLIP_CONFIG}"
    if not storage.exists(file):
        return None
    values = storage.read_json(file)["model_cfg"]
    vision, text = values["vision_cfg"], values["text_cfg"]
    text_head_width = text["width"] // text["heads"] if "heads" in text else None
    return _Sidecar(values.get("quick_gelu", False), vision.get("head_width"), text_head_width)


def _read_state(path: str) -> dict[str, Tensor]:
    """Named tensors of a .safetensors, .pt, .pth or .bin file, with the prefixes of wrappers removed from the names."""
    if not storage.exists(path):
        raise ValueError(f"{path} does not exist")
    if path.endswith(".safetensors"):
        if storage.is_local(path):
            return safetensors.torch.load_file(storage.absolute(path))
        return safetensors.torch.load(storage.read_bytes(path))
    if not path.endswith((".pt", ".pth", ".bin")):
        raise ValueError(f"{path} is not a checkpoint by its name: it has to end with .safetensors, .pt, .pth or .bin")
    files, inner_path = storage.filesystem(path)
    with files.open(inner_path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is not a file that torch.save has written")
        try:
            archive = torchscript.is_archive(file)
            file.seek(0)
            read = torchscript.read_tensors if archive else partial(torch.load, map_location="cpu", weights_only=True)
            content = read(file)
        except (pickle.UnpicklingError, RuntimeError) as error:
            raise ValueError(_refusal(path, str(error))) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold named tensors, neither by itself nor under 'state_dict'")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in state.items()}


def _refusal(path: str, error: str) -> str:
    if found := re.search(r"GLOBAL (\S+)", error):
        return f"{path} holds a {found[1]} beside its tensors, and reading that could run code; save the tensors alone"
    return f"{path} cannot be read: {error.splitlines()[0]}"


def _refuse_other_architectures(state: dict[str, Tensor], path: str) -> None:
    for prefix, architecture in OTHER_ARCHITECTURES.items():
        if found := [name for name in state if name.startswith(prefix)]:
            raise ValueError(f"{path} holds {found[0]}: it is {architecture}, not CLIP with a class-token transformer")


def _check_tokens(state: dict[str, Tensor], axes: int, expected: str, path: str) -> None:
    tokens = state.get("visual.class_embedding")
    if tokens is not None and tokens.ndim != axes:
        raise ValueError(f"{path}: visual.class_embedding has shape {list(tokens.shape)}, not {expected}")


def _config_of(
    state: dict[str, Tensor], head: HeadConfig, vision_head_width: int, text_head_width: int, path: str
) -> ModelConfig:
    """What the shapes of a checkpoint in OpenAI's names say about its towers."""
    vision = ["visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight", "visual.ln_pre.weight"]
    needed = [*vision, "positional_embedding", "token_embedding.weight", "text_projection"]
    if missing := [name for name in needed if name not in state]:
        names = ", ".join(sorted(state)[:5])
        raise ValueError(f"{path} is not CLIP with a vision transformer: it has no {missing[0]}, but {names}, …")
    tokens, width = state["visual.class_embedding"].shape
    patch_size, patches = state["visual.conv1.weight"].shape[-1], len(state["visual.positional_embedding"]) - tokens
    vision_layers, vision_mlp = _depth(state, "visual.transformer", path)
    context_length, text_width = state["positional_embedding"].shape
    text_layers, text_mlp = _depth(state, "transformer", path)
    return ModelConfig(
        embed_dim=state["text_projection"].shape[1],
        vision=VisionConfig(
            image_size=patch_size * math.isqrt(patches),
            patch_size=patch_size,
            width=width,
            layers=vision_layers,
            head_width=vision_head_width,
            mlp_width=None if vision_mlp == 4 * width else vision_mlp,
            tokens=tokens,
        ),
        text=TextConfig(
            context_length=context_length,
            vocabulary=len(state["token_embedding.weight"]),
            width=text_width,
            heads=text_width // text_head_width,
            layers=text_layers,
            mlp_width=None if text_mlp == 4 * text_width else text_mlp,
        ),
        head=head,
        init_logit_bias=SIGLIP_INIT_BIAS if "logit_bias" in state else None,
    )


def _depth(state: dict[str, Tensor], tower: str, path: str) -> tuple[int, int]:
    """Number of blocks of a tower, and the hidden width of their MLP."""
    found = [re.match(rf"{re.escape(tower)}\.resblocks\.(\d+)\.mlp\.c_fc\.bias", name) for name in state]
    blocks = {int(match[1]): match[0] for match in found if match}
    if not blocks:
        raise ValueError(f"{path} is not CLIP with two transformers: it has no {tower}.resblocks.0.mlp.c_fc.bias")
    return len(blocks), len(state[blocks[0]])


def _their_name(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def _assemble(config: ModelConfig, state: dict[str, Tensor], names: dict[str, str], path: str) -> ContrastiveModel:
    """A model of these tensors, as float32. Raises ValueError unless they are exactly its parameters."""
    with torch.device("meta"):  # without drawing weights first
        model = ContrastiveModel(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    theirs = {name: _their_name(name, names) for name in shapes}
    if missing := sorted(set(theirs.values()) - state.keys()):
        raise ValueError(f"{path} lacks {', '.join(missing[:5])} of a {config.head.kind} model")
    if unknown := sorted(state.keys() - set(theirs.values())):
        raise ValueError(f"{path} holds {', '.join(unknown[:5])}, which a {config.head.kind} model does not have")
    tensors = {name: state[theirs[name]].float() for name in shapes}
    for name in ("logit_scale", "logit_bias"):
        if name in tensors and tensors[name].numel() == 1:  # some versions of open_clip write vectors of one number
            tensors[name] = tensors[name].reshape(())
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{path}: {theirs[name]} has shape {list(tensor.shape)}, not {list(shapes[name])}")
    model.load_state_dict(tensors, assign=True)
    return model
