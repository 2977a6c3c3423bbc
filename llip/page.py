"""HTML pages that need no other file: templates, figures as SVG, images inside. Colours: ink for what was measured,
grey for what it is compared with."""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

COLOURS = ("#1f5fa8", "#e07b39", "#3d9a6c", "#8e5ea2", "#c14953", "#7a6a4f")
GREY, INK = "#b8bdc5", "#22262c"
LARGEST_SIDE = 160
"""Pixels of an image inside a page."""


@cache
def _templates() -> Environment:
    return Environment(loader=PackageLoader("llip"), autoescape=True, trim_blocks=True, undefined=StrictUndefined)


def render(template: str, **values: Any) -> str:
    """A page of a template in `llip/templates`. Text is escaped; what is HTML already is `Markup`."""
    return _templates().get_template(template).render(**values)


def page(title: str, sections: Sequence[str], facts: Mapping[str, str] | None = None) -> str:
    """A page of sections that are HTML already, below its title and what it is about in the order of reading."""
    return render("page.html", title=title, facts=facts or {}, sections=[Markup(section) for section in sections])


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers_from: int = 1) -> Markup:
    """A table that scrolls within a narrow page; columns from `numbers_from` on are numbers."""
    macro: Any = _templates().get_template("parts.html").module
    return Markup(macro.table(head, rows, numbers_from))


def image_tag(data: bytes, mark: str = "") -> Markup:
    """An encoded image as `<img>`, made smaller where it is large; `mark` is its class."""
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=85)
    kind = f' class="{mark}"' if mark else ""
    return Markup(f'<img{kind} alt="" src="data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}">')


def svg(figure: Figure) -> Markup:
    """The figure as an `<svg>` element to put into a page."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "llip"}):  # else the same figure has other ids each time
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size, inches, with one plain plot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Only what carries numbers: two grey axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelsize=8)
