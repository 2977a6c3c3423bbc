"""The data card as one HTML page that needs no other file."""

import heapq
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from llip import storage
from llip.page import COLOURS, GREY, INK, image_tag, page, plain, svg, table
from pipelines import schema
from pipelines.stages import card
from pipelines.stages.filter import rules
from pipelines.stages.select import SAMPLES

NAME = "data_card.html"
ENTRIES = 15
"""Entries listed at either end of the counts."""

SIZES = {
    "shorter_side_pixels": "shorter side, pixels",
    "image_bytes_below": "bytes an image, rounded up to a power of two",
    "captions_per_image": "captions an image",
    "caption_characters": "characters a caption",
}
"""Quantities with a histogram on the card, by their label."""


def documents(folder: str) -> dict[str, dict[str, Any] | str]:
    """The data card of a curated pool, by file name: what MLflow shows of it."""
    page = storage.read_bytes(storage.join(folder, NAME)).decode()
    return {card.NAME: storage.read_json(storage.join(folder, card.NAME)), NAME: page}


def samples(folder: str, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that stayed, drawn by a hash of their ids: the same whatever the partitioning.

    results: of `select_partition`.
    """
    drawn = heapq.nsmallest(SAMPLES, ((h, r["file"]["name"], row) for r in results for h, row in r["samples"]))
    return [_row(storage.join(folder, name), row) for _, name, row in drawn]


def _row(uri: str, row: int) -> dict[str, Any]:
    with storage.opened(uri) as handle:
        file = pq.ParquetFile(handle)
        for group in range(file.num_row_groups):
            if row < (rows := file.metadata.row_group(group).num_rows):
                shown = [n for n in (schema.IMAGE, schema.URL, schema.CAPTIONS) if n in file.schema_arrow.names]
                return dict(_columns(file.read_row_group(group, shown).slice(row, 1)))
            row -= rows
    raise AssertionError(f"{uri} has fewer rows than were written")


def _columns(table: pa.Table) -> Iterator[tuple[str, Any]]:
    return ((name, table[name][0].as_py()) for name in table.column_names)


def make(pool: str, card: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> str:
    """The page of a card (see `card.make`) with sample rows (`image` or `url`, `captions`)."""
    matching = card.get("matching")
    facts = {"pool": pool}
    headlines = [
        (f"{name} kept", f"{card[key]['kept']:,}", f"of {card[key]['in']:,}")
        for name, key in (("images", "rows"), ("captions", "captions"))
    ]
    if matching:
        matched = f"{matching['entries_matched']:,}"
        headlines.append(("entries that match", matched, f"of {matching['entries']:,}"))
        headlines.append(("matches in the tail", f"{matching['tail_share']:.1%}", f"t = {matching['t']:,}"))
    if card["not_read"]:
        facts["found and not read"] = ", ".join(f"{n:,} {kind}" for kind, n in card["not_read"].items())
    sections = [
        "<h2>What stayed</h2><p>Rows, and then captions, that are left after each rule.</p>",
        _funnel("rows", card["rows"], rules.ROW_REASONS),
        _funnel("captions", card["captions"], rules.CAPTION_REASONS),
        *(_balancing(matching) if matching else ()),
        "<h2>Sizes of what stayed</h2>",
        svg(_histograms({label: card[name] for name, label in SIZES.items() if card[name]})),
        f"<h2>Samples</h2><p>Drawn by seed, not chosen.</p>{_samples(shown)}",
    ]
    return page("Data card", sections, facts, headlines)


def _balancing(matching: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "<h2>Balancing</h2><p>Texts an entry, from the most common entry to the rarest, as means over ranges of ranks.",
        f" Entries above t = {matching['t']:,} are thinned out to about t; rarer ones keep all of their texts.</p>",
        svg(_curves(matching["curve"], matching["t"])),
        f'<div class="ends">{_entries("Most common", matching["head"])}{_entries("Rarest", matching["tail"])}</div>',
    )


def _funnel(name: str, counts: Mapping[str, Any], reasons: Sequence[str]) -> str:
    """Numbers left after each rule, in the order of the rules."""
    left = counts["in"]
    lines = [_step("in the pool", left, 0, 1.0)]
    for reason in reasons:
        if dropped := counts["dropped"].get(reason, 0):
            left -= dropped
            lines.append(_step(reason, left, dropped, left / counts["in"]))
    head = f'<tr><th>{name}</th><th class="n">dropped</th><th class="n">left</th><th></th></tr>'
    return f'<h3>{name.capitalize()}</h3><div class="scroll"><table class="wide">{head}{"".join(lines)}</table></div>'


def _step(name: str, left: int, dropped: int, share: float) -> str:
    bar = f'<div class="bar"><i style="width:{share:.2%}"></i></div>'
    numbers = f'<td class="n">{dropped:,}</td>' if dropped else '<td class="n"></td>'
    return f'<tr><td>{html.escape(name)}</td>{numbers}<td class="n">{left:,}</td><td>{bar}</td></tr>'


def _curves(curve: Sequence[Mapping[str, float]], t: int) -> Figure:
    """Texts an entry by rank before and after balancing, and the share of all matches that the first ranks hold."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ranks = [point["rank"] for point in curve]
    widths = [rank - before for rank, before in zip(ranks, [0, *ranks], strict=False)]
    for name, colour in (("before", GREY), ("after", COLOURS[0])):
        values = [point[name] for point in curve]
        left.plot(ranks, values, color=colour, marker=".", markersize=4, label=f"{name} balancing")
        sums = [width * value for width, value in zip(widths, values, strict=True)]
        total = sum(sums) or 1
        shares = [sum(sums[: i + 1]) / total for i in range(len(sums))]
        right.plot(ranks, shares, color=colour, marker=".", markersize=4, label=f"{name} balancing")
    left.axhline(t, color=INK, linewidth=0.8, linestyle=":", label="t")
    left.set_yscale("symlog", linthresh=1)
    left.set_ylim(bottom=0)
    left.set_ylabel("texts an entry")
    right.set_ylabel("share of all matches up to the rank")
    right.set_ylim(0, 1.02)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("rank of the entry before balancing")
        plain(axes)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _entries(title: str, counts: Mapping[str, int]) -> str:
    rows = sorted(counts.items(), key=lambda item: item[1], reverse=title == "Most common")[:ENTRIES]
    return f"<div>{table([title, 'texts'], [(entry, f'{n:,}') for entry, n in rows])}</div>"


def _histograms(sizes: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Bars of half an octave, with the median in the title."""
    rows = len(sizes) // 2
    figure = Figure(figsize=(10, 2.3 * rows), layout="constrained")
    for axes, (label, values) in zip(figure.subplots(rows, 2).flat, sizes.items(), strict=True):
        edges, heights = zip(*values["histogram"], strict=True)
        axes.bar(range(len(edges)), heights, 0.9, color=COLOURS[0])
        every = -(-len(edges) // 10)
        axes.set_xticks(range(0, len(edges), every), [_short(edge) for edge in edges[::every]])
        axes.set_title(f"{label}: median {values['p50']:,}", fontsize=9, loc="left")
        plain(axes)
    return figure


def _short(number: int) -> str:
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{name}"
    return str(number)


def _samples(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for row in rows:
        captions = "".join(f"<div>{html.escape(text)}</div>" for text in row[schema.CAPTIONS])
        cells.append(f"<figure>{_shown(row)}<figcaption>{captions}</figcaption></figure>")
    return f'<div class="grid">{"".join(cells)}</div>'


def _shown(row: Mapping[str, Any]) -> str:
    """The image, or its address. Curation looks at headers only, so an image may turn out to be broken."""
    if schema.IMAGE not in row:
        return f"<small>{html.escape(row[schema.URL] or '')}</small>"
    try:
        return image_tag(row[schema.IMAGE])
    except Exception:  # Pillow raises many kinds on broken files
        return "<small>an image that can't be decoded</small>"
