"""The pages say what is so: every file has its line, every command parses, every link leads somewhere."""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import command
from pipelines.command import Trained

ROOT = Path(__file__).parents[1]
FOLDERS = ("llip", "pipelines", "tune", "cluster", "tests/benchmarks")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for top in FOLDERS for page in (ROOT / top).rglob("README.md"))],
    key=lambda page: (len(page.parts), page),
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SCRIPT = re.compile(r"(?:pipelines|tune|cluster|tests/benchmarks)/\w+\.py")


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of every code block, fenced or indented."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return fenced + [
        ("", re.sub(r"^ {4}", "", block, flags=re.M)) for block in re.findall(r"(?:^ {4}.*\n)+", rest, re.M)
    ]


def commands() -> list[str]:
    """Script or -m module with its options, of every command that a page or a file of the cluster prints."""
    texts = [(ROOT / "cluster/slurm.sh").read_text().replace("# ", "")]
    texts.append(yaml.safe_load((ROOT / "cluster/kubernetes/job/rayjob.yaml").read_text())["spec"]["entrypoint"])
    for page in PAGES:
        text = page.read_text()
        texts += [block for language, block in blocks(text) if language in ("", "bash")]
        texts += re.findall(r"`((?:uv run|python) [^`]+)`", text)
    found: dict[str, None] = {}
    for line in "\n".join(texts).replace("\\\n", " ").splitlines():
        for words in re.split(r"&&|\|", line):
            if match := re.search(
                rf"(?:^|\s)({SCRIPT.pattern}|-m (?:llip|pipelines|tune|cluster)[\w.]*)(?:\s|$).*", words
            ):
                found[match.group().strip()] = None
    return list(found)


def named(page: Path) -> set[Path]:
    """Files in the first column of a page's tables; below a line that begins with a **`folder/`**, files of it."""
    prefix, found = "", set()
    for line in page.read_text().splitlines():
        if line.startswith("#"):
            prefix = ""
        elif section := re.match(r"\*\*\[?`([\w/]+/)`", line):
            prefix = section[1]
        elif line.startswith("|"):
            found |= {
                page.parent / prefix / name for name in re.findall(r"`([\w./]+\.(?:py|ya?ml|sh))`", line.split("|")[1])
            }
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_has_its_line_on_the_page_of_its_folder(folder: str) -> None:
    files = {file for kind in ("*.py", "*.yaml", "*.sh") for file in (ROOT / folder).rglob(kind)}
    maps = {page: named(page) for page in PAGES}
    missing = set()
    for file in files:
        page = next(parent / "README.md" for parent in file.parents if (parent / "README.md").exists())
        if file.name != "__init__.py" and file not in maps[page]:
            missing.add(str(file.relative_to(ROOT)))
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    assert not {link for link in links if not (page.parent / link).exists()}
    assert not {file for file in named(page) if not file.exists()}
    assert f"{ROOT}/" not in text
    assert f"{Path.home()}/" not in text


@pytest.mark.parametrize("text", commands())
def test_every_command_that_is_printed_parses(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *arguments = shlex.split(text, comments=True)
    if script == "-m":
        module = importlib.util.find_spec(arguments[0])
        assert module is not None
        assert not module.submodule_search_locations or importlib.util.find_spec(f"{arguments[0]}.__main__")
        return
    assert (ROOT / script).exists()
    if script.startswith("tests/"):
        assert options_of(ROOT / script) >= {word.partition("=")[0] for word in arguments if word.startswith("--")}
        return
    (tmp_path / "recipe.toml").write_text(toml_blocks()[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run", lambda settings, *_: parsed(settings, arguments))
    importlib.import_module(script.removesuffix(".py").replace("/", ".")).cli()


def parsed(settings: type[Any], arguments: list[str]) -> None:
    try:
        found = command.parse(settings, arguments)
    except SystemExit as stop:
        assert stop.code == 0, "the options are not those of the command"
    else:
        if isinstance(found, Trained):
            found.training()


def options_of(script: Path) -> set[str]:
    """Options of a benchmark, without importing it: fields of its settings, and what it adds to a parser."""
    found = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(f"--{node.target.id.replace('_', '-')}")
        elif isinstance(node, ast.Constant) and str(node.value).startswith("--"):
            found.add(str(node.value))
    return found


def toml_blocks() -> list[str]:
    return [block for language, block in blocks((ROOT / "README.md").read_text()) if language == "toml"]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_a_page_imports_can_be_imported(page: Path) -> None:
    for language, block in blocks(page.read_text()):
        if language == "toml":
            tomllib.loads(block)
        elif language == "python":
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(str(node.module))
                    assert all(hasattr(module, alias.name) for alias in node.names)
                elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "llip":
                    assert hasattr(importlib.import_module("llip"), node.attr)


def test_the_first_page_is_one_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 135
    assert len(text.split()) <= 1250
