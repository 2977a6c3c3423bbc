"""What `kubectl kustomize` makes of the folders in cluster/kubernetes, as far as they use it."""

import copy
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Object = dict[str, Any]
KEYS = {"apiVersion", "kind", "resources", "components", "patches", "replacements"}


def rendered(folder: Path) -> list[Object]:
    """The objects that `kubectl apply -k` would send."""
    local = "config.kubernetes.io/local-config"
    return [o for o in _built(folder, []) if local not in o["metadata"].get("annotations", {})]


def _built(folder: Path, objects: list[Object]) -> list[Object]:
    """`objects` with what a folder adds to them and changes of them."""
    what = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert what.keys() <= KEYS, f"{folder}: {what.keys() - KEYS}"
    for name in what.get("resources", ()):
        path = folder / name
        objects = [*objects, *(_built(path, []) if path.is_dir() else yaml.safe_load_all(path.read_text()))]
    for name in what.get("components", ()):
        objects = _built(folder / name, objects)
    for patch in what.get("patches", ()):
        operations = jsonpatch.JsonPatch(yaml.safe_load(patch["patch"]))
        objects = [operations.apply(o) if _selected(o, patch["target"]) else o for o in objects]
    for replacement in what.get("replacements", ()):
        (source,) = [o for o in objects if _selected(o, replacement["source"])]
        value: Any = source
        for key in replacement["source"]["fieldPath"].split("."):
            value = value[key]
        for target in replacement["targets"]:
            for found in (o for o in objects if _selected(o, target["select"])):
                for path in target["fieldPaths"]:
                    *parents, last = path.split(".")
                    place = found
                    for key in parents:
                        place = place[key]
                    place[last] = copy.deepcopy(value)
    return objects


def _selected(found: Object, by: Object) -> bool:
    return found["kind"] == by["kind"] and by.get("name", found["metadata"]["name"]) == found["metadata"]["name"]
