"""Pools of Parquet files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from llip import storage
from pipelines import schema
from pipelines.stages.read import normalise
from pipelines.stages.work import Unit, concurrently

NOUN = "rows"
UNIT_BYTES = 128 << 20
"""Of a unit, about: what is done again after an interruption, and what a later task holds in memory."""
BATCH_BYTES = 32 << 20
"""Of a table that passes from reading to matching and writing."""
BATCH_ROWS = 1 << 17
"""And its most rows: bytes in a file may be fewer than in memory."""


def plan(files: Sequence[tuple[str, str]], unit_rows: int) -> tuple[list[Unit], pa.Schema]:
    """Units (`units`) and the columns of their rows. Reads the footers only."""
    footers = read_footers(files)
    first, columns = files[0][0], _columns(files[0][0], footers[0].schema.to_arrow_schema())
    for (file, _), footer in zip(files, footers, strict=True):
        if not (found := _columns(file, footer.schema.to_arrow_schema())).equals(columns):
            raise ValueError(
                f"{file} has other columns than {first}: {_missing(found, columns)} against {_missing(columns, found)};"
                " all files of a pool need the same"
            )
        _refuse_null_ids(file, footer)
    return units(files, footers, unit_rows), columns


@contextmanager
def opened(file: str) -> Iterator[pq.ParquetFile]:
    """A file to read from; the checksums of its pages, where it has any, are compared. Raises ValueError naming it,
    also for what goes wrong while it is read in the `with` block."""
    try:
        with storage.opened(file) as handle:
            yield pq.ParquetFile(handle, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read as Parquet ({error})") from error


def read_footers(files: Sequence[tuple[str, str]]) -> list[pq.FileMetaData]:
    """Raises ValueError naming the file that cannot be read."""
    return concurrently(lambda f: _footer(f[0]), files)


def units(files: Sequence[tuple[str, str]], footers: Sequence[pq.FileMetaData], unit_rows: int) -> list[Unit]:
    """Whole row groups, about `unit_rows` rows each, fewer where these are more than UNIT_BYTES."""
    found: list[Unit] = []
    for (file, name), footer in zip(files, footers, strict=True):
        begin, before, rows, size = 0, 0, 0, 0
        for group in range(footer.num_row_groups):
            rows += footer.row_group(group).num_rows
            size += footer.row_group(group).total_byte_size
            if rows >= unit_rows or size >= UNIT_BYTES or (group == footer.num_row_groups - 1 and rows):
                index, stop = len(found), group + 1
                found.append(
                    Unit(index=index, file=file, name=name, size=rows, start=begin, stop=stop, first_row=before)
                )
                begin, before, rows, size = group + 1, before + rows, 0, 0
    return found


def tables(unit: Unit, columns: Sequence[str]) -> Iterator[pa.Table]:
    with opened(unit.file) as file:
        names = file.schema_arrow.names
        source = normalise.caption_column(names, unit.file)
        stored = [source if name == schema.CAPTIONS else name for name in columns if name != schema.ID or name in names]
        row, groups = unit.first_row, list(range(unit.start, unit.stop))
        for batch in file.iter_batches(_batch_rows(file.metadata, groups, stored), row_groups=groups, columns=stored):
            yield pa.table({name: _column(name, batch, unit, row, source) for name in columns})
            row += batch.num_rows


def _batch_rows(footer: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str]) -> int:
    """Rows that take about BATCH_BYTES."""
    row_groups = [footer.row_group(group) for group in groups]
    chunks = [group.column(i) for group in row_groups for i in range(group.num_columns)]
    size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)
    rows = sum(group.num_rows for group in row_groups)
    return max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(1, size)))


def _column(name: str, batch: pa.RecordBatch, unit: Unit, row: int, source: str) -> pa.Array:
    """A column as the stages take it. row: number of the batch's first row in the file; source: column of captions."""
    if name == schema.CAPTIONS:
        return normalise.captions(batch[source])
    if name == schema.IMAGE:
        return normalise.image_bytes(batch[schema.IMAGE])
    if name != schema.ID:
        return batch[name]
    if schema.ID not in batch.schema.names:
        return normalise.derived_ids(unit.name, range(row, row + batch.num_rows))
    ids = batch[schema.ID].cast(pa.string())
    if ids.null_count:
        raise ValueError(_null_id(unit.file, f"in row {row + ids.is_null().index(True).as_py()}"))
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


def _columns(file: str, columns: pa.Schema) -> pa.Schema:
    """Check the columns that curation needs; returns those of the rows that it gets."""
    pictures = schema.IMAGE in columns.names
    if not pictures and schema.URL not in columns.names:
        raise ValueError(
            f"{file} has no column {schema.IMAGE!r} (binary: encoded pictures) and no {schema.URL!r} (their addresses);"
            f" it has {', '.join(columns.names)}"
        )
    source = normalise.caption_column(columns.names, file)
    if pictures:
        kind = columns.field(schema.IMAGE).type
        _check(file, columns.field(schema.IMAGE), _is_image(kind), "binary: encoded pictures")
    else:
        _check(file, columns.field(schema.URL), _is_text(columns.field(schema.URL).type), "strings")
    _check(file, columns.field(source), _is_caption(columns.field(source).type), "a string or a list of strings")
    if schema.ID in columns.names:
        kind = columns.field(schema.ID).type
        _check(file, columns.field(schema.ID), pa.types.is_integer(kind) or _is_text(kind), "strings or integers")
    if schema.KINDS in columns.names:
        kind = columns.field(schema.KINDS).type
        _check(
            file,
            columns.field(schema.KINDS),
            kind == schema.REQUIRED[schema.CAPTIONS],
            "a list of strings, one for each caption",
        )
    if schema.SYNTHETIC in columns.names:
        kind = columns.field(schema.SYNTHETIC).type
        _check(file, columns.field(schema.SYNTHETIC), kind == schema.REQUIRED[schema.CAPTIONS], "a list of strings")
    names = (schema.ID, schema.IMAGE, source)
    return schema.with_extras((f.remove_metadata() for f in columns if f.name not in names), pictures=pictures)


def _check(file: str, field: pa.Field, condition: bool, expected: str) -> None:
    if not condition:
        raise ValueError(f"{file}: column {field.name!r} is {field.type}; it has to be {expected}")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_caption(kind: pa.DataType) -> bool:
    return _is_text(kind) or ((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _missing(columns: pa.Schema, others: pa.Schema) -> str:
    """The columns that `others` do not have."""
    return ", ".join(f"{f.name} {f.type}" for f in columns if f not in others) or "none"
