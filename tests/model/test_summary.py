"""Sizes of the recipes against published counts, and FLOPs against a count by hand; FLOPs of a step."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llip.contrastive import ContrastiveModel
from llip.recipes import recipe
from llip.summary import pair_forward_flops, step_flops, summarise


@pytest.mark.parametrize(
    ("name", "vision", "text"),
    [
        ("clip_b32", 87.8, 63.4),
        ("clip_b16", 86.2, 63.4),
        ("clip_l14", 304.0, 123.7),
        ("clip_h14", 632.1, 354.0),
        ("clip_g14", 1844.9, 694.7),
    ],
)
def test_clip_has_the_published_sizes(name: str, vision: float, text: float) -> None:
    config = recipe(name).model
    summary = summarise(config, 2)
    image_projection = config.vision.width * config.embed_dim
    text_projection = config.text.width * config.embed_dim
    assert summary.head_parameters == image_projection + text_projection
    assert (summary.vision_parameters + image_projection) / 1e6 == pytest.approx(vision, abs=0.05)
    published_context = 77 - config.text.context_length  # L/14 is published with 77 positions
    text_parameters = summary.text_parameters + text_projection + published_context * config.text.width
    assert text_parameters / 1e6 == pytest.approx(text, abs=0.05)


@pytest.mark.parametrize(("tokens", "added"), [(32, 25.7), (64, 50.9)])
def test_the_head_of_llip_has_the_published_size(tokens: int, added: float) -> None:
    config = recipe(f"llip_b32_k{tokens}").model
    target = config.text.width * config.embed_dim  # CLIP has it too
    assert (summarise(config, 2).head_parameters - target) / 1e6 == pytest.approx(added, abs=0.05)


@pytest.mark.parametrize("patch_tokens", [False, True])
def test_shared_projections_do_not_grow_with_the_tokens(patch_tokens: bool) -> None:
    config = recipe("llip_b32_k64").model
    head = replace(config.head, shared_projections=True, patch_tokens=patch_tokens)
    size = summarise(replace(config, head=head), 2).head_parameters
    assert size == 2 * config.vision.width * 512 + 2 * config.text.width * 512 + 512**2


def test_flops_are_those_of_what_is_read() -> None:
    width, layers, patches, tokens, dim = 768, 12, 49, 32, 512
    positions, state = patches + tokens, 2 * width**2
    whole = positions * (12 * state + 4 * positions * width)
    last = positions * 2 * state + tokens * (10 * state + 4 * positions * width)
    embedding, head = patches * 2 * 3 * 32**2 * width, tokens * 2 * 2 * width * dim
    summary = summarise(recipe("llip_b32_k32").model, 20)
    assert summary.image_flops == embedding + (layers - 1) * whole + last + head
    caption = 11 * 20 * (24 * 512**2 + 4 * 20 * 512) + 20 * 4 * 512**2 + 20 * 512**2 + 4 * 20 * 512 + 4 * 512**2
    assert summary.caption_flops == caption


@pytest.mark.parametrize("name", ["llip_tiny_k8", "llip_patch_tiny_k8", "image_query_tiny_k8", "mean_tiny_k8"])
def test_counts_extrapolated_over_blocks_are_those_of_the_whole_model(name: str) -> None:
    config = recipe(name).model
    config = replace(config, vision=replace(config.vision, layers=5), text=replace(config.text, layers=4))
    summary = summarise(config, 9)
    with torch.device("meta"):
        model = ContrastiveModel(config)
    with torch.no_grad(), FlopCounterMode(display=False) as image:
        model.encode_image(torch.empty(1, 3, 48, 48, device="meta"))
    ids_TL = torch.tensor([[1] * 8 + [config.text.vocabulary - 1]])
    with torch.no_grad(), FlopCounterMode(display=False) as caption:
        model.encode_text(ids_TL)
    assert (summary.image_flops, summary.caption_flops) == (image.get_total_flops(), caption.get_total_flops())
    scale_and_bias = 2
    assert summary.parameters == sum(p.numel() for p in model.parameters()) - scale_and_bias


def test_prediction_of_words_counts_in_training() -> None:
    """The last block of B/16 for 196 patches beside the class token, their projection, and 49,408 words of an image."""
    words, plain = (summarise(recipe(name).model, 20) for name in ("superclip_b16", "clip_b16"))
    width, patches, vocabulary = 768, 196, 49_408
    last = patches * (10 * 2 * width**2 + 4 * (patches + 1) * width)
    assert words.image_flops == plain.image_flops
    assert words.word_flops == last + 2 * width * vocabulary and plain.word_flops == 0
    assert words.parameters - plain.parameters == words.word_parameters == (width + 1) * vocabulary


@pytest.mark.parametrize(("name", "kflops"), [("llip_b32_k32", 140), ("llip_l14_k32", 173), ("llip_h14_k64", 559)])
def test_pair_flops_take_the_cheaper_form_of_the_norm(name: str, kflops: float) -> None:
    assert pair_forward_flops(recipe(name).model) / 1e3 == pytest.approx(kflops, rel=0.01)


def test_a_pair_of_many_tokens_falls_back_to_the_form_over_the_width() -> None:
    model = recipe("llip_b32_k128").model
    assert pair_forward_flops(model) == 4 * 128 * 512 + 2 * 512**2


def test_a_step_is_all_images_captions_and_pairs_three_times() -> None:
    config = recipe("llip_dense_tiny_k8")
    size, flops = summarise(config.model, 9), step_flops(config, 9)
    assert flops.towers == 3 * 64 * (size.image_flops + 4 * size.caption_flops)
    assert flops.pairs == 3 * 64 * 256 * pair_forward_flops(config.model)
    assert flops.total == flops.towers + flops.pairs
