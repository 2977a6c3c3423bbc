"""Pools of WebDataset tars: members that share a name up to its first dot are one row."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from llip import storage
from pipelines import schema
from pipelines.stages import normalise
from pipelines.stages.units import Unit

NOUN = "tars"
IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")


def plan(files: Sequence[tuple[str, str]], unit_rows: int) -> tuple[list[Unit], pa.Schema]:
    """A unit a tar, whatever `unit_rows`: a tar can only be read from its beginning. Looks at the first row alone."""
    first = next(_samples(files[0][0], images=False), None)
    if first is None:
        raise ValueError(
            f"{files[0][0]} holds no row: a row is a .jpg, .png or .webp member with a .txt or .json member of its name"
        )
    units = [Unit(index=i, file=file, name=name, size=1) for i, (file, name) in enumerate(files)]
    return units, pa.schema([])


def tables(unit: Unit, extras: Sequence[str], *, images: bool) -> Iterator[pa.Table]:
    """Rows in the order of the tar; an id is a hash of the tar's name and the row's, and a missing picture is null."""
    rows = (_row(unit, key, members) for key, members in _samples(unit.file, images))
    return normalise.batched(rows)


def _row(unit: Unit, key: str, members: dict[str, bytes]) -> dict[str, Any]:
    return {
        schema.ID: f"{normalise.prefix(unit.name)}-{key}",
        schema.IMAGE: next((members[s] for s in IMAGES if s in members), None),
        schema.CAPTIONS: _captions(members),
    }


def _samples(file: str, images: bool) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(name, contents by suffix) of each run of members with one name; without `images` their pictures are left out."""
    current, members = "", dict[str, bytes]()
    try:
        with storage.opened(file) as handle, tarfile.open(fileobj=handle, mode="r|*") as tar:
            for member in tar:
                key, suffix = _split(member.name)
                if not member.isfile() or suffix not in IMAGES + TEXTS:
                    continue
                if key != current and current:
                    yield current, members
                    members = {}
                current = key
                if images or suffix in TEXTS:
                    content = tar.extractfile(member)
                    assert content is not None, "a regular file has content"
                    members[suffix] = content.read()
        if current:
            yield current, members
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as a tar ({error})") from error


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _captions(members: dict[str, bytes]) -> list[str]:
    """The text of a .txt member, or `captions`, `caption` or `text` of a .json one; none where there is neither."""
    if "txt" in members:
        return [members["txt"].decode("utf-8", "replace").rstrip("\r\n")]
    try:
        return normalise.captions_of(json.loads(members.get("json", b"{}")))
    except ValueError:
        return []
