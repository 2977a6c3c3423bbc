"""Pools of image files: named by a list (`records`), or lying in a folder beside text files.

Several lines of one image are one row with several captions. Files that nothing names are counted.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa

from llip import storage
from llip.data import text_files
from pipelines import schema
from pipelines.stages.read import fields, normalise, records
from pipelines.stages.read.records import IMAGES
from pipelines.stages.work import THREADS, Listed, Partition

NOUN = "rows"
PARTITION_ROWS = 10_000
"""Most rows of a partition: how many bytes its files have is not known."""
SIDECARS = (".txt", ".json", ".TXT", ".JSON")
"""Files beside an image, of its name, that may hold its captions."""


def plan(
    files: Sequence[tuple[str, str]], partition_rows: int, caption_column: str | None, unread: Counter[str]
) -> tuple[list[Partition], pa.Schema]:
    """Partitions of `partition_rows` listed images, at most PARTITION_ROWS; the lists themselves are read here.

    files: lists, or images with the text files beside them; those that are named by a list are given too.
    """
    known = {name: file for file, name in files}
    lists = [(file, name) for file, name in files if is_list(name)]
    if not lists or has_sidecars(known):
        root = files[0][0].removesuffix(files[0][1])
        rows = [(root, "", _beside(known, unread))]
        columns = schema.with_extras([])
    else:
        found = [(file, name, list(_listed(file, name, known, caption_column, unread))) for file, name in lists]
        images = {bool(row.image) for _, _, of in found for row in of if not row.problem}
        if len(images) > 1:
            raise ValueError(f"{lists[0][0]} and others name files and addresses; a pool has one of them")
        rows, columns = found, _columns(found, images=images != {False})
        used = {row.image for _, _, of in rows for row in of}
        for file, name in files:
            if file not in used and not is_list(name):
                unread[f"files {fields.ending(name)}"] += 1
    partitions: list[Partition] = []
    most = min(partition_rows, PARTITION_ROWS)
    for file, name, of_list in rows:
        for start in range(0, len(of_list), most):
            part = tuple(of_list[start : start + most])
            partitions.append(
                Partition(index=len(partitions), file=file, name=name, size=len(part), first_row=start, listed=part)
            )
    return partitions, columns


def is_list(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".jsonl", ".json", ".txt"))


def has_sidecars(names: Iterable[str]) -> bool:
    """Whether some image has a text file of its name beside it."""
    found = set(names)
    return any(
        name.lower().endswith(IMAGES) and any(name.rpartition(".")[0] + suffix in found for suffix in SIDECARS)
        for name in found
    )


def tables(partition: Partition, columns: Sequence[str], unread: Counter[str]) -> Iterator[pa.Table]:
    """Rows in the order of the list (a folder: of the names). An image that cannot be read is null."""
    numbers = iter(enumerate(partition.listed, partition.first_row))
    with ThreadPoolExecutor(THREADS) as pool:  # many small requests: they wait together
        while batch := list(islice(numbers, normalise.BATCH_ROWS)):
            rows = pool.map(lambda item: _row(partition, item[0], item[1], columns), batch)
            yield normalise.table(
                list(rows), [listed.extras for _, listed in batch], partition.columns, columns, unread
            )


def _row(partition: Partition, number: int, listed: Listed, columns: Sequence[str]) -> dict[str, Any]:
    captions: list[str | None] = list(listed.captions)
    reason, unread = listed.problem, Counter[str]()
    if listed.caption_file and not reason:
        captions, reason = _sidecar(listed.caption_file, unread)
    image = None
    if schema.IMAGE in columns and listed.image:
        image, too_large = normalise.image_file(listed.image)
        reason = reason or too_large
    name = listed.image.removeprefix(partition.file) if not partition.name else f"{number:09d}"
    return {
        schema.ID: f"{normalise.prefix(partition.name)}-{name}",
        schema.IMAGE: image,
        schema.CAPTIONS: captions,
        schema.REASON: reason or None,
        normalise.UNREAD: unread,
    }


def _sidecar(uri: str, unread: Counter[str]) -> tuple[list[str | None], str]:
    """Captions of a text file, a line each, or of a JSON object; and why there are none."""
    try:
        content = storage.read_bytes(uri, most=normalise.TEXT_BYTES)
        if uri.lower().endswith(".json"):
            record = records.of_text(text_files.decoded(content, uri))
            return normalise.captions_of(record.values, None), record.problem
        found = text_files.all_lines(text_files.decoded(content, uri))
    except storage.TooLargeError:
        return [], normalise.TOO_LARGE
    except OSError as error:
        if storage.is_transient(error):
            raise
        return [], records.UNREADABLE
    except (ValueError, RecursionError) as error:
        return [], records.UNREADABLE if isinstance(error, json.JSONDecodeError) else records.NOT_UNICODE
    kept: list[str | None] = [line for line in found if line.strip()]
    if len(kept) < len(found):
        unread[records.BLANK] += len(found) - len(kept)
    return kept, ""


def _beside(known: dict[str, str], unread: Counter[str]) -> list[Listed]:
    """Images with the text file of the same name, which may be missing."""
    rows, used = [], set()
    for name, file in known.items():
        if name.lower().endswith(IMAGES):
            stem = name.rpartition(".")[0]
            text = next((stem + suffix for suffix in SIDECARS if stem + suffix in known), "")
            rows.append(Listed(image=file, caption_file=known.get(text, "")))
            used |= {name, *(stem + suffix for suffix in SIDECARS)} if text else {name}
    for name in known.keys() - used:
        unread[f"files {fields.ending(name)}"] += 1
    return rows


def _listed(
    file: str, name: str, known: dict[str, str], caption_column: str | None, unread: Counter[str]
) -> Iterator[Listed]:
    """Rows of a list, those of one image together, where it stands first."""
    given = [caption_column] if caption_column else []
    found = list(records.count_ids(records.records(file, known=given, unread=unread), unread))
    good = [record for record in found if not record.problem]
    if found and not good:
        raise ValueError(f"{file} cannot be read: line {found[0].line}: {found[0].detail}")
    names = list(dict.fromkeys(name for record in good for name in record.values))
    path = next((c for c in records.PATHS if c in names), None)
    url = next((c for c in records.ADDRESSES if c in names), None)
    if good and path is None and url is None:
        wanted = f"{', '.join(records.PATHS)}, or of addresses, {', '.join(records.ADDRESSES)},"
        raise ValueError(f"{file} has no column of image paths: one of {wanted} is needed; it has {', '.join(names)}")
    source = normalise.caption_column(names, file, caption_column, records.TEXTS) if good else ""
    by_place = _basenames(known)
    place = path or url or ""
    rows: dict[str, Listed] = {}
    for record in found:
        value = record.values.get(place)
        if record.problem or not isinstance(value, str) or not value or not text_files.is_unicode(value):
            rows[f"\n{record.line}"] = Listed(image="", problem=record.problem or records.UNREADABLE)
            continue
        captions = tuple(normalise.captions_of(record.values, source if given or source in record.values else None))
        if value in rows:
            rows[value] = replace(rows[value], captions=rows[value].captions + captions)
            continue
        image = _place(value, file, name, known, by_place) if path else ""
        extras = {k: v for k, v in record.values.items() if k not in (path, source, url if path is None else None)}
        if path is None:
            extras[schema.URL] = value
        problem = records.NOT_UNICODE if captions and not any(map(normalise.is_text, captions)) else ""
        rows[value] = Listed(image=image, captions=captions, extras=extras, problem=problem)
    if good and all(row.problem for row in rows.values()):
        raise ValueError(f"{file}: row 1 has no {place!r}; it has to be the path of an image file")
    yield from rows.values()


def _basenames(known: dict[str, str]) -> dict[str, str]:
    """Files by the last part of their names, where it is of one alone."""
    times = Counter(name.rpartition("/")[2] for name in known)
    return {last: file for name, file in known.items() if times[last := name.rpartition("/")[2]] == 1}


def _place(image: str, file: str, name: str, known: dict[str, str], by_place: dict[str, str]) -> str:
    """URI of an image that a list names: beside the list, or, as COCO's, the one of its name in the pool."""
    if image.startswith("/") or "://" in image:
        return image
    folder = name.rpartition("/")[0]
    inside = f"{folder}/{image}" if folder else image
    found = known.get(inside) or known.get(image) or by_place.get(image.rpartition("/")[2])
    if not found and image != image.strip():
        return _place(image.strip(), file, name, known, by_place)
    return found or storage.join(file.rpartition("/")[0], image)


def _columns(found: Sequence[tuple[str, str, list[Listed]]], *, images: bool) -> pa.Schema:
    """The columns of a pool: further fields as `fields` types them."""
    every = [row.extras for _, _, of in found for row in of]
    names = dict.fromkeys(name for values in every for name in values if name not in schema.REQUIRED)
    kinds = {name: fields.of_all([values.get(name) for values in every]) for name in names}
    if not images:
        kinds = {schema.URL: pa.string()} | {name: kind for name, kind in kinds.items() if name != schema.URL}
    extras = [pa.field(name, kind) for name, kind in kinds.items() if kind is not None]
    return schema.with_extras(extras, images=images)
