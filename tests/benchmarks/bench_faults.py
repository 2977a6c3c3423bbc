"""The faults that a training run survives, with the losses and samples of an undisturbed run beside each.

    uv run tests/benchmarks/bench_faults.py

Every line is what a test found: those that note what a run survived are run, one after the other. Takes 25 minutes;
with words behind the command, only those tests whose names hold one of them.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
FILES = (
    "pipelines/test_pretrain_faults.py",
    "pipelines/test_worker_faults.py",
    "training/test_interruptions.py",
    "training/test_s3_faults.py",
    "cluster/test_job_submission.py",
    "cluster/test_slurm.py",
)


class Table:
    """Plugin of pytest: picks the tests that note what a run survived, and keeps what they note."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, ...]] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        words = sys.argv[1:] or [""]
        items[:] = [
            item
            for item in items
            if "record_property" in getattr(item, "fixturenames", ()) and any(word in item.name for word in words)
        ]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            noted: list[tuple[str, Any]] = report.user_properties
            self.lines += [tuple(value) for name, value in noted if name == "survived"]
        if report.failed:
            self.lines.append((report.nodeid, "FAILED", "", "", ""))


def main() -> int:
    table = Table()
    options = ["-q", "--no-header", "--disable-warnings", "-o", "addopts=", "--timeout", "1200"]
    code = pytest.main([*options, *(str(TESTS / file) for file in FILES)], plugins=[table])
    head = ("fault", "how the run ended", "losses equal", "samples", "time other than training")
    for line in [head, ("---",) * len(head), *table.lines]:
        print("| " + " | ".join(line) + " |")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
