"""The pass that draws which captions stay and writes the images that keep at least one."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipelines import schema
from pipelines.stages import balance, matching, read, write
from pipelines.stages import filter as rules
from pipelines.stages.filter import CAPTION, KEPT, ROW
from pipelines.stages.units import Unit


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What decides which captions stay, and which images."""

    t: int
    seed: int
    min_side: int
    max_aspect: float


def file_name(unit: Unit) -> str:
    return f"curated-{unit.index:06d}.parquet"


def select_unit(
    unit: Unit, *, folder: str, matches: str, pool_format: str, extras: pa.Schema, draw: Draw, counts: np.ndarray
) -> dict[str, Any]:
    """Write the kept rows of a unit. Returns the file's entry and what the data card adds up."""
    decided = matching.read_matches(matches, unit)
    tally: dict[str, Counter[str]] = {"rows": Counter(), "captions": Counter()}
    sizes: dict[str, Counter[int]] = {name: Counter() for name in ("side", "characters", "captions", "bytes")}
    row = 0
    with write.parquet_file(folder, file_name(unit), schema.with_extras(extras)) as file:
        for table in read.tables(pool_format, unit, extras.names, images=True):
            part = decided.slice(row, table.num_rows).combine_chunks()
            row += table.num_rows
            row_reasons, caption_reasons = _decide(table, part, draw, counts, sizes["side"])
            tally["rows"].update(_named(row_reasons, rules.ROW_REASONS))
            tally["captions"].update(_named(caption_reasons, rules.CAPTION_REASONS))
            kept = _kept(table, row_reasons, caption_reasons)
            if kept.num_rows:
                file.write(kept.select(schema.with_extras(extras).names).cast(schema.with_extras(extras)))
                _measure(kept, sizes)
    if row != decided.num_rows:
        raise ValueError(
            f"{unit.file} has {row} rows where {decided.num_rows} were matched: the pool changed while it was curated"
        )
    return {"file": asdict(file.entry), "tally": tally, "sizes": sizes}


def _decide(
    table: pa.Table, decided: pa.Table, draw: Draw, counts: np.ndarray, sides: Counter[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of ROW_REASONS (uint8 [N]) and, for all captions one after another, of CAPTION_REASONS (uint8 [T])."""
    row_reasons = decided["row_reason"].to_numpy().copy()
    lists = decided["caption_reasons"].combine_chunks()
    reasons = lists.flatten().to_numpy().copy()
    lengths = lists.value_lengths().to_numpy()
    rows = np.repeat(np.arange(len(lengths)), lengths)
    indices = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)

    matches = decided["matches"].combine_chunks().flatten()
    probability = balance.keep_probability(matches, counts, draw.t)
    drawn = balance.draws(table[schema.ID].combine_chunks(), rows, indices, draw.seed) < probability
    reasons[(reasons == KEPT) & ~drawn] = CAPTION["thinned out by balancing"]

    has_caption = np.bincount(rows[reasons == KEPT], minlength=len(lengths)) > 0
    row_reasons[(row_reasons == KEPT) & ~has_caption] = ROW["no caption kept"]
    images = table[schema.IMAGE]
    for i in np.flatnonzero(row_reasons == KEPT):
        row_reasons[i] = _look(images[int(i)].as_py(), draw, sides)
    reasons[(reasons == KEPT) & (row_reasons[rows] != KEPT)] = CAPTION["its image was dropped"]
    return row_reasons, reasons


def _look(image: bytes | None, draw: Draw, sides: Counter[int]) -> int:
    """Judge an image by its header; pixels are decoded when shards are made."""
    try:
        with Image.open(io.BytesIO(image or b"")) as picture:
            width, height = picture.size
    except Exception:  # Pillow raises many kinds on broken files
        return ROW["unreadable image"]
    reason = rules.image_reason(width, height, draw.min_side, draw.max_aspect)
    if reason == KEPT:
        sides[min(width, height)] += 1
    return reason


def _kept(table: pa.Table, row_reasons: np.ndarray, caption_reasons: np.ndarray) -> pa.Table:
    """Rows that stay, with the captions that stay and what is parallel to them."""
    lengths = table[schema.CAPTIONS].combine_chunks().value_lengths().to_numpy()
    stays = np.flatnonzero(row_reasons == KEPT)
    flags = (caption_reasons == KEPT)[np.repeat(row_reasons == KEPT, lengths)]  # of the captions of rows that stay
    rows = np.repeat(np.arange(len(stays)), lengths[stays])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[flags], minlength=len(stays)))]).astype(np.int32)
    kept = table.take(pa.array(stays))
    for name in (schema.CAPTIONS, schema.KINDS):
        if name in kept.column_names:
            values = pc.list_flatten(kept[name]).filter(pa.chunked_array([flags])).combine_chunks()
            at = kept.column_names.index(name)
            kept = kept.set_column(at, name, pa.ListArray.from_arrays(pa.array(offsets), values))
    return kept


def _named(codes: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return {names[code]: int(n) for code, n in enumerate(np.bincount(codes, minlength=len(names))) if n}


def _measure(kept: pa.Table, sizes: dict[str, Counter[int]]) -> None:
    """Add to the histograms of the data card: captions an image, characters a caption, and bytes an image rounded up
    to a power of two."""
    captions = kept[schema.CAPTIONS].combine_chunks()
    sizes["captions"].update(captions.value_lengths().to_pylist())
    sizes["characters"].update(pc.utf8_length(captions.flatten()).to_pylist())
    sizes["bytes"].update(1 << (n - 1).bit_length() for n in pc.binary_length(kept[schema.IMAGE]).to_pylist())
