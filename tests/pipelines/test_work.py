"""Units of work: order, resuming, and mistakes that tasks find."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.stages.work import Stage, Unit, run, tallies

pytestmark = pytest.mark.usefixtures("ray_session")


def doubling() -> Callable[..., dict[str, Any]]:
    """A unit's work; a local function travels to the workers by value, since they cannot import this file."""

    def double(unit: int, *, folder: str, bad: int | None) -> dict[str, Any]:
        if unit == bad:
            raise ValueError(f"unit {unit} is bad")
        with Path(folder, f"calls-{unit}").open("a") as file:
            file.write("x")
        return {"double": 2 * unit}

    return double


def calls(folder: Path) -> dict[int, int]:
    return {int(p.name.removeprefix("calls-")): len(p.read_text()) for p in folder.glob("calls-*")}


def test_results_come_in_order_and_finished_units_are_not_done_again(tmp_path: Path) -> None:
    stage = Stage(name="double", markers=str(tmp_path / "markers"))
    units, sizes = list(range(9)), [1] * 9
    with pytest.raises(ValueError, match=r"^unit 8 is bad$"):
        run(stage, units, doubling(), sizes=sizes, shared={"folder": str(tmp_path), "bad": 8})
    done = {int(p.stem) for p in (tmp_path / "markers/double").iterdir()}
    assert done and 8 not in done
    results = run(stage, units, doubling(), sizes=sizes, shared={"folder": str(tmp_path), "bad": None})
    assert results == [{"double": 2 * u} for u in units]
    assert calls(tmp_path) == dict.fromkeys(units, 1)


def test_shared_references_arrive_as_values(tmp_path: Path) -> None:
    import ray

    stage = Stage(name="double", markers=str(tmp_path / "markers"))
    shared = {"folder": ray.put(str(tmp_path)), "bad": None}
    assert run(stage, [4], doubling(), sizes=[1], shared=shared) == [{"double": 8}]


def test_totals_are_counts_over_all_units() -> None:
    drawn = [np.random.default_rng(i).integers(0, 50, 7 * i).astype(np.int32) for i in range(20)]  # the first is empty

    def entries_of(unit: Unit) -> np.ndarray:
        return drawn[unit.index]

    units = [Unit(index=i, file="", name="", size=1) for i in range(20)]
    expected = np.bincount(np.concatenate(drawn), minlength=60)
    assert tallies.total(units, entries_of, 60).tolist() == expected.tolist()
