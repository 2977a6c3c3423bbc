"""Models that start from CLIP: near it in features, explicit about what is new."""

from dataclasses import replace
from types import SimpleNamespace

import open_clip
import open_clip.factory
import pytest
import torch
import torch.nn.functional as F

from llip import create_model, recipe
from llip.config import HeadConfig, ModelConfig
from llip.contrastive import ContrastiveModel
from llip.interop.warm_start import Start, init_from
from llip.model.features import Pooled

CLIP = recipe("clip_tiny").built_model
PIXELS = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[49406, 320, 1125, 49407], [49406, 49407, 0, 0]])


def started(name: str) -> tuple[ContrastiveModel, ContrastiveModel, Start]:
    torch.manual_seed(0)
    clip, model = create_model(CLIP), create_model(name)
    torch.nn.init.normal_(clip.vision.position, std=0.3)
    return clip, model, init_from(model, clip)


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
def test_other_heads_init_from_too(name: str) -> None:
    clip, model, start = started(name)
    (image, caption), (images, captions) = clip(PIXELS, IDS), model(PIXELS, IDS)
    assert isinstance(images, Pooled)
    torch.testing.assert_close(captions.vector_BD, caption.vector_BD)
    assert F.cosine_similarity(images.vector_BD, image.vector_BD).min() > 0.95
    assert set(start.fresh) <= {"logit_bias", "head.image.mixture.key_proj", "head.image.query"}


def test_text_tokens_init_from_with_latents_of_their_own() -> None:
    clip, model, start = started("image_query_tiny_k8")
    assert start.fresh == ["logit_bias", "text.latents", "head.image.query_proj", "head.text.key_proj"]
    torch.testing.assert_close(model(PIXELS, IDS)[0].target_BD, clip(PIXELS, IDS)[0].vector_BD)


def test_a_shorter_context_keeps_the_first_positions() -> None:
    clip = create_model(CLIP)
    shorter = create_model(replace(CLIP, text=replace(CLIP.text, context_length=5)))
    assert init_from(shorter, clip) == (["text.position"], [])
    torch.testing.assert_close(shorter.encode_text(IDS), clip.encode_text(IDS))


def test_a_longer_context_repeats_the_last_position() -> None:
    clip = create_model(CLIP)
    longer = create_model(replace(CLIP, text=replace(CLIP.text, context_length=40)))
    assert init_from(longer, clip) == (["text.position"], [])
    torch.testing.assert_close(longer.encode_text(IDS), clip.encode_text(IDS))
    assert torch.equal(longer.text.position[32:], clip.text.position[31:].expand(8, -1))


def test_other_towers_are_refused_by_field() -> None:
    wider = replace(CLIP, vision=replace(CLIP.vision, width=160), text=replace(CLIP.text, width=160))
    with pytest.raises(ValueError, match=r"text\.width: 128 → 160; vision\.width: 128 → 160"):
        init_from(create_model(wider), create_model(CLIP))
    with pytest.raises(ValueError, match="activation: 'gelu' → 'quick_gelu'"):
        init_from(create_model(CLIP), create_model(replace(CLIP, activation="gelu")))
    with pytest.raises(ValueError, match=r"starts from one with a class_token .* not from a register head"):
        register: ModelConfig = replace(CLIP, head=HeadConfig(kind="register"))
        init_from(create_model(CLIP), create_model(register))


@pytest.mark.parametrize("size", [24, 72, 96])
@pytest.mark.parametrize("name", ["clip_tiny", "llip_tiny_k8", "register_tiny_k8"])
def test_positions_are_resized_to_another_image_size_as_by_open_clip(name: str, size: int) -> None:
    torch.manual_seed(0)
    clip, config = create_model(CLIP), recipe(name).built_model
    torch.nn.init.normal_(clip.vision.position)
    model = create_model(replace(config, vision=replace(config.vision, image_size=size)))
    assert "vision.position" in init_from(model, clip).seeded
    state = {"visual.positional_embedding": clip.vision.position.detach().clone()}
    open_clip.factory.resize_pos_embed(state, _visual(size))
    tokens = config.vision.tokens
    torch.testing.assert_close(model.vision.position[tokens:], state["visual.positional_embedding"][1:])
    assert torch.equal(model.vision.position[:tokens], clip.vision.position[:1].expand(tokens, -1))


def _visual(size: int) -> SimpleNamespace:
    return SimpleNamespace(visual=SimpleNamespace(grid_size=(size // 12, size // 12)))


@pytest.mark.parametrize("name", ["llip_tiny_k8", "mean_tiny_k8", "learned_query_tiny_k8", "image_query_tiny_k8"])
def test_a_model_starts_from_one_with_its_own_head(name: str) -> None:
    torch.manual_seed(0)
    config, first = recipe(name).model, create_model(name)
    drawn_otherwise = replace(config, vision=replace(config.vision, position_std=0.1), init_logit_scale=3.0)
    again = create_model(drawn_otherwise)
    assert init_from(again, first) == ([], [])
    for key, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
    larger = create_model(replace(config, vision=replace(config.vision, image_size=72)))
    assert init_from(larger, first) == (["vision.position"], [])
    assert torch.equal(larger.vision.tokens, first.vision.tokens)


@pytest.mark.parametrize(
    ("field", "changed", "says"),
    [
        ("vision", {"tokens": 16}, r"vision\.tokens: 8 → 16"),
        ("vision", {"patch_size": 16}, r"vision\.patch_size: 12 → 16"),
        ("head", {"heads": 2}, r"head\.heads: 4 → 2"),
        ("head", {"temperature": 1.0}, r"head\.temperature: 5\.0 → 1\.0"),
        ("text", {"layers": 2}, r"text\.layers: 1 → 2"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_field(field: str, changed: dict[str, object], says: str) -> None:
    config = recipe("llip_tiny_k8").model
    other = replace(config, **{field: replace(getattr(config, field), **changed)})
    with pytest.raises(ValueError, match=says):
        init_from(create_model(other), create_model(config))
