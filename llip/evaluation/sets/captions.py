"""Retrieval sets as COCO and Karpathy's splits give them: a JSON file of captions beside or above the images.

COCO's own `captions_val2014.json` or `captions_val2017.json` gives all its images, `dataset_coco.json` and
`dataset_flickr30k.json` (Karpathy and Fei-Fei, 2015) their test split. An image's first five captions are taken, as
published numbers do.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from llip import storage
from llip.evaluation.sets import image_references, names
from llip.evaluation.sets.evaluation_set import EvaluationSet

LISTS = (re.compile(r"(.*/)?dataset_(coco|flickr30k|flickr8k)\.json"), re.compile(r"(.*/)?captions_val\d*\.json"))
PER_IMAGE = 5


def roots(uri: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    for folder in sorted({_root(path) for path in files if _is_list(path)}):
        yield folder, names.of_set(uri, folder)


def read(uri: str, name: str, files: Sequence[str]) -> EvaluationSet:
    listed = min(filter(_is_list, files), key=lambda path: (LISTS[0].fullmatch(path) is None, path))
    content = storage.read_json(storage.join(uri, listed))
    try:
        captions = dict(_karpathy(content) if LISTS[0].fullmatch(listed) else _coco(content))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{uri}/{listed} is no list as COCO's or Karpathy's ({type(error).__name__}: {error})"
        ) from error
    places = {path.rpartition("/")[2]: path for path in files}
    if missing := [image for image in captions if image not in places]:
        raise ValueError(
            f"{uri}/{listed} lists {missing[0]}, which is nowhere under {uri} ({len(missing)} of {len(captions)} miss)"
        )
    image = pa.array(
        [{"uri": f"{uri}/{places[i]}", "offset": 0, "size": None} for i in captions], image_references.PART
    )
    return EvaluationSet.of_captions(name, image, [of_image[:PER_IMAGE] for of_image in captions.values()])


def _is_list(path: str) -> bool:
    return any(pattern.fullmatch(path) for pattern in LISTS)


def _root(path: str) -> str:
    """The folder that holds both the list and the images: COCO has its lists in `annotations`."""
    folder = path.rpartition("/")[0]
    return folder.removesuffix("annotations").rstrip("/")


def _karpathy(content: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for image in content["images"]:
        if image["split"] == "test":
            yield image["filename"], [sentence["raw"] for sentence in image["sentences"]]


def _coco(content: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    captions: dict[int, list[str]] = {}
    for annotation in sorted(content["annotations"], key=lambda annotation: annotation["id"]):
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    for image in content["images"]:
        yield image["file_name"], captions.get(image["id"], [])
