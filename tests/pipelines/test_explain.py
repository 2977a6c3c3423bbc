"""Mixing maps and cosines of one image against their literal form, and the page."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.browser import PHONE, browser, needs_browser
from helpers.evaluation_samples import picture
from PIL import Image

from llip import create_model
from llip.data.tokenizer import tokenize
from llip.data.transforms import normalize
from llip.evaluation.encode import decode
from llip.interop import save_model
from llip.model.features import Mixture, Query
from pipelines.explain import Explain, explain_image

CAPTIONS = ("a photo of an apple", "a photo of <an> ipod", "x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    torch.manual_seed(0)
    for name in ("llip_tiny_k8", "siglip_tiny"):
        save_model(create_model(name), str(folder / name))
    (folder / "desk.png").write_bytes(picture(3))
    (folder / "notes.png").write_text("no image")
    return folder


def job(folder: Path, model: str = "llip_tiny_k8", image: str = "desk.png") -> Explain:
    return Explain(
        checkpoint=str(folder / model), image=str(folder / image), captions=CAPTIONS, output=str(folder / "out")
    )


@torch.inference_mode()
def test_weights_and_cosines_are_the_literal_ones(folder: Path) -> None:
    found = explain_image(job(folder))
    torch.manual_seed(0)
    model = create_model("llip_tiny_k8").eval()
    images = model.encode_image(normalize(decode(picture(3), 48, "here")[None]))
    assert isinstance(images, Mixture) and model.head.out_proj is not None
    features = []
    for c, caption in enumerate(CAPTIONS):
        texts = model.encode_text(tokenize([caption], model.config.text.context_length))
        assert isinstance(texts, Query)
        heads = []
        for m in range(model.config.head.heads):
            weight_K = torch.softmax(images.key_BMKE[0, m] @ texts.query_BME[0, m] / model.config.head.temperature, 0)
            np.testing.assert_allclose(found.weight_CMK[c, m], weight_K.numpy(), rtol=1e-4)
            heads.append(weight_K @ images.value_BMKE[0, m])
        features.append((torch.cat(heads) @ model.head.out_proj, texts.target_BD[0]))
    for given, (feature, _) in enumerate(features):
        for of, (_, target) in enumerate(features):
            cosine = torch.cosine_similarity(feature, target, dim=0).item()
            assert found.cosine_CC[given, of] == pytest.approx(cosine, abs=1e-5)


def test_the_page_shows_the_image_the_maps_and_a_mark_for_each_caption(folder: Path) -> None:
    found = explain_image(job(folder))
    page = (folder / "out" / "explanation.html").read_text()
    assert page.count("<svg") == 1 and page.count("data:image/webp") == 1 and "of <an>" not in page
    best = found.cosine_CC.argmax(axis=0) == np.arange(3)
    assert (page.count("n right"), page.count("n wrong")) == (best.sum(), 3 - best.sum())
    assert Image.open(io.BytesIO((folder / "out" / "explanation.png").read_bytes())).width > 1000
    assert json.loads((folder / "out" / "explanation.json").read_text())["weights"] == found.weight_CMK.tolist()


def test_refusals_say_what_is_wrong(folder: Path) -> None:
    with pytest.raises(ValueError, match="captions change nothing in a class_token model"):
        explain_image(job(folder, model="siglip_tiny"))
    with pytest.raises(ValueError, match=r"--image .*notes\.png: the image cannot be used"):
        explain_image(job(folder, image="notes.png"))
    with pytest.raises(ValueError, match=r"--image .*nothing\.png does not exist"):
        explain_image(job(folder, image="nothing.png"))


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_the_page_within_its_width(folder: Path) -> None:
    explain_image(job(folder))
    with browser() as chromium:
        found = chromium.look(folder / "out" / "explanation.html", PHONE)
    assert found.width <= PHONE[0] and (found.images, found.broken) == (1, 0) and not found.overlaps
