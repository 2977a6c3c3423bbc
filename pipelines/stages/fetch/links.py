"""Links to images with captions, whatever their format, as Parquet files of one shape.

| format | rows |
| --- | --- |
| Parquet; lists, see `read/records.py` | addresses and captions; optionally `page`, where relative addresses begin |
| WAT | Common Crawl's link files: images of pages that have an alt text |
"""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby, islice
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import pyarrow as pa
from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

from llip import storage
from llip.data import text_files
from pipelines import schema
from pipelines.stages import write
from pipelines.stages.hashing import hash64
from pipelines.stages.read import fields, normalise, parquet, records
from pipelines.stages.work import Partition

LIST = "list"
SUFFIXES = {".parquet": "parquet", ".wat": "WAT"} | dict.fromkeys((".csv", ".tsv", ".jsonl", ".json"), LIST)
ADDRESSES = (*records.ADDRESSES, "src", "coco_url")
CAPTIONS = (schema.CAPTIONS, *schema.SINGLE_CAPTION, "TEXT", "alt", "raw_caption")
PAGE = "page"
"""Column of the address of the page that a link was found on."""
DAMAGED = (ArchiveLoadFailed, OSError, EOFError, zlib.error)
"""Errors of reading a WAT file."""
ROWS = 4096
"""Links that are in memory at once."""
ID_ROWS = 1 << 16
"""Ids that are in memory at once."""
HASHES = 1 << 25
"""Hashes of ids that are in memory at once, about."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Meaning of the columns of a list."""

    url: str | None
    """None: the first of ADDRESSES that there is."""
    captions: str | None
    """None: the first of CAPTIONS that there is."""
    sha256: str | None
    """Hexadecimal checksum of the image; None: there is none."""

    def resolved(self, names: Sequence[str], file: str) -> "Columns":
        """The columns of a file. Raises ValueError naming it where one is missing."""
        missing = [n for n in (self.url, self.captions, self.sha256) if n and n not in names]
        url = self.url or next((n for n in ADDRESSES if n in names), None)
        captions = self.captions or next((n for n in CAPTIONS if n in names), None)
        if missing or url is None or captions is None:
            wanted = ", ".join(missing) or " or ".join(ADDRESSES if url is None else CAPTIONS)
            raise ValueError(f"{file} has no column {wanted}; it has {', '.join(names)}")
        return Columns(url=url, captions=captions, sha256=self.sha256)


def links_name(partition: Partition) -> str:
    return f"links-{partition.index:06d}.parquet"


def list_partition(
    partition: Partition, *, folder: str, kind: str, columns: Columns, row_group_size: int, curated: bool = False
) -> dict[str, Any]:
    """Write the links of a file to `folder`: id, captions, url and its other columns, of `curated` ones those of
    curation too. Returns the file's entry, of no rows where it holds no links, and what was found and not read, by
    kind.

    Raises ValueError for a file that cannot be read, or lacks a column, and for a row without an id.
    """
    unread = Counter[str]()
    if kind == "parquet":
        tables = _parquet(partition, columns, curated)
    else:
        tables = _listed(partition, columns, unread) if kind == LIST else _wat(partition, columns, unread)
    first = next(tables, _shape([]).empty_table())
    with write.parquet_file(folder, links_name(partition), first.schema) as file:
        for table in _regrouped(first, tables, row_group_size):
            file.write(table)
    return {"file": asdict(file.entry), "unread": unread}


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


def _parquet(partition: Partition, columns: Columns, curated: bool) -> Iterator[pa.Table]:
    with parquet.opened(partition.file) as file:
        names = file.schema_arrow.names
        if not file.metadata.num_rows:
            return
        columns = columns.resolved(names, partition.file)
        _refuse(names, columns, partition.file, curated=curated)
        row = 0
        for batch in file.iter_batches(ROWS):
            given = {name: normalise.plain(batch[name]) for name in names}
            urls = normalise.unicode(given.pop(columns.url).cast(pa.string()))
            captions = normalise.captions(given.pop(columns.captions))
            if (ids := given.pop(schema.ID, None)) is None:
                ids = normalise.derived_ids(partition.name, range(row, row + len(urls)))
            if ids.null_count:
                missing = row + ids.is_null().to_pylist().index(True)
                raise ValueError(
                    f"{partition.file}: row {missing} has no id; every row needs one, or the column must go"
                )
            if PAGE in given:
                urls = _resolved(urls, given[PAGE])
            carried = {name: values for name, values in given.items() if name not in (schema.CAPTIONS, schema.URL)}
            if columns.sha256:
                carried[columns.sha256] = carried[columns.sha256].cast(pa.string())
            carried = {name: normalise.unicode_inside(values) for name, values in carried.items()}
            ids = normalise.unicode(ids.cast(pa.string()), replace=True)
            yield pa.table({schema.ID: ids, schema.CAPTIONS: captions, schema.URL: urls} | carried)
            row += len(urls)


def _refuse(names: Sequence[str], columns: Columns, file: str, *, curated: bool = False) -> None:
    """Raise ValueError for columns that links cannot have."""
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{file} has two columns named {repeated[0]!r}; rename one")
    if schema.IMAGE in {*names} - {columns.url}:
        raise ValueError(
            f"{file} has a column {schema.IMAGE!r} already: nothing has to be fetched, or the column needs another name"
        )
    if not curated:
        schema.refuse_reserved(names, file, several=False)


