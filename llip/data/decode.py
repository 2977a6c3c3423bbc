"""Bytes of a JPEG, PNG or WebP file to RGB pixels."""

import numpy as np
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
    # A tensor, since of bytes torchcodec changes the filters of `warnings` for a moment, which is not safe in threads.
    source = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    try:
        # A JPEG's four channels are inks. Elsewhere channels tell of transparency, but for the chunk tRNS of a PNG.
        pixels = decode_image(source, mode="RGB" if is_jpeg else "UNCHANGED")
        if pixels.ndim == 4:
            raise DecodeError("an animation, not an image")
        if len(pixels) in (2, 4) or (not is_jpeg and b"tRNS" in data[: data.find(b"IDAT")]):
            return _on_white(decode_image(source, mode="RGB_ALPHA"))
    except (RuntimeError, ValueError) as error:
        raise DecodeError(f"not a readable image: {error}") from error
    return pixels.expand(3, -1, -1)


def _on_white(pixels: Tensor) -> Tensor:
    rgba_HWC = pixels.permute(1, 2, 0).numpy().astype(np.int32)  # not torch, which would start threads
    rgb_HWC, alpha_HW1 = rgba_HWC[..., :3], rgba_HWC[..., 3:]
    mixed = (rgb_HWC * alpha_HW1 + 255 * (255 - alpha_HW1) + 127) // 255
    return torch.from_numpy(mixed.astype(np.uint8)).permute(2, 0, 1)
