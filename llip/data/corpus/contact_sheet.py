"""A page that shows what the corpus looks like: images with their captions, each under the color of its type."""

import io

from PIL import Image, ImageDraw, ImageFont

from llip import storage
from llip.data.corpus.catalogue import catalogue
from llip.data.corpus.config import CorpusConfig
from llip.data.corpus.pool import captioned
from llip.data.corpus.scenes import Scene, render
from llip.data.corpus.sources import license_table

COLUMNS, SCENE_ROWS, SINGLE_ROWS = 5, 2, 1
IMAGE, GAP, MARGIN = 264, 28, 40
LINE, LINES = 25, 7
LINE_SPACING = 9
TITLE, FOOTER_LINE = 84, 19
INK, FAINT, PAPER = "#1d1f24", "#6b7078", "#ffffff"
TYPE_COLORS = {
    "object": "#1f6feb",
    "position": "#c2410c",
    "relation": "#be123c",
    "plate": "#4d7c0f",
    "place": "#a16207",
    "category": "#15803d",
    "ground": "#7e22ce",
    "count": "#b91c7c",
    "several": "#475569",
    "keywords": "#0e7490",
    "style": "#78716c",
}

Card = tuple[Scene, list[tuple[str, str]]]


def write_contact_sheet(path: str, config: CorpusConfig) -> None:
    """Write a PNG of scenes and single drawings of the pool, drawn larger than there, with the drawings' licences."""
    cards = _cards(config, single=False, number=COLUMNS * SCENE_ROWS)
    cards += _cards(config, single=True, number=COLUMNS * SINGLE_ROWS)
    rows = -(-len(cards) // COLUMNS)
    card_height = IMAGE + 14 + LINES * LINE + GAP
    footer = [f"{r['source']}: {r['attribution']}, {r['license']}" for r in license_table()]
    width = 2 * MARGIN + COLUMNS * (IMAGE + GAP) - GAP
    height = MARGIN + TITLE + rows * card_height + len(footer) * FOOTER_LINE + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_title(draw)
    for index, card in enumerate(cards):
        row, column = divmod(index, COLUMNS)
        _draw_card(sheet, draw, card, MARGIN + column * (IMAGE + GAP), MARGIN + TITLE + row * card_height)
    for line, text in enumerate(footer):
        top = height - MARGIN - (len(footer) - line) * FOOTER_LINE
        draw.text((MARGIN, top), text, FAINT, ImageFont.load_default(14))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    storage.write_bytes(path, buffer.getvalue())


def _cards(config: CorpusConfig, *, single: bool, number: int) -> list[Card]:
    """The first images of the pool that are single drawings, or that are not; fewer where the pool has fewer."""
    drawings, cards = catalogue(config), []
    for index in range(config.rows):
        card = captioned(drawings, config, index)
        if card[0].is_single == single:
            cards.append(card)
        if len(cards) == number:
            break
    return cards


def _draw_title(draw: ImageDraw.ImageDraw) -> None:
    title = "The built-in corpus: one image, many true captions"
    draw.text((MARGIN, MARGIN - 10), title, INK, ImageFont.load_default(30))
    left = float(MARGIN)
    for caption_type, color in TYPE_COLORS.items():
        draw.ellipse((left, MARGIN + 40, left + 11, MARGIN + 51), color)
        draw.text((left + 17, MARGIN + 35), caption_type, color, ImageFont.load_default(17))
        left += 17 + draw.textlength(caption_type, ImageFont.load_default(17)) + 24


def _draw_card(sheet: Image.Image, draw: ImageDraw.ImageDraw, card: Card, left: int, top: int) -> None:
    scene, captions = card
    image = Image.fromarray(render(scene, IMAGE))
    mask = Image.new("L", (2 * IMAGE, 2 * IMAGE))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 2 * IMAGE - 1, 2 * IMAGE - 1), 24, 255)
    sheet.paste(image, (left, top), mask.resize((IMAGE, IMAGE), Image.Resampling.LANCZOS))
    draw.rounded_rectangle((left, top, left + IMAGE - 1, top + IMAGE - 1), 12, outline="#d5d8dd")
    font, line = ImageFont.load_default(17), 0
    for text, caption_type in _spread(captions):
        wrapped = _wrap(draw, text, font)
        if line + len(wrapped) > LINES:
            break
        y = top + IMAGE + 14 + line * LINE
        draw.ellipse((left, y + 6, left + 9, y + 15), TYPE_COLORS[caption_type])
        draw.multiline_text((left + 17, y), "\n".join(wrapped), TYPE_COLORS[caption_type], font, spacing=LINE_SPACING)
        line += len(wrapped)


def _spread(captions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Captions so ordered that every type comes once before any comes twice."""
    seen: dict[str, int] = {}
    rounds = []
    for _, caption_type in captions:
        seen[caption_type] = seen.get(caption_type, 0) + 1
        rounds.append(seen[caption_type])
    order = sorted(range(len(captions)), key=lambda i: (rounds[i], i))
    return [captions[i] for i in order]


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= IMAGE - 17 or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
