"""JPEGs that decode although they are damaged, and those that only look so."""

import io
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llip.data.transforms import decode
from pipelines.stages.encode import Encoding, encode
from pipelines.stages.pixels import UnusableImageError

SMALL = Encoding(max_side=64, format="keep", quality=95, max_pixels=10**6)
LARGE = replace(SMALL, max_side=500)


def saved(image: Image.Image, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", **options)
    return target.getvalue()


LIBJPEG: dict[str, dict[str, Any]] = {
    "base": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 5},
}


def jpeg(**options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return saved(Image.fromarray(noise).resize((240, 160)), **options)


@pytest.mark.parametrize("kind", LIBJPEG)
def test_damage_that_libjpeg_only_warns_of_is_dropped(kind: str) -> None:
    """All of it decodes, by Pillow and by the loader, with grey or shifted blocks."""
    data = jpeg(**LIBJPEG[kind])
    places = [len(data) * part // 8 for part in (3, 4, 6)]
    cut = [data[:place] + data[-2:] for place in places]
    shorter = [data[:place] + data[place + 900 :] for place in places]
    for broken in cut + shorter:
        decode(broken)
        for encoding in (SMALL, LARGE):
            with pytest.raises(UnusableImageError, match="damaged image"):
                encode(broken, encoding)


def test_damage_is_seen_behind_a_broken_profile() -> None:
    profile = b"ICC_PROFILE\0\x03\x02" + bytes(9)
    data = jpeg()
    data = data[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(profile)) + profile + data[2:]
    assert encode(data, LARGE)
    with pytest.raises(UnusableImageError, match="damaged image"):
        encode(data[: len(data) // 2] + data[-2:], LARGE)


@pytest.mark.parametrize("kind", LIBJPEG)
def test_padding_and_what_lies_behind_a_jpeg_is_no_damage(kind: str) -> None:
    data = jpeg(**LIBJPEG[kind])
    for harmless in (data, data + b"junk" * 9, *(data[:-2] + bytes([fill]) * 40 + data[-2:] for fill in (0, 255))):
        assert encode(harmless, LARGE) == harmless


def test_inks_are_no_damage() -> None:
    grey = np.round(255 * np.linspace(0, 1, 16 * 24)).astype(np.uint8).reshape(16, 24)
    colours = np.dstack([grey, grey[::-1], 255 - grey])
    seen = decode(encode(saved(Image.fromarray(colours).convert("CMYK")), SMALL)).permute(1, 2, 0).numpy()
    assert np.abs(seen.astype(int) - colours).mean() <= 12
