"""Data jobs of tests: done in the test's process, with figures that nobody looks at left out."""

from typing import Any

import pytest
from helpers.in_process import without_ray


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
