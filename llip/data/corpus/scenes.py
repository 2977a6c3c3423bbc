"""Composition of an image, and its pixels.

A scene is described in shares of the canvas, so that the same scene can be drawn at any size.
"""

import hashlib
from dataclasses import dataclass
from random import Random

import numpy as np

from llip.data.corpus import sources
from llip.data.corpus.catalogue import TRAINING_EMOJI_STYLES, Catalogue
from llip.data.corpus.config import CorpusConfig
from llip.data.corpus.names import Concept
from llip.data.corpus.sources import Drawing

GROUNDS = {
    "white": (248, 248, 246),
    "gray": (178, 182, 188),
    "yellow": (250, 226, 120),
    "orange": (248, 182, 108),
    "red": (232, 122, 112),
    "pink": (248, 184, 210),
    "purple": (186, 158, 224),
    "blue": (136, 182, 238),
    "green": (152, 208, 146),
    "brown": (184, 152, 120),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
INKS = {"black": "#161616", "red": "#a3151f", "blue": "#123f9c", "green": "#0d5c2a", "purple": "#551a8b"}

QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of the four places of a scene."""

SIZES = (0.38, 0.42, 0.46)
SINGLE_SIZES = (0.70, 0.80, 0.90)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A drawing on the canvas."""

    drawing: Drawing
    concept: Concept
    left: float
    top: float
    size: float
    """Left and upper edge and side, as shares of the canvas."""
    quarter: tuple[int, int] | None = None
    """Row and column of its quarter; None for a single drawing, which has none."""
    ink: str = "black"
    """Colour of an icon, of `INKS`."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image: a ground and what stands on it, in one style."""

    placements: tuple[Placement, ...]
    color: str
    """Colour of the ground, of `GROUNDS`."""
    texture: str
    """Pattern of the ground, of `TEXTURES`."""

    @property
    def is_single(self) -> bool:
        return self.placements[0].quarter is None

    @property
    def source(self) -> sources.Source:
        return sources.SOURCES[self.placements[0].drawing.source]


def random_of(seed: int, *path: str | int) -> Random:
    """Random numbers that depend on the seed and a path of names alone."""
    digest = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return Random(int.from_bytes(digest[:8]))


def _ground(random: Random) -> tuple[str, str]:
    return random.choice(list(GROUNDS)), random.choice(("plain",) * 3 + TEXTURES)


def compose(catalogue: Catalogue, config: CorpusConfig, random: Random, style: str) -> Scene:
    """A scene of different concepts in one emoji style, each in a quarter of its own."""
    count = random.randint(config.min_drawings, config.max_drawings)
    placements = []
    quarters = random.sample(QUARTERS, count)
    for concept, (row, column) in zip(random.sample(catalogue.scene_concepts, count), quarters, strict=True):
        size = random.choice(SIZES)
        left, top = (0.5 * cell + random.uniform(0.01, 0.49 - size) for cell in (column, row))
        drawing = catalogue.by_style[style][concept.key]
        placements.append(
            Placement(drawing=drawing, concept=concept, left=left, top=top, size=size, quarter=(row, column))
        )
    color, texture = _ground(random)
    return Scene(placements=tuple(placements), color=color, texture=texture)


def single(catalogue: Catalogue, drawing: Drawing, random: Random) -> Scene:
    """One drawing that fills most of the canvas."""
    size = random.choice(SINGLE_SIZES)
    left, top = (random.uniform(0.02, 0.98 - size) for _ in range(2))
    color, texture = _ground(random)
    ink = random.choice(list(INKS)) if drawing.is_icon else "black"
    placement = Placement(
        drawing=drawing, concept=catalogue.concepts[drawing.concept], left=left, top=top, size=size, ink=ink
    )
    return Scene(placements=(placement,), color=color, texture=texture)


def training_scene(catalogue: Catalogue, config: CorpusConfig, index: int) -> Scene:
    """Image `index` of the training pool."""
    random = random_of(config.seed, "pool", index)
    if random.random() < config.scene_share:
        return compose(catalogue, config, random, random.choice(TRAINING_EMOJI_STYLES))
    drawings = catalogue.icons if random.random() < config.icon_share else catalogue.training_emoji
    return single(catalogue, random.choice(drawings), random)


def render(scene: Scene, canvas: int) -> np.ndarray:
    """Pixels of a scene, uint8 RGB [canvas, canvas, 3]."""
    image = _render_ground(scene.color, scene.texture, canvas)
    for placement in scene.placements:
        side = max(1, round(placement.size * canvas))
        left, top = (min(round(edge * canvas), canvas - side) for edge in (placement.left, placement.top))
        rgba = sources.pixels(placement.drawing, side, INKS[placement.ink]).astype(np.uint16)
        under = image[top : top + side, left : left + side]
        under[:] = rgba[..., :3] + (under * (255 - rgba[..., 3:]) + 127) // 255
    return image.astype(np.uint8)


def _render_ground(color: str, texture: str, canvas: int) -> np.ndarray:
    """The ground as uint16 [canvas, canvas, 3]: eight periods of a pattern in the colour and a lighter one."""
    phase = np.arange(canvas) * 8 / canvas
    x, y = phase[None, :] % 1, phase[:, None] % 1
    if texture == "striped":
        light = (x + y) % 1 < 0.5
    elif texture == "dotted":
        light = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.09
    elif texture == "checkered":
        light = (x < 0.5) ^ (y < 0.5)
    else:
        light = np.zeros((canvas, canvas), bool)
    dark = np.array(GROUNDS[color], np.uint16)
    lighter = (dark + (255 - dark) * 0.4).astype(np.uint16) if color != "white" else dark - 18
    return np.where(light[..., None], lighter, dark)
