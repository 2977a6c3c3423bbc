"""Pools of image files: named by a CSV or JSONL file, or lying in a folder beside text files."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa

from llip import storage
from pipelines import schema
from pipelines.stages.read import normalise
from pipelines.stages.work import THREADS, Listed, Unit

NOUN = "rows"
UNIT_ROWS = 10_000
"""Most rows of a unit: how many bytes its files have is not known."""
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
PATHS = ("image", "path", "file", "filepath", "file_name")
"""Columns that may name the image file, relative to the list."""


def plan(files: Sequence[tuple[str, str]], unit_rows: int) -> tuple[list[Unit], pa.Schema]:
    """Units of `unit_rows` listed images, at most UNIT_ROWS; the lists themselves are read here."""
    images = [(file, name) for file, name in files if name.lower().endswith(IMAGES)]
    if images:
        lists = [(images[0][0].removesuffix(images[0][1]), "", _beside(images, {file for file, _ in files}))]
    else:
        lists = [(file, name, _listed(file)) for file, name in files]
    units: list[Unit] = []
    most = min(unit_rows, UNIT_ROWS)
    for file, name, rows in lists:
        for start in range(0, len(rows), most):
            part = tuple(rows[start : start + most])
            units.append(Unit(index=len(units), file=file, name=name, size=len(part), first_row=start, listed=part))
    return units, schema.with_extras([])


def tables(unit: Unit, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Rows in the order of the list (a folder: of the names). A picture that cannot be read is null."""
    return normalise.batched(_rows(unit, schema.IMAGE in columns))


def _rows(unit: Unit, images: bool) -> Iterator[dict[str, Any]]:
    remaining = iter(enumerate(unit.listed, unit.first_row))
    with ThreadPoolExecutor(THREADS) as pool:  # many small requests: they wait together
        while batch := list(islice(remaining, normalise.BATCH_ROWS)):
            yield from pool.map(lambda item: _row(unit, item[0], item[1], images), batch)


def _row(unit: Unit, number: int, listed: Listed, images: bool) -> dict[str, Any]:
    captions = list(listed.captions)
    if listed.caption_file:
        captions = storage.read_bytes(listed.caption_file).decode("utf-8", "replace").splitlines()
    name = listed.image.removeprefix(unit.file) if not unit.name else f"{number:09d}"
    return {
        schema.ID: f"{normalise.prefix(unit.name)}-{name}",
        schema.IMAGE: _content(listed.image) if images else None,
        schema.CAPTIONS: captions,
    }


def _content(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except OSError:
        return None


def _beside(images: Sequence[tuple[str, str]], files: set[str]) -> list[Listed]:
    """Images with the text file of the same name, which may be missing."""
    rows = []
    for file, _ in images:
        text = file.rpartition(".")[0] + ".txt"
        rows.append(Listed(image=file, caption_file=text if text in files else ""))
    return rows


def _listed(file: str) -> list[Listed]:
    records = _records(file)
    if not records:
        return []
    names = list(records[0])
    path = next((c for c in PATHS if c in names), None)
    if path is None:
        raise ValueError(
            f"{file} has no column of image paths: one of {', '.join(PATHS)} is needed; it has {', '.join(names)}"
        )
    normalise.caption_column(names, file)
    folder = file.rpartition("/")[0]
    rows = []
    for number, record in enumerate(records, 1):
        if not isinstance(image := record.get(path), str) or not image:
            raise ValueError(f"{file}: row {number} has no {path!r}; it has to be the path of an image file")
        uri = image if image.startswith("/") or "://" in image else storage.join(folder, image)
        rows.append(Listed(image=uri, captions=tuple(normalise.captions_of(record))))
    return rows


def _records(file: str) -> list[dict[str, Any]]:
    content = storage.read_bytes(file)
    try:
        text = content.decode("utf-8-sig")
        if file.lower().endswith(".csv"):
            return list(csv.DictReader(io.StringIO(text, newline="")))
        records = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if bad := [r for r in records if not isinstance(r, dict)]:
        raise ValueError(f"{file}: a line holds {str(bad[0])[:40]!r}; every line has to be an object")
    return records
