"""Lists of images or links as records: CSV, TSV, JSON Lines and JSON, also compressed by gzip.

A line that cannot be read is a record too, with the reason in place of its values: it is counted, and named where
nothing else is left. A list without a header may have two columns, of which one is told by its values: the addresses of
CC3M and CC12M, the file names of Flickr8k.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, Any

from llip import storage
from llip.data import text_files
from pipelines import schema

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
PATHS = ("image", "path", "file", "filepath", "file_name", "filename", "image_path", "image_name")
"""Columns that may name the image file, relative to the list."""
ADDRESSES = (schema.URL, "URL", "image_url")
"""Columns of addresses, where there are no files."""
TEXTS = (schema.CAPTIONS, *schema.SINGLE_CAPTION, "TEXT", "raw_caption", "comment", "texts")
"""Columns that may hold the captions."""
UNREADABLE, NOT_UNICODE = "line cannot be read", "text is no Unicode"
"""Reasons, see `rules.ROW_REASONS`."""
BLANK, OWN_IDS = "blank lines", "ids of lists"
"""Names of `unread` for blank lines, and for ids of lists, which may repeat or miss: rows get ids of their own."""
FIELD_BYTES = 1 << 26
DELIMITERS = ",\t;|"
FILE = re.compile(r".*\.(jpe?g|png|webp)(#\d+)?", re.IGNORECASE)
NUMBER = re.compile(r"#\d+$")
ADDRESS = re.compile(r"https?://\S+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A line of a list."""

    line: int
    """Line at which it begins, from 1; of a JSON file, the number of the object."""
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why it has no values: a name of `rules.ROW_REASONS`."""
    detail: str = ""
    """Description of the problem."""


@contextmanager
def opened(uri: str) -> Iterator[IO[bytes]]:
    """A list to read from, unpacked. Raises ValueError naming it, also for what goes wrong in the `with` block."""
    try:
        with storage.opened(uri) as handle:
            file: Any = gzip.GzipFile(fileobj=handle) if uri.lower().endswith(".gz") else handle
            text_files.refuse_other_encodings(file.read(text_files.HEAD), uri)
            file.seek(0)
            yield file
    except (OSError, EOFError, zlib.error) as error:
        if storage.is_transient(error):
            raise
        raise ValueError(f"{uri} cannot be read ({error})") from error


def records(uri: str, *, known: Sequence[str] = (), unread: Counter[str]) -> Iterator[Record]:
    """The records of a list, in order; blank lines are added to `unread`. known: further names that a header may hold.

    Raises ValueError for a file that is none of the formats, and for two columns of one name.
    """
    name = uri.lower().removesuffix(".gz")
    with opened(uri) as file:
        if name.endswith(".jsonl"):
            yield from _json_lines(file, unread)
        elif name.endswith(".json"):
            yield from _json(file.read(), uri, unread)
        else:
            yield from _delimited(file, uri, (*PATHS, *ADDRESSES, *TEXTS, *known), unread)


def count_ids(found: Iterable[Record], unread: Counter[str]) -> Iterator[Record]:
    """The same records; those that bring an id are counted, since it is not read."""
    for record in found:
        if record.values.get(schema.ID) not in (None, ""):
            unread[OWN_IDS] += 1
        yield record


def _json_lines(file: Iterable[bytes], unread: Counter[str]) -> Iterator[Record]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            unread[BLANK] += 1
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield Record(line=number, problem=NOT_UNICODE, detail=str(error))
            continue
        yield of_text(text, number)


def of_text(text: str, number: int = 1) -> Record:
    """The record of a JSON object."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return Record(line=number, problem=UNREADABLE, detail=str(error))
    return _of_value(value, number)


