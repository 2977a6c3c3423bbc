"""Pools of Parquet files."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from llip import storage
from pipelines import schema
from pipelines.stages import normalise
from pipelines.stages.units import Unit
from pipelines.stages.work import concurrently

NOUN = "rows"


def plan(files: Sequence[tuple[str, str]], unit_rows: int) -> tuple[list[Unit], pa.Schema]:
    """Units of whole row groups, about `unit_rows` rows each, and the columns carried along. Reads the footers only."""
    footers = concurrently(lambda f: _footer(f[0]), files)
    first, extras = files[0][0], _extras(files[0][0], footers[0].schema.to_arrow_schema())
    units: list[Unit] = []
    for (file, name), footer in zip(files, footers, strict=True):
        if not (found := _extras(file, footer.schema.to_arrow_schema())).equals(extras):
            raise ValueError(
                f"{file} has other columns than {first}: {_listed(found)} against {_listed(extras)};"
                " all files of a pool need the same"
            )
        begin, before, rows = 0, 0, 0
        for group in range(footer.num_row_groups):
            rows += footer.row_group(group).num_rows
            if rows >= unit_rows or (group == footer.num_row_groups - 1 and rows):
                index, stop = len(units), group + 1
                units.append(
                    Unit(index=index, file=file, name=name, size=rows, start=begin, stop=stop, first_row=before)
                )
                begin, before, rows = group + 1, before + rows, 0
    return units, extras


def tables(unit: Unit, extras: Sequence[str], *, images: bool) -> Iterator[pa.Table]:
    with storage.opened(unit.file) as handle:
        file = pq.ParquetFile(handle)
        names = file.schema_arrow.names
        source = normalise.caption_column(names, unit.file)
        wanted = [*([schema.ID] if schema.ID in names else []), *([schema.IMAGE] if images else []), source, *extras]
        row = unit.first_row
        for batch in file.iter_batches(
            normalise.BATCH_ROWS, row_groups=list(range(unit.start, unit.stop)), columns=wanted
        ):
            yield _normalised(batch, unit, row, source, extras, images)
            row += batch.num_rows


def _normalised(
    batch: pa.RecordBatch, unit: Unit, row: int, source: str, extras: Sequence[str], images: bool
) -> pa.Table:
    columns = {name: batch[name] for name in extras}
    if schema.ID in batch.schema.names:
        columns[schema.ID] = batch[schema.ID].cast(pa.string())
        if columns[schema.ID].null_count:
            missing = row + columns[schema.ID].is_null().index(True).as_py()
            raise ValueError(
                f"{unit.file}: column 'id' is null in row {missing}; every row needs an id, or the file no such column"
            )
    else:
        columns[schema.ID] = normalise.derived_ids(unit.name, range(row, row + batch.num_rows))
    columns[schema.CAPTIONS] = normalise.captions(batch[source])
    if images:
        columns[schema.IMAGE] = normalise.image_bytes(batch[schema.IMAGE])
    return pa.table(columns)


def _footer(file: str) -> pq.FileMetaData:
    try:
        with storage.opened(file) as handle:
            return pq.read_metadata(handle)
    except Exception as error:  # Arrow's, the operating system's or the bucket's: the file cannot be read
        raise ValueError(f"{file} cannot be read as Parquet ({error})") from error


def _extras(file: str, columns: pa.Schema) -> pa.Schema:
    """Check the columns that curation needs; returns the others."""
    if schema.IMAGE not in columns.names:
        if schema.URL in columns.names:
            raise ValueError(
                f"{file} has a column {schema.URL!r} and no {schema.IMAGE!r}: curation needs the pictures' bytes;"
                " fetch them first"
            )
        raise ValueError(
            f"{file} has no column {schema.IMAGE!r} (binary: encoded pictures); it has {', '.join(columns.names)}"
        )
    source = normalise.caption_column(columns.names, file)
    _check(file, columns.field(schema.IMAGE), _is_image(columns.field(schema.IMAGE).type), "binary: encoded pictures")
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
    names = (schema.ID, schema.IMAGE, source)
    return pa.schema([f.remove_metadata() for f in columns if f.name not in names])


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


def _listed(columns: pa.Schema) -> str:
    return ", ".join(f"{f.name} {f.type}" for f in columns) or "none"
