"""Finds the evaluation sets under a folder."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llip import storage
from llip.data import integrity
from llip.evaluation.sets import associations, captions, choices, image_folder, names, ours, parquet, webdataset
from llip.evaluation.sets.evaluation_set import DESCRIPTION, EvaluationSet


class DatasetFormat(Protocol):
    """Functions of a module that reads one format."""

    def roots(self, uri: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(folder, name) of the sets of this format among files under `uri`, all given by their paths inside it."""
        ...

    def read(self, uri: str, name: str, files: Sequence[str]) -> EvaluationSet:
        """The set in the folder `uri`, whose files are given by their paths inside it."""
        ...


DESCRIPTIONS = (DESCRIPTION, names.CLASSES, names.TEMPLATES, webdataset.TYPE)
"""Files in a set's folder or in the one above that say what the set is."""
FORMATS: tuple[DatasetFormat, ...] = (ours, webdataset, choices, associations, captions, parquet, image_folder)


@dataclass(frozen=True, kw_only=True)
class FoundSet:
    """An evaluation set that was found and not yet read."""

    name: str
    uri: str
    files: Mapping[str, int]
    """Bytes by path inside the folder."""
    etags: Mapping[str, str]
    """ETags of an object store by path inside the folder; empty on a disk."""
    format: DatasetFormat

    def read(self) -> EvaluationSet:
        """Raises ValueError, naming file and field, for what the format does not allow."""
        return self.format.read(self.uri, self.name, list(self.files))

    def digest(self) -> str:
        """Identity of the set: names, sizes and marks (`integrity.mark`) of its files, and what describes it in the
        folder above."""
        found = [(storage.join(self.uri, name), size, self.etags.get(name, "")) for name, size in self.files.items()]
        lines = zip(self.files.items(), integrity.marks(found), strict=True)
        text = "".join(f"{name} {size} {mark}\n" for (name, size), mark in lines)
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape"))
        for name in DESCRIPTIONS:
            if storage.exists(uri := storage.beside(self.uri, name)):
                digest.update(storage.read_bytes(uri))
        return digest.hexdigest()


def find_sets(uri: str) -> list[FoundSet]:
    """The sets under a folder, at any depth, ordered by path. Raises ValueError for two of one name."""
    uri = storage.absolute(uri).rstrip("/")
    files, etags = _files(uri)
    found = []
    for format in FORMATS:
        for folder, name in list(format.roots(uri, list(files))):
            inside = f"{folder}/" if folder else ""
            of_set = {path.removeprefix(inside): size for path, size in files.items() if path.startswith(inside)}
            marks = {path: etags[inside + path] for path in of_set if inside + path in etags}
            found.append(
                FoundSet(name=name, uri=f"{uri}/{folder}".rstrip("/"), files=of_set, etags=marks, format=format)
            )
        taken = tuple(f"{source.uri}/" for source in found)
        files = {path: size for path, size in files.items() if not f"{uri}/{path}".startswith(taken)}
    by_name: dict[str, FoundSet] = {}
    for source in sorted(found, key=lambda source: source.uri):
        other = by_name.setdefault(source.name, source)
        if other is not source:
            raise ValueError(
                f"{source.uri} and {other.uri} both hold a set named {source.name}; metrics need distinct names"
            )
    return list(by_name.values())


def _files(uri: str) -> tuple[dict[str, int], dict[str, str]]:
    """Sizes and ETags of files, by path, with those of folders that a local one links to."""
    if not storage.is_local(uri):
        found = {storage.inside(uri, file): info for file, info in storage.entries(uri).items()}
        sizes = {path: int(info["size"]) for path, info in found.items()}
        return sizes, {path: info["ETag"] for path, info in found.items() if "ETag" in info}
    root, sizes = Path(storage.absolute(uri)), {}
    for folder, below, inside in os.walk(root, followlinks=True):
        above = {os.path.realpath(place) for place in (Path(folder), *Path(folder).parents)}
        below[:] = [name for name in below if os.path.realpath(Path(folder, name)) not in above]  # links that lead back
        for file in (Path(folder, name) for name in inside):
            if file.exists():  # no link that leads nowhere
                sizes[file.relative_to(root).as_posix()] = file.stat().st_size
    return dict(sorted(sizes.items())), {}


def read_set(uri: str) -> EvaluationSet:
    """The one set of a folder. Raises ValueError where it holds none or several."""
    found = find_sets(uri)
    if len(found) != 1:
        raise ValueError(f"{uri} holds {len(found) or 'no'} evaluation sets; name the folder of one")
    return found[0].read()
