"""Pools of WebDataset tars: members that share a name up to its first dot are one row."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, Self

import pyarrow as pa

from llip import storage
from pipelines import schema
from pipelines.stages.read import normalise
from pipelines.stages.work import Unit

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
    return units, schema.with_extras([])


def tables(unit: Unit, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Rows in the order of the tar; an id is a hash of the tar's name and the row's, and a missing picture is null."""
    rows = (_row(unit, key, members) for key, members in _samples(unit.file, schema.IMAGE in columns))
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
        with storage.opened(file) as handle, tarfile.open(fileobj=handle, mode="r|*", tarinfo=_Member) as tar:
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


class _Member(tarfile.TarInfo):
    """A header that has to be right: `tarfile` takes a broken one for the end, and what follows would be lost."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _captions(members: dict[str, bytes]) -> list[str]:
    """The list `captions` of a .json member, or else the text of a .txt one, or else `caption` or `text` of the
    .json; none where there is neither."""
    try:
        record = json.loads(members.get("json", b"{}"))
    except ValueError:
        record = None
    record = record if isinstance(record, dict) else {}
    if "txt" in members and not isinstance(record.get(schema.CAPTIONS), list):
        return [members["txt"].decode("utf-8", "replace").rstrip("\r\n")]
    return normalise.captions_of(record)
