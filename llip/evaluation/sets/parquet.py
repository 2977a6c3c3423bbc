"""Folders of Parquet files with a column `image` (bytes, or Hugging Face's struct of bytes and path) and either `label`
or captions (`captions`, `caption` or `text`; a string or a list of strings).

Names of integer labels are in `classnames.txt`, or in the schema where Hugging Face's `datasets` wrote the files.
"""

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from llip import storage
from llip.evaluation.sets import image_references, names
from llip.evaluation.sets.evaluation_set import EvaluationSet, joined, plain

SUFFIX = ".parquet"
CAPTIONS = ("captions", "caption", "text")


def roots(uri: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    for folder in sorted({path.rpartition("/")[0] for path in files if path.endswith(SUFFIX)}):
        yield folder, names.of_set(uri, folder)


def read(uri: str, name: str, files: Sequence[str]) -> EvaluationSet:
    tables = [_without_images(f"{uri}/{path}") for path in files if path.endswith(SUFFIX) and "/" not in path]
    table = joined(uri, tables)
    if "label" in table.column_names:
        label, classes = _labels(uri, table["label"], table.schema)
        return EvaluationSet(
            name=name,
            task="classification",
            table=pa.table({"image": table["image"], "label": label}),
            classes=classes,
            templates=names.templates(uri),
        )
    column = next(c for c in CAPTIONS if c in table.column_names)
    if nulls := table[column].null_count:
        raise ValueError(f"{uri}: {column} is null in {nulls} rows; every image needs a caption")
    try:
        captions = [[c] if isinstance(c, str) else c for c in table[column].to_pylist()]
        return EvaluationSet.of_captions(name, table["image"], captions)
    except (UnicodeDecodeError, TypeError, pa.ArrowException) as error:
        kind = table[column].type
        raise ValueError(
            f"{uri}: {column} of type {kind} cannot be read as texts or lists of them ({error})"
        ) from error


def _without_images(file: str) -> pa.Table:
    """Labels or captions of a file, with references to its images."""
    with storage.opened(file) as handle:
        try:
            parquet = pq.ParquetFile(handle)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} cannot be read as Parquet ({error})") from error
        columns = parquet.schema_arrow.names
        kept = next((c for c in ("label", *CAPTIONS) if c in columns), None)
        if "image" not in columns or kept is None:
            raise ValueError(f"{file} needs a column image, and label or captions; it has {', '.join(columns)}")
        table = plain(parquet.read(columns=[kept]))
        groups = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    image = [{"uri": file, "row_group": g, "row": row} for g, rows in enumerate(groups) for row in range(rows)]
    return table.append_column("image", pa.array(image, image_references.CELL))


def _labels(uri: str, label: pa.ChunkedArray, schema: pa.Schema) -> tuple[pa.ChunkedArray, tuple[str, ...]]:
    """Indices and names of classes. Strings are their own names, and have their order."""
    if label.null_count:
        raise ValueError(f"{uri}: label is null in {label.null_count} rows; every image needs one")
    if pa.types.is_string(label.type) or pa.types.is_large_string(label.type):
        classes = sorted(set(label.to_pylist()))
        place = {name: index for index, name in enumerate(classes)}
        return pa.chunked_array([[place[name] for name in label.to_pylist()]], pa.int32()), tuple(classes)
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    known = names.lines(storage.join(uri, names.CLASSES)) or features.get("label", {}).get("names")
    if not known:
        raise ValueError(f"{uri}: its labels are numbers; put {names.CLASSES} beside the files, a name a line")
    try:
        return label.cast(pa.int32()), tuple(known)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{uri}: label is of type {label.type}, and holds what is no index ({error})") from error
