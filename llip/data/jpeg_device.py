"""Training images made on the device that trains: JPEGs decoded by nvJPEG, on A100 and H100 in an engine of its own.

Threads of the loader do this, so that the loop never waits for it. torchcodec is used, not torchvision, whose decoder
is deprecated and writes into memory that other kernels still read (pytorch/vision#9606).
"""

import io
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from threading import Lock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchcodec.decoders import decode_jpeg

from llip.config import DataConfig
from llip.data.decode import Encoded
from llip.data.transforms import cropped, resize_in_float

logger = logging.getLogger(__name__)

CHUNK = 128
"""Images decoded at once: enough for an engine of several cores; more would only hold memory."""


def jpeg_device(config: DataConfig, device: torch.device) -> "JpegDevice | None":
    """What `config` asks for on the device that trains. Raises ValueError where that cannot decode JPEGs."""
    if config.jpeg_device is None:
        return None
    if device.type != config.jpeg_device:
        raise ValueError(f"data.jpeg_device is {config.jpeg_device}, but this process trains on {device.type}")
    return JpegDevice(device)


class JpegDevice:
    """Makes crops of JPEGs on `device`. Threads may share it; one at a time has the device.

    The work has a CUDA stream of its own, which is empty whenever a method returns or decoding begins: the hardware
    engine does not wait for what a stream has to do before (meta-pytorch/torchcodec#1634).
    Raises ValueError where `device` cannot decode a JPEG.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._lock = Lock()
        self._warned = False
        sample = io.BytesIO()
        Image.new("RGB", (16, 16)).save(sample, "JPEG")
        try:  # else a build without nvJPEG would leave every image to the CPU, and nobody would know
            with self._alone():
                decode_jpeg([_tensor(sample.getvalue())], mode="RGB", device=device)
        except RuntimeError as error:
            raise ValueError(f"JPEGs cannot be decoded on {device}: {error}") from error

    def crops(
        self, images: Sequence[Encoded], image_size: int, scale: tuple[float, float], numbers: Sequence[Sequence[float]]
    ) -> list[Tensor | None]:
        """As `training_transform`, uint8 [3, S, S] on the device; None for what is left to the CPU.

        That is all but plain JPEGs, and what the device refuses.
        """
        made: list[Tensor | None] = [None] * len(images)
        encoded = {place: _tensor(data) for place, data in enumerate(images) if is_plain(data)}

        def make(places: list[int]) -> None:
            self._wait()
            try:
                decoded = decode_jpeg([encoded[p] for p in places], mode="RGB", device=self._device)
                for place, pixels in zip(places, decoded, strict=True):
                    made[place] = resize_in_float(cropped(pixels, scale, numbers[place]), image_size, image_size)
                return
            except RuntimeError as error:
                self._warn(error)
            if len(places) > 1:  # one image fails all: halves find it
                make(places[: len(places) // 2])
                make(places[len(places) // 2 :])

        if encoded:
            with self._alone():
                make(list(encoded))
        return made

    def stack(self, pixels: Sequence[Tensor]) -> Tensor:
        """Images [3, S, S] of any device as [n, S, S, 3] on this one."""
        with self._alone():
            return torch.stack([p.to(self._device).permute(1, 2, 0) for p in pixels])

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Stacks as one, on the stream of the caller."""
        if self._stream:
            for part in parts:  # its memory is not used again before the caller's stream has read it
                part.record_stream(torch.cuda.current_stream(self._device))
        return torch.cat(list(parts))

    @contextmanager
    def _alone(self) -> Generator[None, None, None]:
        with self._lock, torch.cuda.stream(self._stream):
            yield
            self._wait()

    def _wait(self) -> None:
        if self._stream:
            self._stream.synchronize()

    def _warn(self, error: RuntimeError) -> None:
        if not self._warned:
            logger.warning("%s refuses JPEGs, which are left to the CPU; the first: %s", self._device, error)
        self._warned = True


def is_plain(data: Encoded) -> bool:
    """Whether bytes look like a whole JPEG that nvJPEG shows as libjpeg does: Huffman codes, 8 bits, grey or YCbCr.

    Only the segments before the first scan and the end are looked at.
    """
    data = memoryview(data).cast("B")  # Arrow's are of signed bytes
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return False
    at, frame, adobe = 2, b"", b""
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        body = bytes(data[at + 4 : at + 2 + length])
        if kind == 0xDA:  # the first scan
            return _is_plain_frame(frame) and not (len(frame) == 15 and adobe[11:12] == b"\0")  # RGB as it is
        if kind in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            frame = body
        elif 0xC0 <= kind <= 0xCF and kind != 0xC4:  # lossless, hierarchical, arithmetic codes
            return False
        elif kind == 0xEE and body.startswith(b"Adobe"):
            adobe = body
        at += 2 + length
    return False


def _is_plain_frame(frame: bytes) -> bool:
    """Of the header of a frame: precision, height, width, number of components, three bytes for each."""
    if len(frame) not in (9, 15) or len(frame) != 6 + 3 * frame[5]:
        return False
    return frame[0] == 8 and any(frame[1:3]) and any(frame[3:5]) and frame[6::3] != b"RGB"


def _tensor(data: Encoded) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
