"""Images and captions as people have them, made into what a model takes."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from llip import storage
from llip.config import PreprocessConfig
from llip.data.tokenizer import tokenize
from llip.data.transforms import DecodeError, evaluation_transform, normalize


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """A file (its path or URI), its bytes, an image of Pillow or an array [H, W, 3] of levels -> [3, S, S] pixels."""

    image_size: int
    """S: side of what the model takes, pixels."""
    config: PreprocessConfig

    def __call__(self, image: "str | os.PathLike[str] | bytes | Image.Image | np.ndarray") -> Tensor:
        """Raises ValueError, naming the file, for an image that cannot be read."""
        where = os.fspath(image) if isinstance(image, (str, os.PathLike)) else "the image"
        try:
            pixels = evaluation_transform(_encoded(image), self.image_size, self.config)
        except (DecodeError, OSError, TypeError) as error:
            raise ValueError(f"{where} cannot be used ({error})") from error
        return normalize(pixels[None], config=self.config)[0]


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """A caption, or several -> token ids [T, L], cut to the model's context."""

    context_length: int
    """Longest caption, in tokens, start and end included."""

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        return tokenize([texts] if isinstance(texts, str) else texts, self.context_length)


def _encoded(image: "str | os.PathLike[str] | bytes | Image.Image | np.ndarray") -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, os.PathLike)):
        return storage.read_bytes(os.fspath(image))
    buffer = io.BytesIO()
    decoded = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    decoded.save(buffer, "PNG", compress_level=0)  # decoded as any other: transparency, palettes and 16 bits alike
    return buffer.getvalue()
