"""The folder of a run: its `config.json` says what it trains and on which shards, and a folder holds one run. Which
version of this program trains is said here too."""

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from llip import storage
from llip.config import TrainingConfig
from llip.data import manifest
from llip.fields import differences, leaves, to_dict

NAME = "config.json"
STORY = "about.json"
"""Recipe, what differs from it, the command that repeats the run, commit and date."""
STATE = "state.json"
"""File of a checkpoint that is written when the others are."""
POINTER = "checkpoints/latest.json"
"""File that names the newest checkpoint."""

OPERATIONAL = tuple(leaf.path for leaf in leaves(TrainingConfig) if leaf.operational)
"""Settings that change nothing of what is learned: a run may go on with other ones."""


def for_shards(config: TrainingConfig, shards: str | Sequence[str]) -> TrainingConfig:
    """The configuration with the steps that its epochs make of these shards."""
    folders = (shards,) if isinstance(shards, str) else shards
    return config.for_rows(sum(manifest.read(folder, "shards").rows for folder in folders))


def check(folder: str, config: TrainingConfig, shards: str | Sequence[str] | None = None) -> None:
    """Raises ValueError where the folder holds a run of another configuration or other shards, naming what differs."""
    uri = storage.join(folder, NAME)
    if not storage.exists(uri):
        return
    known = storage.read_json(uri)
    changed = [
        line for line in differences(known["training"], to_dict(config)) if line.split(":")[0] not in OPERATIONAL
    ]
    if shards is not None and known["data"] != fingerprint(shards):
        changed.append(f"shards: {known['shards']} → {shards}, which holds other samples")
    if changed:
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(changed)}); "
            "choose another --name, or remove the folder"
        )


def claim(folder: str, config: TrainingConfig, shards: str | Sequence[str]) -> None:
    """Note in the folder what it trains. Raises ValueError where it trains something else: see `check`."""
    check(folder, config, shards)
    content = {"training": to_dict(config), "shards": shards, "data": fingerprint(shards)}
    storage.write_json(storage.join(folder, NAME), content)


def tell(folder: str, story: Mapping[str, Any]) -> None:
    """Note what a report has to say of a run; the date is that of its first start."""
    uri = storage.join(folder, STORY)
    if not storage.exists(uri):
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        storage.write_json(uri, {**story, "commit": git_revision(), "date": now})


def story(folder: str | None) -> dict[str, Any]:
    """The story that `tell` wrote; empty without one."""
    uri = storage.join(folder, STORY) if folder else ""
    return dict(storage.read_json(uri)) if uri and storage.exists(uri) else {}


def progress(folder: str) -> int:
    """Number of updates behind the newest checkpoint, found by reading one small file; 0 without one."""
    uri = storage.join(folder, POINTER)
    return int(storage.read_json(uri)["step"]) if storage.exists(uri) else 0


def fingerprint(shards: str | Sequence[str]) -> str:
    """SHA-256 over the checksums of the shards: the same for the same samples, wherever they lie."""
    folders = (shards,) if isinstance(shards, str) else shards
    return files_digest(*(manifest.read(folder, "shards") for folder in folders))


def files_digest(*manifests: manifest.Manifest) -> str:
    """SHA-256 over the checksums of the files of folders."""
    checksums = [file.sha256 for found in manifests for file in found.files]
    return hashlib.sha256("\n".join(checksums).encode()).hexdigest()


@cache
def git_revision() -> str:
    """Commit of this checkout, `+changes` where files differ from it; elsewhere GIT_REVISION (an image sets it)."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_REVISION", "unknown")
