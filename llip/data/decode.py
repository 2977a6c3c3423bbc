"""Bytes of a JPEG, PNG or WebP file to RGB pixels."""

import torch
from torch import Tensor
from torchcodec.decoders import decode_image

Encoded = bytes | memoryview


class DecodeError(ValueError):
    """The bytes are not an image, or a broken one."""


def decode(data: Encoded) -> Tensor:
    """RGB pixels, uint8 [3, H, W]; transparency is laid on white. Raises DecodeError."""
    data = bytes(data)
    is_jpeg = data.startswith(b"\xff\xd8\xff")
    try:
        # A JPEG's four channels are inks. Elsewhere channels tell of transparency, but for the chunk tRNS of a PNG.
        pixels = decode_image(data, mode="RGB" if is_jpeg else "UNCHANGED")
        if pixels.ndim == 4:
            raise DecodeError("an animation, not an image")
        if len(pixels) in (2, 4) or (not is_jpeg and b"tRNS" in data[: data.find(b"IDAT")]):
            return _on_white(decode_image(data, mode="RGB_ALPHA"))
    except (RuntimeError, ValueError) as error:
        raise DecodeError(f"not a readable image: {error}") from error
    return pixels.expand(3, -1, -1)


def _on_white(pixels: Tensor) -> Tensor:
    alpha = pixels[3:].to(torch.int32)
    mixed = pixels[:3].to(torch.int32) * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).to(torch.uint8)
