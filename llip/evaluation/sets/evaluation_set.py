"""Evaluation sets on disk: a folder of Parquet files and an `evaluation.json` that says what they are for.

| task | columns | meaning |
| --- | --- | --- |
| classification | `image`, `label` | `label` indexes `classes`; a prompt is a template, its `{}` a class name |
| retrieval | `image`, `captions`, `caption_types` | all captions are true; a text is positive for images that list it |
| context | `image`, `caption_a`, `caption_b` | two captions, each true of another part of the image |
| choice | `image`, `captions`, `true` | of two captions and more, that at index `true` is true |
| association | `image`, `captions`, `instances`, `true` | the cue of each instance, and if the image goes with it |

A classification set may have `group`, whole numbers: the accuracy of the worst group is a metric then. A choice set may
have `kind`, the error in its false captions. It may have `group`, which pairs two images that list the same two
captions: the true caption of one is the false caption of the other. An instance of an association set has one cue and
several images; some of them, not all, are associated with it.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llip import storage

logger = logging.getLogger(__name__)

DESCRIPTION = "evaluation.json"
COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "classification": {"image": pa.binary(), "label": pa.int32()},
    "retrieval": {"image": pa.binary(), "captions": pa.list_(pa.string()), "caption_types": pa.list_(pa.string())},
    "context": {"image": pa.binary(), "caption_a": pa.string(), "caption_b": pa.string()},
    "choice": {
        "image": pa.binary(),
        "captions": pa.list_(pa.string()),
        "true": pa.int32(),
        "kind": pa.string(),
        "group": pa.int32(),
    },
    "association": {
        "image": pa.binary(),
        "captions": pa.list_(pa.string()),
        "instances": pa.list_(pa.int32()),
        "true": pa.list_(pa.bool_()),
    },
}
MAY_MISS = {"kind": "", "group": None}
"""Columns of a choice set that need not be there, with what stands for them."""
VALUES = {
    pa.string(): ("texts", (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)),
    pa.int32(): ("whole numbers", (pa.types.is_integer,)),
    pa.bool_(): ("marks of true and false", (pa.types.is_boolean,)),
}
"""Values of columns of texts and of lists: what they are called, and which types hold them."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """One set, in memory except for its pixels: images stay encoded, or where they lie (`image_references`)."""

    name: str
    task: Literal["classification", "retrieval", "context", "choice", "association"]
    table: pa.Table
    classes: tuple[str, ...] = ()
    """Class names (classification)."""
    templates: tuple[str, ...] = ("{}",)
    """Prompts, each with one `{}` for the class name (classification)."""

    @classmethod
    def of_captions(
        cls, name: str, image: pa.Array | pa.ChunkedArray, captions: Sequence[list[str]]
    ) -> "EvaluationSet":
        """A retrieval set without caption types."""
        listed = {"captions": captions, "caption_types": [["caption"] * len(of_image) for of_image in captions]}
        listed = {column: pa.array(texts, pa.list_(pa.string())) for column, texts in listed.items()}
        return cls(name=name, task="retrieval", table=pa.table({"image": image} | listed))

    def __post_init__(self) -> None:
        where = f"evaluation set {self.name}"
        if self.task not in COLUMNS:
            raise ValueError(f"{where}: task {self.task!r} is none of {', '.join(COLUMNS)}")
        for column in [c for c in COLUMNS[self.task] if c in MAY_MISS and c not in self.table.column_names]:
            filled = pa.array([MAY_MISS[column]] * self.table.num_rows, COLUMNS[self.task][column])
            object.__setattr__(self, "table", self.table.append_column(column, filled))
        names = self.table.column_names
        if missing := [c for c in COLUMNS[self.task] if c not in names]:
            raise ValueError(f"{where}: a {self.task} set needs the column {missing[0]!r}; it has {', '.join(names)}")
        if self.table.num_rows == 0:
            raise ValueError(f"{where}: it has no rows")
        for column, kind in COLUMNS[self.task].items():
            if self.table[column].null_count and column != "group":
                raise ValueError(f"{where}: {column} is null in {_rows(self.table[column].is_null())}")
            if column == "image":
                _check_images(where, self.table[column].type)
            elif pa.types.is_integer(kind):
                if not pa.types.is_integer(self.table[column].type):
                    raise ValueError(
                        f"{where}: {column} is of type {self.table[column].type}; it has to hold whole numbers"
                    )
            else:
                typed = self.table.set_column(names.index(column), column, _cast(where, column, self.table, kind))
                object.__setattr__(self, "table", typed)
        match self.task:
            case "classification":
                self._check_classes(where)
            case "context":
                for column in ("caption_a", "caption_b"):
                    blank = pc.equal(pc.utf8_trim_whitespace(self.table[column]), "")
                    if pc.any(blank).as_py():
                        raise ValueError(f"{where}: {column} is empty in {_rows(blank)}")
            case "choice":
                self._check_choices(where)
            case "association":
                self._check_instances(where)

    def _check_classes(self, where: str) -> None:
        if "group" in self.table.column_names:
            group = self.table["group"]
            if group.null_count or not pa.types.is_integer(group.type):
                raise ValueError(f"{where}: group of type {group.type} has to hold a whole number in every row")
        label = self.table["label"]
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

    def _check_choices(self, where: str) -> None:
        of_group: dict[int, list[tuple[list[str], int]]] = {}
        columns = (self.table[column].to_pylist() for column in ("captions", "true", "group"))
        for row, (captions, true, group) in enumerate(zip(*columns, strict=True)):
            if len(captions) < 2 or not all(caption and caption.strip() for caption in captions):
                raise ValueError(f"{where}, row {row}: {captions!r}; a choice needs two captions or more, none empty")
            if not 0 <= true < len(captions):
                raise ValueError(f"{where}, row {row}: true is {true}, of {len(captions)} captions (the first is 0)")
            if group is not None:
                of_group.setdefault(group, []).append((captions, true))
        for group, rows in of_group.items():
            if len(rows) != 2 or rows[0][0] != rows[1][0] or {true for _, true in rows} != {0, 1}:
                raise ValueError(
                    f"{where}: group {group} has {len(rows)} rows; it has to have two, which list the same two "
                    "captions and of which each has its own true one"
                )

    def _check_instances(self, where: str) -> None:
        dealt: dict[int, list[tuple[str, bool]]] = {}
        columns = (self.table[column].to_pylist() for column in ("captions", "instances", "true"))
        for row, (captions, instances, true) in enumerate(zip(*columns, strict=True)):
            numbers = len(captions), len(set(instances)), len(instances), len(true)
            if len(set(numbers)) > 1 or not captions or None in (*captions, *instances, *true):
                raise ValueError(
                    f"{where}, row {row}: {len(captions)} captions, instances {instances}, true {true}; an image needs "
                    "one of each for every instance, at least one, and none null"
                )
            for caption, instance, is_true in zip(captions, instances, true, strict=True):
                dealt.setdefault(instance, []).append((caption, is_true))
        for instance, images in dealt.items():
            cues, associated = sorted({caption for caption, _ in images}), sum(is_true for _, is_true in images)
            if len(cues) > 1 or not cues[0].strip() or not 0 < associated < len(images):
                raise ValueError(
                    f"{where}: instance {instance} has the cues {', '.join(map(repr, cues))} and {associated} of "
                    f"{len(images)} images associated; it needs one cue, and some of its images, not all"
                )

    @property
    def classes_without_images(self) -> list[str]:
        """Names of classes that compete and are never right (classification)."""
        present = set(pc.unique(self.table["label"]).to_pylist())
        return [name for index, name in enumerate(self.classes) if index not in present]


def plain(table: pa.Table) -> pa.Table:
    """The table without dictionary encoding and views, which readers of columns would take for other types."""
    for index, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        kind = pa.string() if pa.types.is_string_view(kind) or pa.types.is_large_string(kind) else kind
        kind = pa.binary() if pa.types.is_binary_view(kind) or pa.types.is_large_binary(kind) else kind
        if kind != field.type:
            table = table.set_column(index, field.name, table[field.name].cast(kind))
    return table


def joined(folder: str, tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of several files, whose types are made one where no value changes. Raises ValueError naming the folder
    where they are none together."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{folder}: its Parquet files differ in their columns ({error})") from error


def _check_images(where: str, kind: pa.DataType) -> None:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return
    if not pa.types.is_struct(kind) or not {"uri", "bytes"} & {field.name for field in kind}:
        raise ValueError(f"{where}: image is of type {kind}; it has to hold encoded images, as binary")


def _cast(where: str, column: str, table: pa.Table, kind: pa.DataType) -> pa.ChunkedArray:
    """A column of texts, or of lists. Raises ValueError naming it where it holds anything else."""
    found = table[column]
    inner = found.type.value_type if pa.types.is_list(kind) and hasattr(found.type, "value_type") else found.type
    called, tests = VALUES[kind.value_type if pa.types.is_list(kind) else kind]
    try:
        if not any(test(inner) for test in (*tests, pa.types.is_null)):
            raise pa.ArrowInvalid(f"they are no {called}")
        typed = found.cast(kind)
        typed.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise ValueError(f"{where}: {column} of type {found.type} cannot be read as {kind} ({error})") from error
    return typed


def _rows(mask: pa.ChunkedArray) -> str:
    """Number of rows that a mask marks, with the first of them."""
    return f"{pc.sum(mask).as_py()} rows, first in row {pc.index(mask, True).as_py()}"


def write(folder: str, data: EvaluationSet) -> None:
    """Write a set; its description, last, makes it complete."""
    grouped = data.task == "classification" and "group" in data.table.column_names
    schema = pa.schema([*COLUMNS[data.task].items(), *([("group", pa.int32())] if grouped else [])])
    with storage.atomic_writer(storage.join(folder, "data-00000.parquet")) as file:
        pq.write_table(data.table.select(schema.names).cast(schema), file, row_group_size=500)
    description = {"name": data.name, "task": data.task, "classes": data.classes, "templates": data.templates}
    storage.write_json(storage.join(folder, DESCRIPTION), description)


def read(folder: str) -> EvaluationSet:
    """Read a set. Raises ValueError where the folder holds none, or one whose columns do not suit its task."""
    uri = storage.join(folder, DESCRIPTION)
    if not storage.exists(uri):
        raise ValueError(f"{uri} does not exist: {folder} is not an evaluation set")
    description = describe(uri)
    tables = [_table(file) for file in storage.listing(folder, ".parquet")]
    if not tables:
        raise ValueError(f"{folder} holds no Parquet file")
    return EvaluationSet(
        name=description["name"],
        task=description["task"],
        table=joined(folder, tables),
        classes=tuple(description["classes"]),
        templates=tuple(description["templates"]),
    )


def describe(uri: str) -> dict[str, Any]:
    """Content of an `evaluation.json`. Raises ValueError naming it, and the field, where it is none."""
    description = storage.read_json(uri)
    if not isinstance(description, dict):
        raise ValueError(f"{uri} holds a {type(description).__name__}, not an object")
    for key, kind in (("name", str), ("task", str), ("classes", list), ("templates", list)):
        if key not in description:
            raise ValueError(f"{uri} has no {key!r}")
        value = description[key]
        if not isinstance(value, kind) or not all(isinstance(item, str) for item in value):
            raise ValueError(
                f"{uri}: {key} is {value!r}; it has to be {'a text' if kind is str else 'a list of texts'}"
            )
    return description


def _table(file: str) -> pa.Table:
    with storage.opened(file) as handle:
        try:
            return plain(pq.read_table(handle))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} cannot be read as Parquet ({error})") from error
