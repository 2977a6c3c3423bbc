"""Bytes of a JPEG, PNG or WebP file to RGB pixels."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_webp

Encoded = bytes | memoryview


class DecodeError(ValueError):
    """The bytes are not an image, or a broken one."""


def decode(data: Encoded) -> Tensor:
    """RGB pixels, uint8 [3, H, W]; transparency is laid on white. Raises DecodeError."""
    view = memoryview(data).cast("B")
    try:
        if view[:3] == b"\xff\xd8\xff":
            return decode_jpeg(_tensor(view), mode=ImageReadMode.RGB)
        if view[:4] == b"RIFF" and view[8:12] == b"WEBP":
            return _on_white(decode_webp(_tensor(view), mode=ImageReadMode.UNCHANGED))
        return _on_white(_decode_with_pillow(view))
    except Exception as error:  # decoders raise a dozen types for broken files
        raise DecodeError(f"not a readable image: {error}") from error


def _tensor(view: memoryview) -> Tensor:
    # Not torch.frombuffer, which warns that Arrow's memory is read-only.
    return torch.from_numpy(np.frombuffer(view, dtype=np.uint8).copy())


def _decode_with_pillow(view: memoryview) -> Tensor:
    """Everything else, that is PNG: torchvision is 1.3 times as quick, but broken files crash it (segfault)."""
    image: Image.Image = Image.open(io.BytesIO(view))
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        pixels = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        image = Image.fromarray(pixels)
    transparent = "A" in image.getbands() or "transparency" in image.info
    rgb = np.array(image.convert("RGBA" if transparent else "RGB"))
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _on_white(pixels: Tensor) -> Tensor:
    if len(pixels) != 4:
        return pixels
    alpha = pixels[3:].to(torch.int32)
    mixed = pixels[:3].to(torch.int32) * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).to(torch.uint8)
