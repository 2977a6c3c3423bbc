"""Evaluation sets on disk: a folder of Parquet files and an `evaluation.json` that says what they are for.

| task | columns | meaning |
| --- | --- | --- |
| classification | `image`, `label` | `label` indexes `classes`; a prompt is a template, its `{}` a class name |
| retrieval | `image`, `captions`, `kinds` | all captions are true; a text is a positive of the images that list it |
| context | `image`, `caption_a`, `caption_b` | two captions, each true of another part of the image |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from llip import storage

DESCRIPTION = "evaluation.json"
COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "classification": {"image": pa.binary(), "label": pa.int32()},
    "retrieval": {"image": pa.binary(), "captions": pa.list_(pa.string()), "kinds": pa.list_(pa.string())},
    "context": {"image": pa.binary(), "caption_a": pa.string(), "caption_b": pa.string()},
}


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """One set, in memory except for its pixels: images stay encoded, or where they lie (`llip.data.pictures`)."""

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
        if self.task == "classification":
            labels = self.table["label"].to_numpy()
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise ValueError(f"{where}: labels {labels.min()} to {labels.max()}, but {len(self.classes)} classes")
        if bad := [t for t in self.templates if t.count("{}") != 1]:
            raise ValueError(f"{where}: template {bad[0]!r} has to contain {{}} once")


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
    tables = []
    for file in storage.listing(folder, ".parquet"):
        with storage.opened(file) as handle:
            tables.append(pq.read_table(handle))
    if not tables:
        raise ValueError(f"{folder} holds no Parquet file")
    return EvaluationSet(
        name=description["name"],
        task=description["task"],
        table=pa.concat_tables(tables),
        classes=tuple(description["classes"]),
        templates=tuple(description["templates"]),
    )


def find(folder: str) -> list[str]:
    """The sets under a folder, sorted by path."""
    return [uri.removesuffix("/" + DESCRIPTION) for uri in storage.listing(folder, DESCRIPTION)]
