"""Folders of images: one for each class, or captions in text files of the same names, a caption a line.

Classes are in the order of their folders' names, and are called as these, or as the lines of `classnames.txt` say.
Folders named by synsets (n01440764 …) are ImageNet's or a robustness set of it (A, R, Sketch): they get its names and
its 80 templates, and are all the classes there are, which are 200 for A and R. Folders 0 … 999 are ImageNet-V2's.
"""

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa

from llip import storage
from llip.data import text_files
from llip.evaluation.sets import image_references, names
from llip.evaluation.sets.evaluation_set import EvaluationSet

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
SYNSET = re.compile(r"n\d{8}")


def roots(uri: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    known = set(files)
    found = set()
    for path in filter(_is_image, files):
        folder = path.rpartition("/")[0]
        if _caption_file(path) in known:
            found.add(folder)
        elif folder:
            found.add(folder.rpartition("/")[0])
    for folder in sorted(found):
        yield folder, names.of_set(uri, folder)


def read(uri: str, name: str, files: Sequence[str]) -> EvaluationSet:
    known, images = set(files), list(filter(_is_image, files))
    places = [{"uri": f"{uri}/{path}", "offset": 0, "size": None} for path in images]
    image = pa.array(places, image_references.PART)
    with_captions = [_caption_file(path) in known for path in images]
    if any(with_captions):
        if not all(with_captions):
            raise ValueError(f"{uri}/{images[with_captions.index(False)]} has no captions: a .txt file of its name")
        captions = [text_files.read_lines(f"{uri}/{_caption_file(path)}") for path in images]
        return EvaluationSet.of_captions(name, image, captions)
    if deep := [path for path in images if path.count("/") != 1]:
        raise ValueError(f"{uri}/{deep[0]}: images have to lie in the folders of their classes, all at one depth")
    of_image = [path.split("/")[0] for path in images]
    classes, templates = _classes(uri, sorted(set(of_image)))
    index = {folder: label for label, folder in enumerate(classes)}
    return EvaluationSet(
        name=name,
        task="classification",
        table=pa.table({"image": image, "label": pa.array([index[folder] for folder in of_image], pa.int32())}),
        classes=tuple(classes.values()),
        templates=templates,
    )


def _classes(uri: str, folders: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Names by folder in the order of the labels, and templates."""
    imagenet = names.imagenet()
    if all(map(SYNSET.fullmatch, folders)):
        if unknown := [folder for folder in folders if folder not in imagenet["classes"]]:
            raise ValueError(f"{uri}/{unknown[0]}: this synset is none of ImageNet's 1,000 classes")
        return {folder: imagenet["classes"][folder] for folder in folders}, tuple(imagenet["templates"])
    if set(folders) == {str(label) for label in range(1000)}:
        classes = dict(zip(map(str, range(1000)), imagenet["classes"].values(), strict=True))
        return classes, tuple(imagenet["templates"])
    called = names.lines(storage.join(uri, names.CLASSES)) or [folder.replace("_", " ") for folder in folders]
    if len(called) != len(folders):
        raise ValueError(f"{uri}/{names.CLASSES} has {len(called)} names for {len(folders)} folders")
    return dict(zip(folders, called, strict=True)), names.templates(uri)


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGES)


def _caption_file(path: str) -> str:
    return path.rpartition(".")[0] + ".txt"
