"""Links to pictures with captions, whatever their format, as Parquet files of one shape.

| format | rows |
| --- | --- |
| Parquet, CSV, JSONL | addresses and captions; optionally `page`, where relative addresses begin |
| WAT | Common Crawl's link files: images of pages that have an alt text |
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import pyarrow as pa
from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

from llip import storage
from pipelines import schema
from pipelines.stages import write
from pipelines.stages.hashing import hash64
from pipelines.stages.read import normalise, parquet
from pipelines.stages.work import Unit

SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".wat": "WAT", ".gz": "WAT"}
ADDRESSES = (schema.URL, "URL", "image_url", "src")
CAPTIONS = (schema.CAPTIONS, *schema.SINGLE_CAPTION, "TEXT", "alt")
PAGE = "page"
"""Column of the address of the page that a link was found on."""
UNREADABLE = (
    pa.ArrowException,
    ArchiveLoadFailed,
    OSError,
    EOFError,
    csv.Error,
    UnicodeDecodeError,
    json.JSONDecodeError,
)
ROWS = 4096
"""Links that are in memory at once."""
ID_ROWS = 1 << 16
"""Ids that are in memory at once."""
HASHES = 1 << 25
"""Hashes of ids that are in memory at once, about."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of a list mean."""

    url: str | None
    """None: the first of ADDRESSES that there is."""
    captions: str | None
    """None: the first of CAPTIONS that there is."""
    sha256: str | None
    """Hexadecimal checksum of the picture; None: there is none."""

    def resolved(self, names: Sequence[str], file: str) -> "Columns":
        """The columns of a file. Raises ValueError naming it where one is missing."""
        missing = [n for n in (self.url, self.captions, self.sha256) if n and n not in names]
        url = self.url or next((n for n in ADDRESSES if n in names), None)
        captions = self.captions or next((n for n in CAPTIONS if n in names), None)
        if missing or url is None or captions is None:
            wanted = ", ".join(missing) or " or ".join(ADDRESSES if url is None else CAPTIONS)
            raise ValueError(f"{file} has no column {wanted}; it has {', '.join(names)}")
        return Columns(url=url, captions=captions, sha256=self.sha256)


def links_name(unit: Unit) -> str:
    return f"links-{unit.index:06d}.parquet"


def list_unit(unit: Unit, *, folder: str, kind: str, columns: Columns, row_group_size: int) -> dict[str, Any]:
    """Write the links of a file to `folder`: id, captions, url, and other columns of a Parquet file.

    Raises ValueError for a file that cannot be read, or lacks a column, and for a row without an id.
    """
    tables = _parquet(unit, columns) if kind == "parquet" else _records(unit, kind, columns)
    try:
        first = next(tables, None)
        if first is None:
            raise ValueError(f"{unit.file} holds no links")
        with write.parquet_file(folder, links_name(unit), first.schema) as file:
            for table in _regrouped(first, tables, row_group_size):
                file.write(table)
    except UNREADABLE as error:
        raise ValueError(f"{unit.file} cannot be read as {kind} ({error})") from error
    return asdict(file.entry)


