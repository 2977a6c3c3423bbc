"""Commands in the cluster's files and README are ones that the entry points understand."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import command as command_line
from pipelines import curate, fetch, pretrain, shard
from tune import sweep

CLUSTER = Path(__file__).parents[2] / "cluster"
SETTINGS: dict[str, type[Any]] = {
    "pipelines/curate.py": curate.Curate,
    "pipelines/fetch.py": fetch.Fetch,
    "pipelines/pretrain.py": pretrain.Pretrain,
    "pipelines/shard.py": shard.Shard,
    "tune/sweep.py": sweep.Sweep,
}


def commands() -> list[str]:
    """`script.py --flags` of every example."""
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())["spec"]["entrypoint"]
    texts = [(CLUSTER / name).read_text().replace("\\\n", " ") for name in ("README.md", "slurm.sh")]
    found = [m for text in [job, *texts] for m in re.findall(r"(?:pipelines|tune)/\w+\.py --[^\n]*", text)]
    assert len(found) >= 8
    return found


@pytest.mark.parametrize("command", commands())
def test_examples_parse(command: str) -> None:
    script, *arguments = shlex.split(command)
    settings = SETTINGS[script]
    parsed = command_line.parse(settings, arguments)
    if isinstance(parsed, pretrain.Pretrain):
        parsed.training()
