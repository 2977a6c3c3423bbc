"""Evaluation sets on disk: a folder of Parquet files and an `evaluation.json` that says what they are for.

| task | columns | meaning |
| --- | --- | --- |
| classification | `image`, `label` | `label` indexes `classes`; a prompt is a template, its `{}` a class name |
| retrieval | `image`, `captions`, `kinds` | all captions are true; a text is a positive of the images that list it |
| context | `image`, `caption_a`, `caption_b` | two captions, each true of another part of the image |
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llip import storage

logger = logging.getLogger(__name__)

DESCRIPTION = "evaluation.json"
COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "classification": {"image": pa.binary(), "label": pa.int32()},
    "retrieval": {"image": pa.binary(), "captions": pa.list_(pa.string()), "kinds": pa.list_(pa.string())},
    "context": {"image": pa.binary(), "caption_a": pa.string(), "caption_b": pa.string()},
}


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """One set, in memory except for its pixels: images stay encoded, or where they lie (`image_references`)."""

    name: str
    task: Literal["classification", "retrieval", "context"]
    table: pa.Table
    classes: tuple[str, ...] = ()
    """Class names (classification)."""
    templates: tuple[str, ...] = ("{}",)
    """Prompts, each with one `{}` for the class name (classification)."""

    @classmethod
    def of_captions(
        cls, name: str, image: pa.Array | pa.ChunkedArray, captions: Sequence[list[str]]
    ) -> "EvaluationSet":
        """A retrieval set without kinds of captions."""
        kinds = [["caption"] * len(of_image) for of_image in captions]
        listed = {
            column: pa.array(of, pa.list_(pa.string())) for column, of in (("captions", captions), ("kinds", kinds))
        }
        return cls(name=name, task="retrieval", table=pa.table({"image": image} | listed))

    def __post_init__(self) -> None:
        where = f"evaluation set {self.name}"
        if self.task not in COLUMNS:
            raise ValueError(f"{where}: task {self.task!r} is none of {', '.join(COLUMNS)}")
        names = self.table.column_names
        if missing := [c for c in COLUMNS[self.task] if c not in names]:
            raise ValueError(f"{where}: a {self.task} set needs the column {missing[0]!r}; it has {', '.join(names)}")
        if self.table.num_rows == 0:
            raise ValueError(f"{where}: it has no rows")
        for column in COLUMNS[self.task]:
            if self.table[column].null_count:
                raise ValueError(f"{where}: {column} is null in {_rows(self.table[column].is_null())}")
        match self.task:
            case "classification":
                self._check_classes(where)
            case "context":
                for column in ("caption_a", "caption_b"):
                    blank = pc.equal(pc.utf8_trim_whitespace(self.table[column]), "")
                    if pc.any(blank).as_py():
                        raise ValueError(f"{where}: {column} is empty in {_rows(blank)}")

    def _check_classes(self, where: str) -> None:
        label = self.table["label"]
        if not pa.types.is_integer(label.type):
            raise ValueError(f"{where}: label is of type {label.type}; it has to hold whole numbers")
        count = len(self.classes)
        outside = pc.or_(pc.less(label, 0), pc.greater_equal(label, count))
        if pc.any(outside).as_py():
            low, high = pc.min_max(label).as_py().values()
            raise ValueError(f"{where}: labels {low} to {high}, but {count} classes; too many in {_rows(outside)}")
        if blank := [index for index, name in enumerate(self.classes) if not name.strip()]:
            raise ValueError(f"{where}: {len(blank)} of {count} classes have no name, first class {blank[0]}")
        if not self.templates:
            raise ValueError(f"{where}: it has no templates; {{}} alone is one")
        if bad := [t for t in self.templates if t.count("{}") != 1]:
            raise ValueError(f"{where}: template {bad[0]!r} has to contain {{}} once")
        if shared := [name for name, of_name in Counter(self.classes).items() if of_name > 1]:
            logger.warning("%s: several classes are called %s: no caption tells them apart", where, ", ".join(shared))
        if without := self.classes_without_images:
            some = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
            logger.warning("%s: %d of %d classes have no images (%s)", where, len(without), count, some)

    @property
    def classes_without_images(self) -> list[str]:
        """Names of classes that compete and are never right (classification)."""
        present = set(pc.unique(self.table["label"]).to_pylist())
        return [name for index, name in enumerate(self.classes) if index not in present]


def plain(table: pa.Table) -> pa.Table:
    """The table without dictionary encoding, which readers of columns would take for another type."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table[field.name].cast(field.type.value_type))
    return table


def _rows(mask: pa.ChunkedArray) -> str:
    """How many rows a mask marks, and which is the first of them."""
    return f"{pc.sum(mask).as_py()} rows, first in row {pc.index(mask, True).as_py()}"


def write(folder: str, data: EvaluationSet) -> None:
    """Write a set; its description, last, makes it complete."""
    schema = pa.schema(list(COLUMNS[data.task].items()))
    with storage.atomic_writer(storage.join(folder, "data-00000.parquet")) as file:
        pq.write_table(data.table.select(schema.names).cast(schema), file, row_group_size=500)
    description = {"name": data.name, "task": data.task, "classes": data.classes, "templates": data.templates}
    storage.write_json(storage.join(folder, DESCRIPTION), description)


def read(folder: str) -> EvaluationSet:
    """Read a set. Raises ValueError where the folder holds none, or one whose columns do not suit its task."""
    uri = storage.join(folder, DESCRIPTION)
    if not storage.exists(uri):
        raise ValueError(f"{uri} does not exist: {folder} is not an evaluation set")
    description = storage.read_json(uri)
    if missing := [key for key in ("name", "task", "classes", "templates") if key not in description]:
        raise ValueError(f"{uri} has no {missing[0]!r}")
    tables = [_table(file) for file in storage.listing(folder, ".parquet")]
    if not tables:
        raise ValueError(f"{folder} holds no Parquet file")
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{folder}: its Parquet files differ in their columns ({error})") from error
    return EvaluationSet(
        name=description["name"],
        task=description["task"],
        table=table,
        classes=tuple(description["classes"]),
        templates=tuple(description["templates"]),
    )


def _table(file: str) -> pa.Table:
    with storage.opened(file) as handle:
        try:
            return plain(pq.read_table(handle))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} cannot be read as Parquet ({error})") from error


def find(folder: str) -> list[str]:
    """The sets under a folder, sorted by path."""
    return [uri.removesuffix("/" + DESCRIPTION) for uri in storage.listing(folder, DESCRIPTION)]
