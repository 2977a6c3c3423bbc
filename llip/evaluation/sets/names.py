"""Names of sets and classes, and prompts, where a format keeps them in text files."""

import json
from functools import cache
from importlib import resources
from typing import Any

from llip import storage
from llip.data import text_files

CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
DEFAULT_TEMPLATES = ("a photo of a {}.",)


def of_set(uri: str, path: str) -> str:
    """Name of the set in the folder `path` under `uri`."""
    return path.replace("/", "-") or uri.rpartition("/")[2]


def lines(uri: str) -> tuple[str, ...] | None:
    """Lines of a text file without surrounding space; None where there is no file. Blank lines at its end are dropped;
    raises ValueError for one between others, which would move the labels of those behind it."""
    if not storage.exists(uri):
        return None
    found = [line.strip() for line in text_files.all_lines(text_files.decoded(storage.read_bytes(uri), uri))]
    while found and not found[-1]:
        found.pop()
    if "" in found:
        raise ValueError(f"{uri}, line {found.index('') + 1} is blank; the number of a line is the label of its name")
    return tuple(found)


def templates(folder: str) -> tuple[str, ...]:
    """Prompts of a set, `{c}` (as CLIP_benchmark writes) or `{}` standing for the class; else `a photo of a {}.`"""
    uri = storage.join(folder, TEMPLATES)
    found = [line.strip() for line in text_files.read_lines(uri)] if storage.exists(uri) else []
    return tuple(t.replace("{c}", "{}") for t in found) if found else DEFAULT_TEMPLATES


@cache
def imagenet() -> dict[str, Any]:
    """`classes`: the 1,000 names by synset id, in order; `templates`: the 80 prompts (Radford et al. 2021)."""
    return json.loads(resources.files(__package__).joinpath("imagenet.json").read_text(encoding="utf-8"))