class _Repeated(dict[str, Any]):
    """An object two of whose fields have one name."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else _Repeated(Counter(name for name, _ in pairs))


def _of_value(value: Any, number: int) -> Record:
    if isinstance(value, _Repeated):
        name = next(name for name, times in value.items() if times > 1)
        return Record(line=number, problem=UNREADABLE, detail=f"two fields are named {name!r}")
    if not isinstance(value, dict):
        detail = f"it holds {str(value)[:40]!r}; every line has to be an object"
        return Record(line=number, problem=UNREADABLE, detail=detail)
    if bad := [name for name in value if not text_files.is_unicode(name)]:
        return Record(line=number, problem=NOT_UNICODE, detail=f"a field is named {bad[0]!r}")
    return Record(line=number, values=value)


def _json(content: bytes, uri: str, unread: Counter[str]) -> Iterator[Record]:
    try:
        value = json.loads(text_files.decoded(content, uri), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        first, newline, _ = content.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
        if newline and not of_text(first.decode("utf-8", "replace"), 1).problem:  # JSON Lines under another name
            return _json_lines(io.BytesIO(content), unread)
        raise ValueError(f"{uri} cannot be read as JSON ({error})") from error
    if isinstance(value, dict):
        value = _annotations(value, uri)
    if not isinstance(value, list):
        raise ValueError(f"{uri} holds a {type(value).__name__}; a list of objects is needed")
    return (_of_value(item, number) for number, item in enumerate(value, 1))


def _annotations(value: dict[str, Any], uri: str) -> list[Any]:
    """The list inside an object: COCO's annotations with their images, RedCaps' annotations, Karpathy's images.

    Items that are no objects, and annotations of no image, stay in the list as they are, to be counted.
    """
    images, notes = value.get("images"), value.get("annotations")
    if isinstance(images, list) and isinstance(notes, list):
        texts: dict[str, list[Any]] = {_key(image): [] for image in images if _is_object(image)}
        lost = [note for note in notes if not _is_object(note) or _key(note, "image_id") not in texts]
        for note in notes:
            if _is_object(note) and (key := _key(note, "image_id")) in texts:
                texts[key].append(note.get("caption"))
        return [_with_captions(image, texts) for image in images] + [[note] for note in lost]
    if isinstance(notes, list):
        return notes
    if isinstance(images, list):
        return [_of_karpathy(image) if _is_object(image) else image for image in images]
    raise ValueError(f"{uri} is an object without annotations or images; a list of objects is needed")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not isinstance(value, _Repeated)


def _key(value: dict[str, Any], name: str = "id") -> str:
    return json.dumps(value.get(name))


def _with_captions(image: Any, texts: dict[str, list[Any]]) -> Any:
    return image | {schema.CAPTIONS: texts[_key(image)]} if _is_object(image) else image


def _of_karpathy(image: dict[str, Any]) -> dict[str, Any]:
    sentences = image.get("sentences")
    texts = [s.get("raw") if isinstance(s, dict) else None for s in sentences] if isinstance(sentences, list) else []
    parts = [part for part in (image.get("filepath"), image.get("filename")) if isinstance(part, str) and part]
    return {"file_name": "/".join(parts), schema.CAPTIONS: texts, "split": image.get("split")}


def _delimited(file: IO[bytes], uri: str, known: Sequence[str], unread: Counter[str]) -> Iterator[Record]:
    csv.field_size_limit(FIELD_BYTES)
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    head = list(_to_first(text))
    first = head[-1] if head else ""
    delimiter = "\t" if uri.lower().removesuffix(".gz").endswith(".tsv") else _delimiter(first, known)
    rows = _rows(chain(head, text), uri, delimiter, unread)
    names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    if not all(map(text_files.is_unicode, names)):
        raise ValueError(f"{uri}, line {len(head)}: the names of the columns are no UTF-8; save it as UTF-8")
    if any(name in known for name in names):
        next(rows)
        if repeated := [name for name in names if name and names.count(name) > 1]:
            raise ValueError(f"{uri} has two columns named {repeated[0]!r}; rename one")
        numbered = False
    else:
        names = _without_header(names)
        numbered = PATHS[0] in names
    for number, values in rows:
        if numbered:  # Flickr8k's names of captions: a file, and which of its captions it is
            values = [NUMBER.sub("", v) if n == PATHS[0] else v for n, v in zip(names, values, strict=False)] + values[
                len(names) :
            ]
        if len(values) != len(names):
            detail = f"it has {len(values)} fields where the others have {len(names)}"
            yield Record(line=number, problem=UNREADABLE, detail=detail)
        else:
            yield Record(line=number, values={name: v for name, v in zip(names, values, strict=True) if name})


def _to_first(lines: Iterator[str]) -> Iterator[str]:
    """Lines up to the first one that is not blank."""
    for line in lines:
        yield line
        if line.strip():
            return


def _rows(lines: Iterator[str], uri: str, delimiter: str, unread: Counter[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of rows that are not blank. With tabs quotes are letters, but around a whole field."""
    tabs = delimiter == "\t"
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL, strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{uri}, line {begin}: a field cannot be read ({error}); a quote in a quoted field has to be doubled"
            ) from error
        if values is None:
            return
        if any(value.strip() for value in values):
            yield begin, [_unquoted(value) for value in values] if tabs else values
        else:
            unread[BLANK] += 1


def _unquoted(value: str) -> str:
    inner = value[1:-1].replace('""', "")
    if len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner:
        return value[1:-1].replace('""', '"')
    return value


def _delimiter(header: str, known: Sequence[str]) -> str:
    """The one that parts a header into most names that are known; without any, a tab where there is one."""
    found = {d: sum(name.strip() in known for name in next(csv.reader([header], delimiter=d), [])) for d in DELIMITERS}
    best = max(DELIMITERS, key=lambda d: found[d])
    return best if found[best] else "\t" if "\t" in header else ","


def _without_header(first: list[str]) -> list[str]:
    """Names of two columns by what the first row holds; that row itself where it does not tell."""
    if len(first) == 2:
        for name, pattern in ((schema.URL, ADDRESS), (PATHS[0], FILE)):
            for place, other in ((0, 1), (1, 0)):
                if pattern.fullmatch(first[place]) and not pattern.fullmatch(first[other]):
                    return [name, "caption"] if place == 0 else ["caption", name]
    return first
