"""CLIP_benchmark's WebDataset format: for classification and for retrieval.

    <set>/classnames.txt  zeroshot_classification_templates.txt  dataset_type.txt
    <set>/<split>/nshards.txt  0.tar  1.tar …

Members of one name are a sample: an image with `.cls` (the class's index; in DataComp's sets also `.npy`, whose first
number is the group that the image belongs to: its region, income or camera), or with `.txt` (a caption a line) where
`dataset_type.txt` says `retrieval`. Tars are indexed once; an image is read from its place in the tar.
"""

import io
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llip import storage
from llip.data import tars, text_files
from llip.evaluation.sets import image_references, names
from llip.evaluation.sets.evaluation_set import EvaluationSet

SHARDS, TYPE = "nshards.txt", "dataset_type.txt"
SPLITS = ("test", "val", "validation")
"""Splits in the order of preference; of other names the first is taken."""
TEXT_BYTES = 1 << 24
"""Most bytes of a text that is read: a sparse member may claim to be of any size."""
IMAGES = ("webp", "png", "jpg", "jpeg")


def roots(uri: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    splits: dict[str, list[str]] = {}
    for path in files:
        folder, _, name = path.rpartition("/")
        if name == SHARDS:
            above, _, split = folder.rpartition("/")
            splits.setdefault(above, []).append(split)
    for above, found in splits.items():
        split = min(found, key=lambda s: (SPLITS.index(s) if s in SPLITS else len(SPLITS), s))
        yield f"{above}/{split}".strip("/"), names.of_set(uri, above)


def read(uri: str, name: str, files: Sequence[str]) -> EvaluationSet:
    above = uri.rpartition("/")[0]
    shards = _number(storage.join(uri, SHARDS))
    missing = [f"{i}.tar" for i in range(shards) if f"{i}.tar" not in files]
    if missing:
        raise ValueError(f"{uri}/{SHARDS} says {shards}, but {missing[0]} is missing")
    kind = (names.lines(storage.join(above, TYPE)) or ("classification",))[0].lower()
    samples = [sample for i in range(shards) for sample in _samples(f"{uri}/{i}.tar")]
    image = pa.array([image for _, image, _ in samples], image_references.PART)
    match kind:
        case "classification":
            label = pa.array([_label(where, members) for where, _, members in samples], pa.int32())
            classes = names.lines(storage.join(above, names.CLASSES))
            if classes is None:
                raise ValueError(f"{above}/{names.CLASSES} does not exist: a name a line, in the order of the labels")
            table = pa.table({"image": image, "label": label} | _groups(samples))
            return EvaluationSet(
                name=name, task="classification", table=table, classes=classes, templates=names.templates(above)
            )
        case "retrieval":
            captions = [text_files.lines(_member(where, members, "txt"), where) for where, _, members in samples]
            return EvaluationSet.of_captions(name, image, captions)
        case _:
            raise ValueError(f"{above}/{TYPE} says {kind!r}; classification and retrieval can be evaluated")


def _number(uri: str) -> int:
    text = text_files.decoded(storage.read_bytes(uri), uri).strip()
    if not text.isdecimal():
        raise ValueError(f"{uri} has to hold the number of tars; it holds {text[:40]!r}")
    return int(text)


def _samples(file: str) -> Iterator[tuple[str, dict[str, Any], dict[str, bytes]]]:
    """(where, reference to the image, contents of the small members) of each sample of a tar."""
    current, image, members = "", None, dict[str, bytes]()
    try:
        with storage.opened(file) as handle, tars.opened(handle, "r:") as tar:
            for member in [*filter(tarfile.TarInfo.isfile, tar), None]:
                key, suffix = _split(member.name) if member else ("", "")
                again = suffix in members or (suffix in IMAGES and image is not None)  # a second row of the same name
                if (key != current or again) and current:
                    where = f"{file}, sample {current}"
                    if image is None:
                        raise ValueError(f"{where}: it has no image (.{', .'.join(IMAGES)})")
                    yield where, image, members
                    image, members = None, {}
                current = key
                if member and suffix in IMAGES:
                    image = {"uri": file, "offset": member.offset_data, "size": member.size}
                elif member and suffix in ("cls", "txt", "npy"):
                    if member.size > TEXT_BYTES:
                        raise ValueError(f"{file}: {member.name} has {member.size:,} bytes; a text has few")
                    content = tar.extractfile(member)
                    assert content is not None, "a regular file has content"
                    members[suffix] = content.read()
    except tarfile.TarError as error:
        raise ValueError(f"{file} cannot be read as a tar ({error})") from error


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _groups(samples: Sequence[tuple[str, dict[str, Any], dict[str, bytes]]]) -> dict[str, pa.Array]:
    """The column of groups, where every sample has metadata."""
    if not samples or not all("npy" in members for *_, members in samples):
        return {}
    found = []
    for where, _, members in samples:
        try:
            found.append(int(np.load(io.BytesIO(members["npy"]), allow_pickle=False).flat[0]))
        except (ValueError, IndexError, EOFError, OverflowError) as error:
            raise ValueError(f"{where}: its .npy member cannot be read as an array of numbers ({error})") from error
    return {"group": pa.array(found, pa.int32())}


def _label(where: str, members: dict[str, bytes]) -> int:
    text = text_files.decoded(_member(where, members, "cls"), where).strip()
    if not text.isdecimal():
        raise ValueError(f"{where}: its .cls member has to hold the index of a class; it holds {text[:40]!r}")
    return int(text)


def _member(where: str, members: dict[str, bytes], suffix: str) -> bytes:
    if suffix not in members:
        raise ValueError(f"{where}: it has no .{suffix} member")
    return members[suffix]
