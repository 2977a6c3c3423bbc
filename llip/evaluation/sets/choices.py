"""Sets of one image, several captions and one true one, as they were published: a list beside or above the images.

| list | set | fields of a row |
| --- | --- | --- |
| `add_att.json`, `swap_obj.json` … | SugarCrepe, on COCO's val2017 | `filename`, `caption`, `negative_caption` |
| `visual_genome_relation.json`, `…attribution.json` | ARO | `image_path`, `true_caption`, `false_caption`, `bbox_x`… |
| `examples.jsonl` | Winoground | `image_0`, `image_1`, `caption_0`, `caption_1` |
| `….negatives.json` | one's own | as SugarCrepe's; `negative_caption` may be a list |

SugarCrepe: Hsieh et al., NeurIPS 2023. ARO: Yuksekgonul et al., ICLR 2023; its box is what is seen of the image.
Winoground: Thrush et al., CVPR 2022.

The kind of a row is the list's name, and in ARO its relation or its attributes. Several lists of SugarCrepe in a folder
are one set; each list of ARO has its own folder.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from llip import storage
from llip.data import text_files
from llip.evaluation.sets import image_references, names
from llip.evaluation.sets.evaluation_set import EvaluationSet

NEGATIVES = re.compile(r"(.*/)?((add|replace|swap)_(att|obj|rel|ent)|[^/]+\.negatives)\.json")
ARO = re.compile(r"(.*/)?visual_genome_(relation|attribution)\.json")
WINOGROUND = re.compile(r"(.*/)?examples\.jsonl")

Row = tuple[dict[str, Any], list[str], str, int | None, int]
"""Reference to the image, captions, kind, group, which caption is true."""


def roots(uri: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    for folder in sorted({path.rpartition("/")[0] for path in files if _reader(path)}):
        yield folder, names.of_set(uri, folder)


def read(uri: str, name: str, files: Sequence[str]) -> EvaluationSet:
    lists = [path for path in files if _reader(path) and "/" not in path]
    if len({pattern for path in lists for pattern in PATTERNS if pattern.fullmatch(path)}) > 1 or (
        len(lists) > 1 and not NEGATIVES.fullmatch(lists[0])
    ):
        raise ValueError(f"{uri} holds {' and '.join(lists)}: lists of several sets; give each a folder of its own")
    places = {path.rpartition("/")[2]: f"{uri}/{path}" for path in files}
    places |= {name.rpartition(".")[0]: place for name, place in places.items() if name.endswith((".png", ".jpg"))}
    rows: list[Row] = []
    for path in lists:
        reader = _reader(path)
        assert reader is not None
        rows += _rows(f"{uri}/{path}", reader, places)
    image, captions, kind, group, true = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    table = pa.table(
        {
            "image": pa.array(image, image_references.CROP),
            "captions": pa.array(captions, pa.list_(pa.string())),
            "true": pa.array(true, pa.int32()),
            "kind": pa.array(kind, pa.string()),
            "group": pa.array(group, pa.int32()),
        }
    )
    return EvaluationSet(name=name, task="choice", table=table)


def _rows(file: str, reader: "Reader", places: Mapping[str, str]) -> Iterator[Row]:
    content: Any
    if file.endswith(".jsonl"):
        content = [json.loads(line) for line in text_files.read_lines(file)]
    else:
        content = storage.read_json(file)
    entries = content.values() if isinstance(content, dict) else content
    kind = file.rpartition("/")[2].partition(".")[0]
    for number, entry in enumerate(entries):
        try:
            yield from reader(entry, kind, number, places)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            missing = isinstance(error, KeyError) and str(error.args[0]).startswith("image ")
            what = error.args[0] if missing else f"it is no entry of such a list ({type(error).__name__}: {error})"
            raise ValueError(f"{file}, entry {number}: {what}") from error


def _place(places: Mapping[str, str], name: str) -> str:
    base = str(name).rpartition("/")[2]
    if base not in places:
        raise KeyError(f"image {name} is nowhere beside or below the list")
    return places[base]


def _negative(entry: Mapping[str, Any], kind: str, number: int, places: Mapping[str, str]) -> Iterator[Row]:
    negatives = entry["negative_caption"]
    captions = [entry["caption"], *([negatives] if isinstance(negatives, str) else negatives)]
    yield _whole(_place(places, entry["filename"])), captions, kind, None, 0


def _aro(entry: Mapping[str, Any], kind: str, number: int, places: Mapping[str, str]) -> Iterator[Row]:
    box = {side: int(entry[f"bbox_{short}"]) for side, short in zip(image_references.BOX, "xywh", strict=True)}
    of = entry["relation_name"] if "relation_name" in entry else "_".join(entry["attributes"])
    captions = [entry["true_caption"], entry["false_caption"]]
    yield {"uri": _place(places, entry["image_path"]), **box}, captions, of, None, 0


def _winoground(entry: Mapping[str, Any], kind: str, number: int, places: Mapping[str, str]) -> Iterator[Row]:
    captions = [entry["caption_0"], entry["caption_1"]]
    for true, image in enumerate((entry["image_0"], entry["image_1"])):
        yield _whole(_place(places, image)), captions, entry.get("collapsed_tag") or "", number, true


def _whole(uri: str) -> dict[str, Any]:
    return {"uri": uri} | dict.fromkeys(image_references.BOX)


Reader = Callable[[Mapping[str, Any], str, int, Mapping[str, str]], Iterator[Row]]
PATTERNS: dict[re.Pattern[str], Reader] = {NEGATIVES: _negative, ARO: _aro, WINOGROUND: _winoground}


def _reader(path: str) -> Reader | None:
    return next((reader for pattern, reader in PATTERNS.items() if pattern.fullmatch(path)), None)
