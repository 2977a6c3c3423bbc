"""Evaluation sets as the world sends them: read, or refused by file and field, and never a traceback."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.odd_pools import tar_of
from helpers.small_pools import picture

from llip.evaluation.sets import read_set

IMAGE = pa.array([picture(0), picture(1)])
WRONG_BYTES = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"ok"]).buffers())


def described(task: str, **changes: Any) -> dict[str, Any]:
    return {"evaluation.json": json.dumps({"name": "n", "task": task, "classes": ["a"], "templates": ["{}"]} | changes)}


def write(folder: Path, files: dict[str, Any]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pa.Table):
            pq.write_table(content, folder / name)
        else:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def of(**columns: Any) -> dict[str, Any]:
    return {"a.parquet": pa.table({"image": IMAGE} | columns)}


def tars(content: bytes) -> dict[str, Any]:
    return {"classnames.txt": "a\nb\n", "test/nshards.txt": "1", "test/0.tar": content}


def sample(key: str, label: int) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", picture(label)), (f"{key}.cls", b"%d" % label)]


@pytest.mark.parametrize(
    ("files", "column", "values"),
    [
        (of(label=pa.array(["x", "y"], pa.string_view())), "label", [0, 1]),
        (of(label=pa.array(["x", "y"]).dictionary_encode()), "label", [0, 1]),
        (of(label=pa.array(["y", "x"], pa.large_string())), "label", [1, 0]),
        (of(label=pa.array([0, 1], pa.int8())) | {"b.parquet": pa.table({"image": IMAGE, "label": [1, 0]})}
         | {"classnames.txt": "a\nb\n"}, "label", [0, 1, 1, 0]),
        (of(caption=["a", "b"])
         | {"b.parquet": pa.table({"image": IMAGE, "caption": pa.array(["c", "d"], pa.large_string())})},
         "captions", [["a"], ["b"], ["c"], ["d"]]),
        (of(captions=pa.array([["a"], ["b", "c"]], pa.large_list(pa.large_string()))), "captions", [["a"], ["b", "c"]]),
        (described("context") | of(caption_a=pa.array(["a", "b"]).dictionary_encode(), caption_b=["c", "d"]),
         "caption_a", ["a", "b"]),
        (tars(tar_of(sample("0", 0)) + tar_of(sample("1", 1))), "label", [0, 1]),
        (tars(tar_of(sample("0", 0) + sample("0", 1))), "label", [0, 1]),
        (tars(tar_of([*sample("0", 0), ("0.json", b"{}"), *sample("1", 1)])), "label", [0, 1]),
    ],
)  # fmt: skip
def test_what_is_read(tmp_path: Path, files: dict[str, Any], column: str, values: list[Any]) -> None:
    assert read_set(write(tmp_path, files)).table[column].to_pylist() == values


COCO = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (of(caption=[1, 2]), "caption of type int64 cannot be read as texts"),
        (of(captions=[[1.5], [3.5]]), "captions of type list<.*double> cannot be read as texts"),
        (of(caption=WRONG_BYTES), "caption of type string cannot be read as texts"),
        (of(label=[0, 1]) | {"b.parquet": pa.table({"image": IMAGE, "label": ["a", "b"]}), "classnames.txt": "a\nb\n"},
         "its Parquet files differ in their columns"),
        (described("context") | of(caption_a=[1, 2], caption_b=["a", "b"]), "caption_a of type int64"),
        (described("context") | of(caption_a=WRONG_BYTES, caption_b=["a", "b"]), "caption_a of type string"),
        (described("retrieval") | of(captions=["a", "b"], caption_types=["k", "k"]), "captions of type string"),
        (described("classification") | {"a.parquet": pa.table({"image": ["a.png"], "label": [0]})}, "image is of"),
        (described("classification", classes=[1]) | of(label=[0, 0]), r"evaluation.json: classes is \[1\]; it has"),
        (described("classification", classes=None) | of(label=[0, 0]), "evaluation.json: classes is None"),
        (described("classification", templates="{}") | of(label=[0, 0]), "evaluation.json: templates is '{}'; it has"),
        (described("classification", name=3) | of(label=[0, 0]), "evaluation.json: name is 3; it has to be a text"),
        ({"evaluation.json": "[]"} | of(label=[0, 0]), "evaluation.json holds a list, not an object"),
        ({"captions_val2017.json": json.dumps(COCO | {"annotations": [3]}), "0.png": picture(0)},
         "captions_val2017.json is no list as COCO's"),
        ({"captions_val2017.json": "[]", "0.png": picture(0)}, "captions_val2017.json is no list as COCO's"),
        ({"dataset_coco.json": json.dumps({"images": [{"split": "test"}]}), "0.png": picture(0)},
         r"dataset_coco.json is no list as COCO's or Karpathy's \(KeyError: 'filename'\)"),
        (tars(tar_of(sample("0", 0)) + b"junk" * 200), "0.tar cannot be read as a tar"),
        (tars(tar_of(sample("0", 0))[:600]), "0.tar cannot be read as a tar"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_set(write(tmp_path, files))
