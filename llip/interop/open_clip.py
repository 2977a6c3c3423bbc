"""CLIP in the names of OpenAI's, with which open_clip and MetaCLIP publish theirs: in, and out to open_clip."""

import os
import re
import warnings
from dataclasses import replace

from torch import Tensor

from llip import storage
from llip.config import Activation, HeadConfig
from llip.contrastive import ContrastiveModel
from llip.interop import open_clip_config, sharded_safetensors
from llip.interop.names import CLIP_NAMES, translate
from llip.interop.open_clip_config import CONFIG
from llip.interop.tensor_files import read_tensors
from llip.interop.towers import assemble, check_tokens, inference_state, read_config

WEIGHTS = "open_clip_model.safetensors"

NO_PARAMETERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Numbers that OpenAI's files hold beside the weights, and the causal mask."""

TEXT_MODULE = re.compile(
    r"^text\.(?=token_embedding|positional_embedding|transformer\.resblocks|ln_final|text_projection)"
)
"""Prefix of a text tower that is a module of its own (open_clip's `custom_text`)."""

OTHER_ARCHITECTURES = {
    "text_decoder.": "CoCa",
    "visual.attn_pool.": "a vision transformer with attention pooling (CoCa, SigLIP)",
    "visual.trunk.attn_pool.": "SigLIP with attention pooling (MAP)",
    "visual.trunk.": "a model with an image tower of timm",
    "visual.attnpool.": "CLIP with a ResNet",
    "text.transformer.embeddings.": "a model with a text tower of Hugging Face's transformers",
    "text_model.": "a model in the names of Hugging Face's transformers",
}
"""By how names of their parameters start."""


def load_open_clip(
    path: str | os.PathLike[str],
    *,
    tensors: dict[str, Tensor] | None = None,
    activation: Activation | None = None,
    vision_head_width: int | None = None,
    text_head_width: int | None = None,
) -> ContrastiveModel:
    """A CLIP checkpoint of OpenAI, open_clip or MetaCLIP with a vision transformer, local or remote.

    tensors: those of the file, where it was read before.
    Weights show neither their activation nor the number of heads nor how images are prepared for them: an
    `open_clip_config.json` beside them tells. Without one, heads have the widths of the published sizes, images are
    prepared as OpenAI's, and `activation` is quick_gelu for OpenAI's and MetaCLIP's weights, gelu (the exact one) for
    most that open_clip's authors trained. None takes QuickGELU and warns, unless the file is one of OpenAI's.
    Raises ValueError for any other model, naming what does not fit.
    """
    path = os.fspath(path)
    state = read_tensors(path) if tensors is None else tensors
    by_openai = "input_resolution" in state
    state = {TEXT_MODULE.sub("", name): tensor for name, tensor in state.items() if not name.endswith(NO_PARAMETERS)}
    for prefix, architecture in OTHER_ARCHITECTURES.items():
        if found := [name for name in state if name.startswith(prefix)]:
            raise ValueError(f"{path} holds {found[0]}: it is {architecture}, not CLIP with a class-token transformer")
    check_tokens(state, 1, "of one class token", path)
    if "visual.class_embedding" in state:
        state["visual.class_embedding"] = state["visual.class_embedding"][None]
    sidecar = open_clip_config.read(path)
    if sidecar is not None:
        for name, given, says in (
            ("activation", activation, sidecar.activation),
            ("vision_head_width", vision_head_width, sidecar.vision_head_width),
            ("text_head_width", text_head_width, sidecar.text_head_width),
        ):
            if given not in (None, says):
                raise ValueError(f"{name}={given} contradicts the {CONFIG} beside {path}, which says {says}")
        vision_head_width, text_head_width = sidecar.vision_head_width, sidecar.text_head_width
    config = read_config(
        state,
        HeadConfig(kind="class_token"),
        path,
        vision_head_width=vision_head_width,
        text_head_width=text_head_width,
    )
    config = sidecar.applied_to(config) if sidecar else replace(config, activation=activation or "quick_gelu")
    model = assemble(config, state, CLIP_NAMES, path)
    if sidecar is None and activation is None and not by_openai:
        warnings.warn(
            f"{path} does not say its activation, and no {CONFIG} lies beside it: taken for QuickGELU, as OpenAI's and "
            "MetaCLIP's weights are. Say activation='quick_gelu', or 'gelu', the exact one (--activation)",
            stacklevel=2,
        )
    return model


def export_open_clip(model: ContrastiveModel, folder: str | os.PathLike[str]) -> None:
    """Write a CLIP or SigLIP model so that `open_clip.create_model("local-dir:<folder>")` reads it.

    Raises ValueError for a model that open_clip cannot express: any head but `class_token`.
    """
    folder, config = os.fspath(folder), model.config
    if config.head.kind != "class_token":
        raise ValueError(f"open_clip has no {config.head.kind} head; only class_token models can be exported to it")
    state = {translate(name, CLIP_NAMES): tensor for name, tensor in inference_state(model).items()}
    state["visual.class_embedding"] = state["visual.class_embedding"][0]
    storage.write_pieces(storage.join(folder, WEIGHTS), sharded_safetensors.serialise(state))
    storage.write_json(storage.join(folder, CONFIG), open_clip_config.describe(config))
