"""HTML pages that need no other file: templates, figures as SVG, images inside. Colours: ink for what was measured,
grey for what it is compared with."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

COLOURS = ("#1f5fa8", "#e07b39", "#3d9a6c", "#8e5ea2", "#c14953", "#7a6a4f")
GREY, INK = "#b8bdc5", "#22262c"
LARGEST_SIDE = 160
"""Pixels of an image inside a page."""
SCREEN_DPI = 96
"""Pixels of a page in an inch."""
NARROW = 560
"""Pixels of a figure's width up to which a phone shows it whole, and beyond which it scrolls."""
Headlines = Sequence[tuple[str, str, str]]
"""First lines of a page: name, value, and a note on it, such as its chance level."""


@cache
def _templates() -> Environment:
    found = Environment(loader=PackageLoader("llip"), autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    found.filters["parted"] = parted
    return found


def parted(text: Any) -> Markup:
    """Text that may go on in a new line behind `_`, `/`, `–` and dots inside names."""
    if isinstance(text, Markup):
        return text
    return Markup(re.sub(r"[_/–]|(?<=[a-z0-9])\.(?=[a-z])", r"\g<0><wbr>", str(escape(text))))


def render(template: str, **values: Any) -> str:
    """A page of a template in `llip/templates`. Text is escaped; what is HTML already is `Markup`."""
    return _templates().get_template(template).render(**values)


def page(title: str, sections: Sequence[str], facts: Mapping[str, str] | None = None, headlines: Headlines = ()) -> str:
    """A page of sections that are HTML already, below its title, its headlines and what it is about."""
    parts = [Markup(section) for section in sections]
    return render("page.html", title=title, headlines=headlines, facts=facts or {}, sections=parts)


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


def plot(name: str, content: bytes) -> Markup:
    """A figure that was drawn as PNG, in its own size."""
    with Image.open(io.BytesIO(content)) as image:
        width = round(image.width * SCREEN_DPI / image.info.get("dpi", (SCREEN_DPI,))[0])
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return _framed(Markup('<img class="plot" alt="{}" width="{}" src="{}">').format(name, width, source), width)


def svg(figure: Figure) -> Markup:
    """The figure as an `<svg>` element to put into a page."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "llip"}):  # else the same figure has other ids each time
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return _framed(text[text.index("<svg") :], figure.get_figwidth() * SCREEN_DPI)


def _framed(image: str, width: float) -> Markup:
    """A figure that scrolls on a phone where it is wide, so that its labels can be read."""
    return Markup(f'<div class="scroll{" large" if width > NARROW else ""}">{image}</div>')


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