def refuse_repeated_ids(files: Sequence[tuple[str, str]], rows: int) -> None:
    """Raises ValueError naming an id that several links have, and where.

    files: as `list_partition` wrote them, each with the list that it comes from.
    """
    parts = -(-rows // HASHES)
    for part in range(parts):  # each reads all ids, so that memory is bounded for a list of any length
        found = np.sort(np.concatenate([h[h % parts == part] for h in (hash64(ids, 0) for _, ids in _ids(files))]))
        _refuse_ids(files, found[1:][found[1:] == found[:-1]])


def _refuse_ids(files: Sequence[tuple[str, str]], hashes: np.ndarray) -> None:
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


def _shape(extras: Iterable[pa.Field]) -> pa.Schema:
    return schema.with_extras([pa.field(schema.URL, pa.string()), *extras], images=False)


def _rows(
    partition: Partition, links: Iterator[dict[str, Any]], shape: pa.Schema, unread: Counter[str]
) -> Iterator[pa.Table]:
    """Tables of links, with ids of their own."""
    prefix = normalise.prefix(partition.name)
    rows = ({schema.ID: f"{prefix}-{i:09d}"} | link for i, link in enumerate(links))
    while part := list(islice(rows, ROWS)):
        found = {field.name: fields.array([row.get(field.name) for row in part], field.type) for field in shape}
        if others := sum(len(others) for _, others in found.values()):
            unread[normalise.OTHER_TYPE] += others
        yield pa.table({name: values for name, (values, _) in found.items()}, schema=shape)


def _listed(partition: Partition, columns: Columns, unread: Counter[str]) -> Iterator[pa.Table]:
    """Links of a list, which is read twice: what its columns are shows in all of their values."""
    known = [n for n in (columns.url, columns.captions, columns.sha256, PAGE, *ADDRESSES, *CAPTIONS) if n]
    kinds: dict[str, pa.DataType | None] = {}
    problem = None
    found = records.records(partition.file, known=known, unread=Counter())
    while part := list(islice(found, ROWS)):
        problem = problem or next((record for record in part if record.problem), None)
        values = [record.values for record in part if not record.problem]
        for name in dict.fromkeys(name for of_record in values for name in of_record):
            kinds[name] = fields.wider(kinds.get(name), fields.of_all([v.get(name) for v in values]))
    if not kinds:
        if problem:
            raise ValueError(f"{partition.file} cannot be read: line {problem.line}: {problem.detail}")
        return
    columns = columns.resolved([*kinds], partition.file)
    _refuse([*kinds], columns, partition.file)
    texts = {name: pa.string() for name in (PAGE, columns.sha256) if name in kinds}
    of_link = {columns.url, columns.captions, schema.ID, schema.CAPTIONS, schema.URL}
    extras = [pa.field(n, kind) for n, kind in (kinds | texts).items() if kind is not None and n not in of_link]
    again = records.count_ids(records.records(partition.file, known=known, unread=unread), unread)
    yield from _rows(partition, _links(again, columns, unread), _shape(extras), unread)


def _links(found: Iterable[records.Record], columns: Columns, unread: Counter[str]) -> Iterator[dict[str, Any]]:
    """Links of records; neighbours of one address are one, with the captions of all."""

    def address(record: records.Record) -> Any:
        url, page = (record.values.get(name or "") for name in (columns.url, PAGE))
        if not isinstance(url, str) or not url.strip() or not text_files.is_unicode(url):
            return record.line  # none, whatever its neighbours have
        return _join(page if isinstance(page, str) else "", url)

    good = (record for record in found if not _counted(record, unread))
    for url, of_one in groupby(good, address):
        first = next(of_one)
        captions = [c for r in chain([first], of_one) for c in normalise.captions_of(r.values, columns.captions) if c]
        yield first.values | {schema.URL: url if isinstance(url, str) else None, schema.CAPTIONS: captions}


def _counted(record: records.Record, unread: Counter[str]) -> bool:
    """Whether a record cannot be read; it is added to `unread` then, by its reason."""
    if record.problem:
        unread[record.problem] += 1
    return bool(record.problem)


def _wat(partition: Partition, columns: Columns, unread: Counter[str]) -> Iterator[pa.Table]:
    """Images with alt texts of the pages in a WAT file; an address is resolved as the page's browser would."""
    try:
        with storage.opened(partition.file) as handle:
            shape = _shape([pa.field(PAGE, pa.string())])
            yield from _rows(partition, _pages(ArchiveIterator(handle), unread), shape, unread)
    except DAMAGED as error:
        raise ValueError(f"{partition.file} cannot be read as WAT ({error})") from error


def _pages(archive: Iterable[Any], unread: Counter[str]) -> Iterator[dict[str, Any]]:
    for record in archive:
        if record.rec_type != "metadata":
            continue
        try:
            page = json.loads(record.content_stream().read())
        except (ValueError, RecursionError):
            unread[records.UNREADABLE] += 1
            continue
        yield from _page_links(page)


def _page_links(record: Any) -> Iterator[dict[str, Any]]:
    page = _inside(record, "Envelope", "WARC-Header-Metadata", "WARC-Target-URI")
    html = _inside(record, "Envelope", "Payload-Metadata", "HTTP-Response-Metadata", "HTML-Metadata")
    page, base = (value if isinstance(value, str) else "" for value in (page, _inside(html, "Head", "Base")))
    links = _inside(html, "Links")
    for link in links if isinstance(links, list) else ():
        url, alt = _inside(link, "url"), _inside(link, "alt")
        if _inside(link, "path") != "IMG@/src" or not normalise.is_text(url) or not normalise.is_text(alt):
            continue
        if url and alt.strip():
            yield {schema.URL: _join(_join(page, base), url), schema.CAPTIONS: [alt.strip()], PAGE: page}


def _inside(value: Any, *names: str) -> Any:
    """Value of a field in nested objects; None where one of them is no object or has no such field."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
