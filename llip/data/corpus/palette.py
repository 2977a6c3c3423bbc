"""Colours and patterns of the corpus, and their pixels: grounds, plates, icons.

A vision tower of 48 pixels with patches of 12 sees a period of a ground's pattern in each patch.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

GROUNDS = {
    "white": (250, 250, 248),
    "gray": (178, 182, 188),
    "yellow": (252, 236, 150),
    "orange": (250, 198, 138),
    "red": (236, 134, 126),
    "pink": (250, 196, 220),
    "purple": (196, 172, 232),
    "blue": (146, 192, 242),
    "green": (164, 216, 158),
    "brown": (184, 152, 120),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
PERIODS = 4
"""Periods of a pattern along a side of the canvas."""
SHADE = 0.76
"""Brightness of a pattern, as a share of its ground's."""

PLATES = {
    "red": (206, 32, 38),
    "yellow": (246, 200, 20),
    "green": (34, 142, 62),
    "blue": (34, 88, 206),
}
SHAPES = ("disc", "square")
RIM = 0.1
"""Width of a plate's rim, as a share of its side. The inside is a tint of the colour."""
TINT = 0.35

INKS = {"black": "#161616", "red": "#a3151f", "blue": "#123f9c", "green": "#0d5c2a", "purple": "#551a8b"}
COLOR_WORDS = frozenset((*GROUNDS, *PLATES, *INKS))


@cache
def ground_pixels(color: str, texture: str, canvas: int) -> NDArray[np.uint16]:
    """The ground [canvas, canvas, 3]: a pattern in a darker shade of the colour. Not to be written to."""
    phase = (np.arange(canvas) + 0.5) * PERIODS / canvas
    x, y = phase[None, :] % 1, phase[:, None] % 1
    if texture == "striped":
        shaded = (x + y) % 1 < 0.5
    elif texture == "dotted":
        shaded = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1
    elif texture == "checkered":
        shaded = (x < 0.5) ^ (y < 0.5)
    else:
        shaded = np.zeros((canvas, canvas), bool)
    base = np.array(GROUNDS[color], np.uint16)
    return np.where(shaded[..., None], (base * SHADE).astype(np.uint16), base)


@cache
def plate_pixels(color: str, shape: str, side: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """A plate [side, side, 3], and where it is opaque [side, side, 1]. Not to be written to."""
    across = np.abs((np.arange(side) + 0.5) / side * 2 - 1)
    x, y = across[None, :], across[:, None]
    distance = (np.hypot(x, y) if shape == "disc" else np.maximum(x, y))[..., None]
    rim = np.array(PLATES[color], np.uint16)
    inside = (255 - (255 - rim) * TINT).astype(np.uint16)
    return np.where(distance <= 1 - 2 * RIM, inside, rim), distance <= 1
