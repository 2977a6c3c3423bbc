"""Models that start from CLIP: near it in features, explicit about what is new."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llip import create_model, recipe
from llip.config import HeadConfig, ModelConfig
from llip.interop.warm_start import init_from_clip
from llip.model.features import Pooled

CLIP = recipe("clip_tiny").model
PIXELS = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[49406, 320, 1125, 49407], [49406, 49407, 0, 0]])


def started(name: str) -> tuple[torch.nn.Module, torch.nn.Module, tuple[list[str], list[str]]]:
    torch.manual_seed(0)
    clip, model = create_model(CLIP), create_model(name)
    torch.nn.init.normal_(clip.vision.position, std=0.3)
    return clip, model, init_from_clip(model, clip)


def test_llip_starts_with_nearly_the_features_of_clip() -> None:
    clip, model, start = started("llip_tiny_k8")
    assert start.seeded == [
        "vision.tokens",
        "vision.position",
        "head.out_proj",
        "head.image.value_proj",
        "head.text.target_proj",
    ]
    assert start.fresh == ["logit_bias", "head.image.key_proj", "head.text.query_proj"]
    with torch.no_grad():
        image, caption = clip(PIXELS, IDS)
        images, captions = model(PIXELS, IDS)
        torch.testing.assert_close(captions.target_BD, caption.vector_BD)
        near_BT = F.cosine_similarity(model.contextual_features(images, captions), image.vector_BD[:, None], dim=-1)
        assert near_BT.min() > 0.95
        unrelated = create_model("llip_tiny_k8")
        far_BT = F.cosine_similarity(
            unrelated.contextual_features(*unrelated(PIXELS, IDS)), image.vector_BD[:, None], dim=-1
        )
        assert far_BT.max() < 0.7
    tokens = model.vision.tokens
    assert torch.equal(tokens[0], clip.vision.tokens[0])
    noise = (tokens[1:] - tokens[0]).square().mean().sqrt() / tokens[0].square().mean().sqrt()
    assert noise.item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(model.vision.position[:8], clip.vision.position[:1].expand(8, -1))
    assert torch.equal(model.vision.position[8:], clip.vision.position[1:])


@pytest.mark.parametrize("name", ["mean_tiny_k8", "learned_query_tiny_k8", "register_tiny_k8", "siglip_tiny"])
def test_other_heads_start_from_clip_too(name: str) -> None:
    clip, model, start = started(name)
    (image, caption), (images, captions) = clip(PIXELS, IDS), model(PIXELS, IDS)
    assert isinstance(images, Pooled)
    torch.testing.assert_close(captions.vector_BD, caption.vector_BD)
    assert F.cosine_similarity(images.vector_BD, image.vector_BD).min() > 0.95
    assert set(start.fresh) <= {"logit_bias", "head.image.mixture.key_proj", "head.image.query"}


def test_text_tokens_start_from_clip_with_latents_of_their_own() -> None:
    clip, model, start = started("image_query_tiny_k8")
    assert start.fresh == ["logit_bias", "text.latents", "head.image.query_proj", "head.text.key_proj"]
    torch.testing.assert_close(model(PIXELS, IDS)[0].target_BD, clip(PIXELS, IDS)[0].vector_BD)


def test_a_shorter_context_keeps_the_first_positions() -> None:
    clip = create_model(CLIP)
    shorter = create_model(replace(CLIP, text=replace(CLIP.text, context_length=5)))
    assert init_from_clip(shorter, clip) == (["text.position"], [])
    torch.testing.assert_close(shorter.encode_text(IDS), clip.encode_text(IDS))


def test_other_towers_are_refused_by_field() -> None:
    wider = replace(CLIP, vision=replace(CLIP.vision, width=160), text=replace(CLIP.text, context_length=40))
    with pytest.raises(ValueError, match=r"text\.context_length: 32 → 40; vision\.width: 128 → 160"):
        init_from_clip(create_model(wider), create_model(CLIP))
    with pytest.raises(ValueError, match="activation: 'gelu' → 'quick_gelu'"):
        init_from_clip(create_model(CLIP), create_model(replace(CLIP, activation="gelu")))
    with pytest.raises(ValueError, match="a register head is no CLIP model"):
        register: ModelConfig = replace(CLIP, head=HeadConfig(kind="register"))
        init_from_clip(create_model(CLIP), create_model(register))