def _regrouped(first: pa.Table, others: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows`."""
    waiting = first
    while True:
        while waiting.num_rows >= rows:
            yield waiting.slice(0, rows)
            waiting = waiting.slice(rows)
        if (table := next(others, None)) is None:
            break
        waiting = pa.concat_tables([waiting, table])
    if waiting.num_rows:
        yield waiting


def _parquet(unit: Unit, columns: Columns) -> Iterator[pa.Table]:
    with parquet.opened(unit.file) as file:
        columns = columns.resolved(file.schema_arrow.names, unit.file)
        if schema.IMAGE in {*file.schema_arrow.names} - {columns.url}:
            raise ValueError(f"{unit.file} has a column {schema.IMAGE!r} already: nothing has to be fetched")
        row = 0
        for batch in file.iter_batches(ROWS):
            given = {name: batch[name] for name in batch.schema.names}
            urls, captions = given.pop(columns.url).cast(pa.string()), normalise.captions(given.pop(columns.captions))
            ids = (
                given.pop(schema.ID)
                if schema.ID in given
                else normalise.derived_ids(unit.name, range(row, row + len(urls)))
            )
            if ids.null_count:
                missing = row + ids.is_null().to_pylist().index(True)
                raise ValueError(f"{unit.file}: row {missing} has no id; every row needs one, or the column must go")
            if PAGE in given:
                urls = _resolved(urls, given[PAGE])
            carried = {name: values for name, values in given.items() if name not in (schema.CAPTIONS, schema.URL)}
            yield pa.table({schema.ID: ids.cast(pa.string()), schema.CAPTIONS: captions, schema.URL: urls} | carried)
            row += len(urls)


def refuse_repeated_ids(files: Sequence[tuple[str, str]], rows: int) -> None:
    """Raises ValueError naming an id that several links have, and where. files: as `list_unit` wrote them, each with
    the list that it comes from."""
    parts = -(-rows // HASHES)
    for part in range(parts):  # each reads all ids, so that memory is bounded for a list of any length
        found = np.sort(np.concatenate([h[h % parts == part] for h in (hash64(ids, 0) for _, ids in _ids(files))]))
        _refuse(files, found[1:][found[1:] == found[:-1]])


def _refuse(files: Sequence[tuple[str, str]], hashes: np.ndarray) -> None:
    """Raises ValueError for one of these hashes that several links have because they have the same id."""
    if not len(hashes):
        return
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name, ids in _ids(files):
        for i in np.flatnonzero(np.isin(hash64(ids, 0), hashes)).tolist():
            places[ids[i].as_py()].append(name)
    for link, names in places.items():
        if len(names) > 1:
            where = " and ".join(dict.fromkeys(names[:2]))
            raise ValueError(
                f"{where}: the id {link!r} names several links; ids have to be unique (without a column 'id' links get"
                " unique ones)"
            )


def _ids(files: Sequence[tuple[str, str]]) -> Iterator[tuple[str, pa.StringArray]]:
    for uri, name in files:
        with parquet.opened(uri) as file:
            for batch in file.iter_batches(ID_ROWS, columns=[schema.ID]):
                yield name, batch[schema.ID]


def _resolved(urls: pa.Array, pages: pa.Array) -> pa.Array:
    pairs = zip(urls.to_pylist(), pages.to_pylist(), strict=True)
    return pa.array([_join(page or "", url) if url else url for url, page in pairs], pa.string())


def _join(page: str, url: str) -> str:
    try:
        return url if urlsplit(url).scheme else urljoin(page, url)
    except ValueError:  # an address that is none; its fetch says so
        return url


def _records(unit: Unit, kind: str, columns: Columns) -> Iterator[pa.Table]:
    """Tables of a file of text, with the columns page and, where it is asked for, the checksum."""
    names = [PAGE, *([columns.sha256] if columns.sha256 else [])]
    fields = [pa.field(n, pa.string()) for n in (schema.URL, *names)]
    shape = pa.schema([(schema.ID, pa.string()), (schema.CAPTIONS, schema.REQUIRED[schema.CAPTIONS]), *fields])
    prefix = normalise.prefix(unit.name)
    with storage.opened(unit.file) as handle:
        rows = (
            {schema.ID: f"{prefix}-{i:09d}"} | {n: link.get(n) for n in (schema.CAPTIONS, schema.URL, *names)}
            for i, link in enumerate(READERS[kind](handle, unit.file, columns))
        )
        while part := list(islice(rows, ROWS)):
            yield pa.Table.from_pylist(part, schema=shape)


def _csv(handle: IO[bytes], file: str, columns: Columns) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.TextIOWrapper(handle, "utf-8-sig", newline=""))
    columns = columns.resolved(reader.fieldnames or [], file)
    return (_link(record, columns) for record in reader)


def _jsonl(handle: IO[bytes], file: str, columns: Columns) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(handle, 1):
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"{file}: line {number} holds {str(record)[:40]!r}; every line has to be an object")
        if number == 1:
            columns = columns.resolved(list(record), file)
        yield _link(record, columns)


def _link(record: dict[str, Any], columns: Columns) -> dict[str, Any]:
    url, page, captions = (record.get(name or "") for name in (columns.url, PAGE, columns.captions))
    url, page = (value if isinstance(value, str) else None for value in (url, page))
    return {
        schema.URL: _join(page or "", url) if url else None,
        schema.CAPTIONS: [c for c in (captions if isinstance(captions, list) else [captions]) if isinstance(c, str)],
        PAGE: page,
    } | ({columns.sha256: record.get(columns.sha256)} if columns.sha256 else {})


def _wat(handle: IO[bytes], file: str, columns: Columns) -> Iterator[dict[str, Any]]:
    """Images with alt texts of the pages in a WAT file; an address is resolved as the page's browser would."""
    for record in ArchiveIterator(handle):
        if record.rec_type == "metadata":
            yield from _page_links(json.loads(record.content_stream().read()))


def _page_links(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    envelope = record.get("Envelope", {})
    page = envelope.get("WARC-Header-Metadata", {}).get("WARC-Target-URI", "")
    html = envelope.get("Payload-Metadata", {}).get("HTTP-Response-Metadata", {}).get("HTML-Metadata", {})
    base = _join(page, html.get("Head", {}).get("Base", ""))
    for link in html.get("Links", []):
        if link.get("path") == "IMG@/src" and link.get("url") and (alt := link.get("alt", "").strip()):
            yield {schema.URL: _join(base, link["url"]), schema.CAPTIONS: [alt], PAGE: page}


READERS: dict[str, Callable[[IO[bytes], str, Columns], Iterator[dict[str, Any]]]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "WAT": _wat,
}
