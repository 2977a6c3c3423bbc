"""Pools of WebDataset tars: neighbouring members that share a name up to its first dot are one row.

Fields of a .json member are columns. A name with several dots is a row of its own where it has an image and a text;
a name that stands twice makes two rows. Tars that were written one behind another are read to the end of the last.
"""

import gzip
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from llip import storage
from llip.data import tars, text_files
from pipelines import schema
from pipelines.stages.read import fields, normalise, records
from pipelines.stages.work import Partition

NOUN = "tars"
IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
SAMPLE_ROWS = 64
"""Rows that tell which columns the JSON fields are."""


@dataclass
class Sample:
    """Members of one name."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    """By suffix; without what is too large, and without images that nobody asked for."""
    suffixes: list[str] = field(default_factory=list)
    too_large: bool = False


def plan(
    files: Sequence[tuple[str, str]], partition_rows: int, caption_column: str | None, unread: Counter[str]
) -> tuple[list[Partition], pa.Schema]:
    """A partition for each tar, since a tar can only be read from its beginning; its columns by its first rows."""
    partitions = [Partition(index=i, file=file, name=name, size=1) for i, (file, name) in enumerate(files)]
    for file, _ in files:
        first = list(islice(_samples(file, images=False, unread=Counter()), SAMPLE_ROWS))
        if first:
            return partitions, schema.with_extras(_json_columns([_record(s)[0] for s in first], file, caption_column))
    raise ValueError(
        f"{files[0][0]} holds no row: a row is a .jpg, .png or .webp member with a .txt or .json member of its name"
    )


def _json_columns(found: Sequence[dict[str, Any]], file: str, caption_column: str | None) -> list[pa.Field]:
    names = list(dict.fromkeys(name for record in found for name in record))
    if caption_column is not None and caption_column not in names:
        raise ValueError(
            f"{file}: no JSON of its first rows has {caption_column!r} (--caption-column); it has {', '.join(names)}"
        )
    texts = (schema.ID, schema.IMAGE, schema.CAPTIONS, *schema.SINGLE_CAPTION, "texts", caption_column)
    kinds = {name: fields.of_sample([r.get(name) for r in found]) for name in names if name not in texts}
    return [pa.field(name, kind) for name, kind in kinds.items() if kind is not None]


def tables(partition: Partition, columns: Sequence[str], unread: Counter[str]) -> Iterator[pa.Table]:
    """Rows in the order of the tar; an id is a hash of the tar's name and the row's, and a missing image is null.
    Members that are of no row are added to `unread`, by their suffix."""
    samples = _samples(partition.file, schema.IMAGE in columns, unread)
    times = Counter[str]()
    while batch := list(islice(samples, normalise.BATCH_ROWS)):
        rows, extras = [], []
        for sample in batch:
            times[sample.key] += 1
            record, problem = _record(sample)
            rows.append(_row(partition, sample, times[sample.key], record, problem))
            extras.append(record)
        yield normalise.table(rows, extras, partition.columns, columns, unread)


def _row(partition: Partition, sample: Sample, occurrence: int, record: dict[str, Any], problem: str) -> dict[str, Any]:
    again = f"//{occurrence}" if occurrence > 1 else ""  # no name has two slashes
    captions, reason = _captions(sample, record, partition.caption_column)
    return {
        schema.ID: f"{normalise.prefix(partition.name)}-{sample.key.encode('utf-8', 'replace').decode()}{again}",
        schema.IMAGE: next((sample.members[s] for s in IMAGES if s in sample.members), None),
        schema.CAPTIONS: captions,
        schema.REASON: (normalise.TOO_LARGE if sample.too_large else problem or reason) or None,
        normalise.UNREAD: Counter[str](),
    }


def _record(sample: Sample) -> tuple[dict[str, Any], str]:
    """The object of the .json member, nothing where there is none, and why it cannot be used."""
    if "json" not in sample.members:
        return {}, ""
    try:
        record = records.of_text(text_files.decoded(sample.members["json"], sample.key))
    except ValueError:
        return {}, "" if "txt" in sample.members else records.NOT_UNICODE
    return record.values, "" if "txt" in sample.members else record.problem


def _captions(sample: Sample, record: dict[str, Any], column: str | None) -> tuple[list[str | None], str]:
    """The list `captions` (or MetaCLIP's `texts`) of a .json member, or else the text of a .txt one, or else `caption`
    or `text` of the .json; none where there is neither. And why a text cannot be used."""
    lists = [name for name in (schema.CAPTIONS, "texts") if isinstance(record.get(name), list)]
    if column is None and "txt" in sample.members and not lists:
        try:
            text = text_files.decoded(sample.members["txt"], sample.key)
        except ValueError:
            return [], records.NOT_UNICODE
        return [text.rstrip("\r\n")], ""
    found = normalise.captions_of(record, column)
    return found, records.NOT_UNICODE if found and not any(text is not None for text in found) else ""


def _samples(file: str, images: bool, unread: Counter[str]) -> Iterator[Sample]:
    """The rows of a tar; without `images` their images are left out."""
    run: list[Sample] = []
    stem = ""
    for key, suffix, content in _members(file, images, unread):
        folder, slash, base = key.rpartition("/")
        of_run = folder + slash + base.partition(".")[0]
        sample = next((s for s in run if s.key == key), None)
        if run and (of_run != stem or (sample and suffix in sample.suffixes)):
            yield from _rows(run, unread)
            run, sample = [], None
        stem = of_run
        if sample is None:
            run.append(sample := Sample(key))
        sample.suffixes.append(suffix)
        if content is None:
            sample.too_large = True
        elif content or suffix in TEXTS or images:
            sample.members[suffix] = content
    if run:
        yield from _rows(run, unread)


def _rows(run: list[Sample], unread: Counter[str]) -> Iterator[Sample]:
    """The rows of neighbours that share a name up to its first dot: each name that has an image and a text, or else
    all together, as a.orig.jpg and a.txt."""
    rows = [s for s in run if _has(s, IMAGES) and _has(s, TEXTS)] if len(run) > 1 else run
    if not rows:
        row = Sample(min((s.key for s in run), key=len))
        for sample in run:
            row.members = sample.members | row.members
            row.suffixes += sample.suffixes
            row.too_large |= sample.too_large
        rows = [row]
    else:
        unread.update(f"members .{suffix}" for s in run if s not in rows for suffix in s.suffixes)
    for row in rows:
        images = sorted((suffix for suffix in row.suffixes if suffix in IMAGES), key=IMAGES.index)
        unread.update(f"members .{suffix}" for suffix in images[1:])
        yield row


def _has(sample: Sample, suffixes: Sequence[str]) -> bool:
    return any(suffix in suffixes for suffix in sample.suffixes)


def _members(file: str, images: bool, unread: Counter[str]) -> Iterator[tuple[str, str, bytes | None]]:
    """(name without its last dot and what follows, that in small letters, content) of images and texts; None instead
    of a content that is too large."""
    try:
        with storage.opened(file) as handle:
            if not (magic := handle.read(2)):  # an empty file: a tar without members has at least zeros
                return
            handle.seek(0)
            stream: Any = gzip.GzipFile(fileobj=handle) if magic == b"\x1f\x8b" else handle
            with tars.opened(stream, "r|*") as tar:
                for member in tar:
                    key, _, suffix = member.name.rpartition(".")
                    suffix = suffix.lower()
                    if member.isdir():
                        continue
                    if not member.isreg() or suffix not in IMAGES + TEXTS or key.rpartition("/")[2][:1] in ("", "."):
                        unread[f"members {fields.ending(member.name)}"] += 1
                        continue
                    most = normalise.IMAGE_BYTES if suffix in IMAGES else normalise.TEXT_BYTES
                    if member.size > most:
                        yield key, suffix, None
                    elif images or suffix in TEXTS:
                        content = tar.extractfile(member)
                        assert content is not None, "a regular file has content"
                        yield key, suffix, content.read()
                    else:
                        yield key, suffix, b""
    except (tarfile.TarError, OSError, EOFError) as error:
        if storage.is_transient(error):
            raise
        raise ValueError(f"{file} cannot be read as a tar ({error})") from error
