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
from llip.data.corpus.palette import GROUNDS, INKS, PLATES, SHAPES, TEXTURES, ground_pixels, plate_pixels
from llip.data.corpus.sources import Drawing

QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of the four places of a scene."""

SIZES = (0.34, 0.36, 0.38)
PLATE_MARGIN = 0.04
"""Between a drawing and the edge of its plate, as a share of the canvas."""
SINGLE_SIZES = (0.70, 0.80, 0.90)


@dataclass(frozen=True, kw_only=True)
class Plate:
    """Plate that a drawing of a scene stands on."""

    color: str
    """One of `PLATES`."""
    shape: str
    """One of `SHAPES`."""


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
    plate: Plate | None = None
    """None for a single drawing."""
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
    return random.choice(list(GROUNDS)), random.choice(("plain", *TEXTURES))


def compose(catalogue: Catalogue, config: CorpusConfig, random: Random, style: str) -> Scene:
    """A scene of different concepts in one style, each on a plate in a quarter of its own.

    Concepts, quarters, plates and ground are drawn independently: none tells of another.
    """
    count = random.randint(config.min_drawings, config.max_drawings)
    placements = []
    quarters = random.sample(QUARTERS, count)
    for concept, (row, column) in zip(random.sample(catalogue.concepts_in(style), count), quarters, strict=True):
        size = random.choice(SIZES)
        left, top = (
            0.5 * cell + random.uniform(0.01 + PLATE_MARGIN, 0.49 - PLATE_MARGIN - size) for cell in (column, row)
        )
        plate = Plate(color=random.choice(list(PLATES)), shape=random.choice(SHAPES))
        drawing = catalogue.by_style[style][concept.key]
        placements.append(
            Placement(
                drawing=drawing, concept=concept, left=left, top=top, size=size, quarter=(row, column), plate=plate
            )
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
    image = ground_pixels(scene.color, scene.texture, canvas).copy()
    for placement in scene.placements:
        if placement.plate is not None:
            under = _window(image, placement, PLATE_MARGIN)
            painted, opaque = plate_pixels(placement.plate.color, placement.plate.shape, len(under))
            np.copyto(under, painted, where=opaque)
        under = _window(image, placement, 0)
        rgba = sources.pixels(placement.drawing, len(under), INKS[placement.ink]).astype(np.uint16)
        under[:] = rgba[..., :3] + (under * (255 - rgba[..., 3:]) + 127) // 255
    return image.astype(np.uint8)


def _window(image: np.ndarray, placement: Placement, margin: float) -> np.ndarray:
    """The square of an image that a drawing covers, and a margin around it, as a view."""
    canvas = len(image)
    side = max(1, round((placement.size + 2 * margin) * canvas))
    left, top = (min(round((edge - margin) * canvas), canvas - side) for edge in (placement.left, placement.top))
    return image[top : top + side, left : left + side]
