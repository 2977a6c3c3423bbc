"""Jobs of tests: done in the test's process, with figures that nobody looks at left out; what several of them take."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluation_job import write_checkpoint, write_sets
from helpers.in_process import without_ray

from pipelines import prepare_data
from pipelines.evaluate import Evaluate


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data jobs without Ray: a test of what a stage does pays for no worker and no task."""
    without_ray(monkeypatch)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages get empty figures: drawing them takes most of the time of a small evaluation, and half of a curation."""
    from matplotlib.figure import Figure

    save = Figure.savefig

    def skip(figure: Figure, target: Any, **options: Any) -> None:
        if options.get("format") == "svg":
            target.write("<svg></svg>")
        else:
            save(figure, target, **options)

    monkeypatch.setattr(Figure, "savefig", skip)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder and evaluation sets, to be copied."""
    folder = tmp_path_factory.mktemp("prepared")
    write_checkpoint(folder / "run", 800)
    write_sets(folder / "sets")
    return folder


@pytest.fixture
def job(prepared: Path, tmp_path: Path) -> Evaluate:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return Evaluate(checkpoint=str(tmp_path / "run"), evaluation=str(tmp_path / "sets"), batch_size=4)


@pytest.fixture(scope="session")
def shards(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of 192 images for runs that are disturbed."""
    output = str(tmp_path_factory.mktemp("faults"))
    shards = prepare_data.prepare(output, pool=None, shards=None, evaluation=None, corpus_images=192).shards
    assert isinstance(shards, str)
    return shards
