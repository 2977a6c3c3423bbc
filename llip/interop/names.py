"""Names of parameters here, in the files of OpenAI, open_clip and MetaCLIP, and in Llip's release."""

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


def translate(name: str, names: dict[str, str]) -> str:
    """The name that a parameter of this project has under `names`."""
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name
