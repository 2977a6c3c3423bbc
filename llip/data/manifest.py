"""The manifest of a folder: what a finished stage leaves last. Its presence means that the folder is complete."""

from dataclasses import asdict, dataclass, field
from typing import Any

from llip import storage
from llip.fields import differences

NAME = "manifest.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the folder."""

    name: str
    """Path inside the folder."""
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a finished folder: its files, and everything needed to make it again."""

    kind: str
    """pool, curated, shards or evaluation."""
    files: tuple[FileEntry, ...]
    config: dict[str, Any]
    """Settings of the stage that wrote the folder, and digests of what it read; no places, so that it can be moved."""
    source: dict[str, Any] = field(default_factory=dict)
    """Places of what the stage read."""
    row_group_size: int | None = None
    """Rows of every row group but the last of each file (shards)."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Numbers worth showing: rows in, kept, dropped by reason."""
    schema_version: int = SCHEMA_VERSION

    @property
    def rows(self) -> int:
        return sum(f.rows for f in self.files)

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)


def write(folder: str, manifest: Manifest) -> None:
    """Write the manifest of a folder, as its last file."""
    storage.write_json(storage.join(folder, NAME), asdict(manifest) | {"rows": manifest.rows, "bytes": manifest.bytes})


def read(folder: str, kind: str) -> Manifest:
    """The manifest of a finished folder. Raises ValueError where there is none, or one of another kind or version."""
    uri = storage.join(folder, NAME)
    if not storage.exists(uri):
        raise ValueError(f"{uri} does not exist: {folder} is not a finished {kind} folder")
    values = _values(uri)
    if values.get("kind") != kind:
        raise ValueError(f"{uri} describes a {values.get('kind')!r} folder; a {kind!r} folder is needed here")
    if values.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{uri} has schema version {values.get('schema_version')!r}; this program reads version {SCHEMA_VERSION}"
        )
    try:
        files = tuple(FileEntry(**f) for f in values.pop("files"))
        return Manifest(files=files, **{k: v for k, v in values.items() if k not in ("rows", "bytes")})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{uri} is no manifest that this program wrote ({error}); write the folder again") from error


def _values(uri: str) -> dict[str, Any]:
    values = storage.read_json(uri)
    if not isinstance(values, dict):
        raise ValueError(f"{uri} holds a {type(values).__name__}; a manifest is an object: write the folder again")
    return values


def kind_of(folder: str) -> str | None:
    """Kind of a finished folder; None where it has no manifest."""
    uri = storage.join(folder, NAME)
    return _values(uri).get("kind") if storage.exists(uri) else None


def is_done(folder: str, kind: str, config: dict[str, Any]) -> bool:
    """Whether a stage has nothing left to do. Raises ValueError for a folder of other settings, naming these."""
    if not storage.exists(storage.join(folder, NAME)):
        return False
    if changed := differences(read(folder, kind).config, config):
        raise ValueError(f"{folder} was made with other settings ({'; '.join(changed)}): choose another or remove it")
    return True
