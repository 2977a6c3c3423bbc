"""HTML pages that need no other file: their style, figures as SVG, pictures inside. Colours: ink for what was measured,
grey for what it is compared with."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

COLOURS = ("#1f5fa8", "#e07b39", "#3d9a6c", "#8e5ea2", "#c14953", "#7a6a4f")
GREY, INK = "#b8bdc5", "#22262c"
LARGEST_SIDE = 160
"""Pixels of a picture inside a page."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22262c; max-width: 1060px; margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { margin-top: 2.6rem; border-bottom: 1px solid #e3e6ea }
h3 { margin: 1.6rem 0 .4rem } h4 { margin: .9rem 0 .2rem; color: #5b636e; font-weight: 600 }
.facts { color: #5b636e } .facts b { color: #22262c; font-weight: 600 }
.facts span { display: inline-block; margin-right: 1.3rem }
small { color: #7a828d; display: block } svg { max-width: 100%; height: auto }
table { border-collapse: collapse } td, th { padding: .16rem .7rem; text-align: left }
th { color: #5b636e; font-weight: 600 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { position: relative; height: .8rem; background: #eef1f4; border-radius: 2px; min-width: 260px }
.bar i { position: absolute; inset: 0 auto 0 0; background: #1f5fa8; border-radius: 2px }
img { width: 76px; height: 76px; object-fit: contain; border: 3px solid #e3e6ea; border-radius: 4px; background: #fff }
.grid { display: flex; flex-wrap: wrap; gap: .6rem }
figure { margin: 0; width: 118px; font-size: .8rem; line-height: 1.25 }
"""


def page(title: str, sections: Sequence[str], style: str = "") -> str:
    """A page that needs no other file; `style` adds to STYLE."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}{style}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}</body></html>\n'


def heading(title: str, facts: Mapping[str, str]) -> str:
    """The title, and what the page is about in the order of reading."""
    spans = "".join(f"<span>{html.escape(name)} <b>{html.escape(value)}</b></span>" for name, value in facts.items())
    return f'<h1>{html.escape(title)}</h1><p class="facts">{spans}</p>'


def picture(data: bytes, mark: str = "") -> str:
    """An encoded picture as `<img>`, made smaller where it is large; `mark` is its class."""
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=85)
    kind = f' class="{mark}"' if mark else ""
    return f'<img{kind} alt="" src="data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element to put into a page."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "llip"}):  # else the same figure has other ids each time
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


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
