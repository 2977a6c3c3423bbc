"""Pools of Parquet files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from llip import storage
from pipelines import schema
from pipelines.stages.read import normalise
from pipelines.stages.work import Partition, concurrently

NOUN = "rows"
IMAGES = (schema.IMAGE, "jpg", "jpeg", "png", "webp")
"""Columns that may hold the images; the first there is does."""
PARTITION_BYTES = 128 << 20
"""Size of a partition, about: what is done again after an interruption, and what a later task holds in memory."""
BATCH_BYTES = 32 << 20
"""Size of a table that passes from reading to matching and writing."""
BATCH_ROWS = 1 << 17
"""Most rows of such a table: bytes in a file may be fewer than in memory."""


def plan(
    files: Sequence[tuple[str, str]], partition_rows: int, caption_column: str | None, unread: Counter[str]
) -> tuple[list[Partition], pa.Schema]:
    """Partitions, and the columns of their rows. Reads the footers only.

    Columns are matched by name, and their types made one where no value changes: null with any, integers and floats of
    any width, texts however they are stored. A file without rows does not count; a column that is not in all files is
    null where it misses, which is printed.
    """
    footers = read_footers(files)
    found: dict[str, pa.Schema] = {}
    for (file, _), footer in zip(files, footers, strict=True):
        columns = footer.schema.to_arrow_schema()
        if footer.num_rows:
            found[file] = _columns(file, columns, caption_column)
            _refuse_null_ids(file, footer)
    if not found:
        return [], schema.with_extras([])
    return partitions(files, footers, partition_rows), unified(found)


@contextmanager
def opened(file: str) -> Iterator[pq.ParquetFile]:
    """A file to read from; the checksums of its pages, where it has any, are compared. Raises ValueError naming it,
    also for what goes wrong while it is read in the `with` block; what may pass stays an error of the storage."""
    try:
        with storage.opened(file) as handle:
            yield pq.ParquetFile(handle, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        if storage.is_transient(error):
            raise
        raise ValueError(f"{file} cannot be read as Parquet ({error})") from error


def read_footers(files: Sequence[tuple[str, str]]) -> list[pq.FileMetaData]:
    """Raises ValueError naming the file that cannot be read."""
    return concurrently(lambda f: storage.patient(lambda: _footer(f[0]), f[0]), files)


def partitions(
    files: Sequence[tuple[str, str]], footers: Sequence[pq.FileMetaData], partition_rows: int
) -> list[Partition]:
    """Whole row groups, about `partition_rows` rows each, fewer where these are more than PARTITION_BYTES."""
    found: list[Partition] = []
    for (file, name), footer in zip(files, footers, strict=True):
        begin, before, rows, size = 0, 0, 0, 0
        for group in range(footer.num_row_groups):
            rows += footer.row_group(group).num_rows
            size += footer.row_group(group).total_byte_size
            if rows >= partition_rows or size >= PARTITION_BYTES or (group == footer.num_row_groups - 1 and rows):
                index, stop = len(found), group + 1
                found.append(
                    Partition(index=index, file=file, name=name, size=rows, start=begin, stop=stop, first_row=before)
                )
                begin, before, rows, size = group + 1, before + rows, 0, 0
    return found


def tables(partition: Partition, columns: Sequence[str], unread: Counter[str]) -> Iterator[pa.Table]:
    with opened(partition.file) as file:
        names = file.schema_arrow.names
        sources = {name: name for name in columns if name in names}
        sources[schema.CAPTIONS] = normalise.caption_column(names, partition.file, partition.caption_column)
        if schema.IMAGE in columns:
            sources[schema.IMAGE] = image_column(names)
        stored = [sources[name] for name in columns if name in sources]
        row, groups = partition.first_row, list(range(partition.start, partition.stop))
        for batch in file.iter_batches(_batch_rows(file, groups, stored), row_groups=groups, columns=stored):
            reasons: dict[int, str] = {}
            found = {
                name: _column(name, sources, batch, partition, row, reasons)
                for name in columns
                if name != schema.REASON
            }
            if schema.REASON in columns:
                said = [reasons.get(i) for i in range(batch.num_rows)] if reasons else None
                found[schema.REASON] = pa.array(said, pa.string()) if said else pa.nulls(batch.num_rows, pa.string())
            yield pa.table(found)
            row += batch.num_rows


def _batch_rows(file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> int:
    """Rows that take about BATCH_BYTES; few where the images may lie in files of their own."""
    row_groups = [file.metadata.row_group(group) for group in groups]
    chunks = [group.column(i) for group in row_groups for i in range(group.num_columns)]
    size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)
    rows = sum(group.num_rows for group in row_groups)
    paths = any(pa.types.is_struct(file.schema_arrow.field(name).type) for name in columns if name in IMAGES)
    most = normalise.BATCH_ROWS if paths else BATCH_ROWS
    return max(1, min(most, BATCH_BYTES * rows // max(1, size)))


def _column(
    name: str, sources: dict[str, str], batch: pa.RecordBatch, partition: Partition, row: int, reasons: dict[int, str]
) -> pa.Array:
    """A column as the stages take it. row: number of the batch's first row in the file; sources: names in the file;
    reasons: why rows cannot be used, by their number in the batch, is added."""
    if name == schema.CAPTIONS:
        return normalise.captions(batch[sources[name]])
    if name == schema.IMAGE:
        images, found = normalise.image_bytes(batch[sources[name]], partition.file.rpartition("/")[0])
        reasons |= found
        return images
    if name != schema.ID:
        kind = partition.columns.field(name).type
        if name not in sources:
            return pa.nulls(batch.num_rows, kind)
        return normalise.unicode_inside(normalise.plain(batch[name])).cast(kind)
    if name not in sources:
        return normalise.derived_ids(partition.name, range(row, row + batch.num_rows))
    ids = normalise.unicode(normalise.plain(batch[schema.ID]).cast(pa.string()), replace=True)
    if ids.null_count:
        raise ValueError(_null_id(partition.file, f"in row {row + ids.is_null().index(True).as_py()}"))
    return ids


def _null_id(file: str, where: str) -> str:
    return f"{file}: column 'id' is null {where}; every row needs an id, or the file no such column"


def _refuse_null_ids(file: str, footer: pq.FileMetaData) -> None:
    """Raise ValueError before any work where the footer counts nulls among the ids; not every writer counts them."""
    for group in (footer.row_group(i) for i in range(footer.num_row_groups)):
        for column in (group.column(i) for i in range(group.num_columns)):
            if column.path_in_schema == schema.ID and column.is_stats_set and (n := column.statistics.null_count):
                raise ValueError(_null_id(file, f"in {n:,} of the rows"))


def _footer(file: str) -> pq.FileMetaData:
    try:
        with storage.opened(file) as handle:
            return pq.read_metadata(handle)
    except Exception as error:  # Arrow's, the operating system's or the bucket's: the file cannot be read
        raise ValueError(f"{file} cannot be read as Parquet ({error})") from error


def image_column(names: Sequence[str]) -> str:
    """The column of images: `image`, or one named by their format, as img2dataset's."""
    return next((name for name in IMAGES if name in names), schema.IMAGE)


