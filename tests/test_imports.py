"""Imports go one way: no circle, no arrow upwards, and nothing of the library reaches Ray."""

import ast
import re
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("llip", "pipelines", "tune", "cluster")

BOTTOM = {"fields", "config", "storage", "lazy", "progress", "headline"}
ALLOWED: dict[str, set[str]] = {
    "llip.fields": set(),
    "llip.storage": set(),
    "llip.page": set(),
    "llip.devices": set(),
    "llip.progress": set(),
    "llip.headline": set(),
    "llip.lazy": set(),
    "llip.lease": {"storage"},
    "llip.config": {"fields"},
    "llip.recipes": {"fields", "config", "storage"},
    "llip.model": {"config"},
    "llip.pairs": {"config", "devices", "model"},
    "llip.contrastive": {"config", "recipes", "model", "pairs"},
    "llip.summary": {"config", "model", "contrastive"},
    "llip.recipes.__main__": {"recipes", "summary"},
    "llip.data": BOTTOM,
    "llip.interop": BOTTOM | {"recipes", "contrastive"},
    "llip.evaluation": BOTTOM | {"page", "model", "contrastive", "data"},
    "llip.runs": BOTTOM | {"data"},
    "llip.training": BOTTOM
    | {"devices", "page", "recipes", "model", "pairs", "contrastive", "summary", "data", "interop", "runs", ""},
    "llip": {"lazy", "recipes", "contrastive", "interop", "training"},
}
"""Rooms of the library that each of them may import; "" is the package itself."""


def modules() -> dict[str, Path]:
    """Every module by its name."""
    files = sorted(file for top in TOPS for file in (ROOT / top).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = modules()


def imported(name: str) -> set[str]:
    """Names that a module imports anywhere, in functions and for annotations too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: imports are absolute"
            of_names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (of_names & MODULES.keys()) or {str(node.module)}
    return found - {name}


IMPORTS = {name: imported(name) for name in MODULES}


def room(module: str) -> str:
    return module if module in ALLOWED else ".".join(module.split(".")[:2])


def test_no_module_is_imported_by_what_it_imports() -> None:
    try:
        TopologicalSorter({name: found & MODULES.keys() for name, found in IMPORTS.items()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize(("top", "below"), [(top, TOPS[: max(i, 1)]) for i, top in enumerate(TOPS)])
def test_arrows_between_folders_point_down(top: str, below: tuple[str, ...]) -> None:
    """The sweeps and the planner stand beside each other, above the pipelines."""
    allowed = {top, *below} - ({"tune"} if top == "cluster" else set())
    upward = {
        (name, target)
        for name, found in IMPORTS.items()
        for target in found & MODULES.keys()
        if name.split(".")[0] == top and target.split(".")[0] not in allowed
    }
    assert not upward


def test_stages_know_of_the_jobs_only_the_columns() -> None:
    assert {
        (name, target)
        for name, found in IMPORTS.items()
        for target in found
        if name.startswith("pipelines.stages") and target.startswith("pipelines.")
        if not target.startswith(("pipelines.stages", "pipelines.schema"))
    } == set()


def test_arrows_between_rooms_of_the_library_are_those_that_are_listed() -> None:
    wrong = {
        (name, target)
        for name, found in IMPORTS.items()
        if name.split(".")[0] == "llip"
        for target in found & MODULES.keys()
        if room(target) != room(name) and room(target).removeprefix("llip").removeprefix(".") not in ALLOWED[room(name)]
    }
    assert not wrong


def test_the_library_never_imports_ray() -> None:
    assert not [
        name
        for name, found in IMPORTS.items()
        if name.startswith("llip") and any(target.split(".")[0] == "ray" for target in found)
    ]


def test_no_two_classes_share_a_name() -> None:
    named = [
        node.name
        for file in MODULES.values()
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name, count in Counter(named).items() if count > 1] == []


def test_sentences_of_docstrings_begin_with_their_subject() -> None:
    """Also those of a field or a constant: a noun, neither what is said "of" something nor a question's clause."""
    wrong = [
        f"{file.relative_to(ROOT)}, line {node.lineno}: {found[1]} …"
        for file in MODULES.values()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for found in re.finditer(
            r"((?:^|\. )(?:Of|That of|That any|Those) .{20}|^(?:What|Where|How|Which) .{20})",
            " ".join(node.value.value.split()),
        )
    ]
    assert not wrong
