"""Settings of the built-in corpus."""

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, kw_only=True)
class CaptionTypeMix:
    """Shares of the caption types of a scene. They need not add up to one."""

    object: float = 0.22
    position: float = 0.16
    relation: float = 0.18
    plate: float = 0.15
    place: float = 0.15
    category: float = 0.14
    ground: float = 0.05
    count: float = 0.07
    several: float = 0.03

    def __post_init__(self) -> None:
        shares = asdict(self)
        for name, share in shares.items():
            if share < 0:
                raise ValueError(f"caption_types.{name} is {share}; a share is at least 0")
        if sum(shares.values()) == 0:
            raise ValueError("caption_types: every share is 0; at least one has to be positive")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Images and captions of a corpus. Row i depends on these settings and i alone, so a corpus has any size."""

    rows: int = 16_000
    """Images of the training pool."""
    seed: int = 0
    """Draws compositions and captions. The splits do not depend on it."""
    canvas: int = 64
    """Side of an image, pixels."""
    scene_share: float = 0.85
    """Share of composed scenes; the others show a single drawing."""
    icon_share: float = 0.3
    """Share of icons among the single drawings; the others are emoji."""
    scene_concepts: int = 48
    """Concepts that scenes are composed of, spread over categories of up to four at a time."""
    min_drawings: int = 2
    """Fewest drawings in a scene."""
    max_drawings: int = 4
    """Most drawings in a scene, one for each quarter of the canvas."""
    captions: int = 12
    """Captions drawn for an image; those that repeat are dropped."""
    caption_types: CaptionTypeMix = field(default_factory=CaptionTypeMix)
    """Subjects of the captions of a scene."""
    held_out_share: float = 0.1
    """Share of the emoji concepts that training sees in no style."""
    rows_per_file: int = 4_000
    """Rows of one Parquet file."""
    evaluation_images: int = 600
    """Most images of one evaluation set."""
    evaluation_captions: int = 600
    """Most captions of a type in a retrieval set, drawn by a hash of their words."""

    def __post_init__(self) -> None:
        for name in ("rows", "scene_concepts", "captions", "rows_per_file", "evaluation_images", "evaluation_captions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1")
        if self.canvas < 16:
            raise ValueError(f"canvas is {self.canvas}; drawings are recognisable from 16 pixels on")
        for name in ("scene_share", "icon_share", "held_out_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be in [0, 1]")
        if not 1 <= self.min_drawings <= self.max_drawings <= 4:
            raise ValueError(
                f"min_drawings {self.min_drawings} and max_drawings {self.max_drawings} have to increase within 1 to 4"
            )