def _columns(file: str, columns: pa.Schema, caption_column: str | None) -> pa.Schema:
    """Check the columns that curation needs; returns those of the rows that it gets, of plain types."""
    names = columns.names
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{file} has two columns named {repeated[0]!r}; rename one")
    columns = pa.schema([pa.field(f.name, normalise.plain_type(f.type)) for f in columns])
    images = (image := image_column(names)) in names
    if not images and schema.URL not in names:
        raise ValueError(
            f"{file} has no column {schema.IMAGE!r} (binary: encoded images) and no {schema.URL!r} (their addresses);"
            f" it has {', '.join(names)}"
        )
    source = normalise.caption_column(names, file, caption_column)
    if images:
        _check(file, columns.field(image), _is_image(columns.field(image).type), "binary: encoded images")
    else:
        _check(file, columns.field(schema.URL), _is_text(columns.field(schema.URL).type), "strings")
    _check(file, columns.field(source), _is_caption(columns.field(source).type), "a string or a list of strings")
    wanted = {
        schema.ID: (lambda kind: pa.types.is_integer(kind) or _is_text(kind), "strings or integers"),
        schema.CAPTION_TYPES: (_is_texts, "a list of strings, one for each caption"),
        schema.SYNTHETIC: (_is_texts, "a list of strings"),
    }
    for name, (test, expected) in wanted.items():
        if name in names:
            _check(file, columns.field(name), test(columns.field(name).type), expected)
    taken = (schema.ID, image, source, *(schema.REQUIRED if source != schema.CAPTIONS else ()))
    known = {schema.CAPTION_TYPES: schema.REQUIRED[schema.CAPTIONS], schema.SYNTHETIC: schema.REQUIRED[schema.CAPTIONS]}
    known |= {} if images else {schema.URL: pa.string()}
    extras = [pa.field(f.name, known.get(f.name, f.type)) for f in columns if f.name not in taken]
    return schema.with_extras(extras, images=images)


def unified(found: dict[str, pa.Schema]) -> pa.Schema:
    """The columns of all files, by whose names they are given. Raises ValueError naming two whose types are none
    together, or of which one has images and the other links."""
    first = next(iter(found))
    fields: dict[str, tuple[pa.Field, str]] = {}
    for file, columns in found.items():
        if (schema.IMAGE in columns.names) != (schema.IMAGE in found[first].names):
            raise ValueError(f"{file} and {first}: one has images and the other links; a pool has one of them")
        for field in columns:
            other, where = fields.get(field.name, (field, file))
            try:
                unified = pa.unify_schemas([pa.schema([other]), pa.schema([field])], promote_options="permissive")
            except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
                raise ValueError(
                    f"{file} has the column {field.name!r} as {field.type}, {where} as {other.type}; they have to agree"
                ) from error
            fields[field.name] = (unified.field(0), where)
    for name in fields:
        if missing := [file for file, columns in found.items() if name not in columns.names]:
            print(f"{missing[0]} has no column {name!r}, as {len(missing)} of {len(found)} files: null there")
    return pa.schema([field.with_nullable(True) for field, _ in fields.values()])


def _check(file: str, field: pa.Field, condition: bool, expected: str) -> None:
    if not condition:
        raise ValueError(f"{file}: column {field.name!r} is {field.type}; it has to be {expected}")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_null(kind)


def _is_texts(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or (pa.types.is_list(kind) and _is_text(kind.value_type))


def _is_caption(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_texts(kind)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        parts = {field.name: field.type for field in kind}
        return ("bytes" in parts and _is_image(parts["bytes"])) or ("path" in parts and _is_text(parts["path"]))
    return pa.types.is_binary(kind) or pa.types.is_null(kind)
