"""MLflow as `pipelines/ui.py` starts it, for the tests beside it and for the screenshots on the pages.

    uv run python tests/helpers/tracking_page.py --output output --sweep NAME --report output/runs/NAME

takes the screenshots in `.github`: trials of a sweep in MLflow, a report. `helpers.browser` says what it needs.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.browser import SHOW_CHILDREN, browser
from helpers.ports import free_ports
from pipelines.command import STOPPED

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT, TABLE, LONG, COLOURS = 1200, 760, 500, 2000, 128
"""Of a screenshot on a page, in pixels; height of that of a table and of a comparison; colours of its palette."""


@contextmanager
def printed_by_ui(output: Path, *runs: str) -> Iterator[str]:
    """The page that `pipelines/ui.py` prints of the runs in a folder, for as long as the block lasts. SIGTERM ends it,
    with the server that it has started."""
    command = [sys.executable, "pipelines/ui.py", *runs, "--output", str(output), "--port", str(free_ports(1)[0])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            page = next(line.strip() for line in process.stdout if line.startswith("http"))
            server = psutil.Process(process.pid).children(recursive=True)
            yield page
        finally:
            process.terminate()
    assert process.returncode == STOPPED and not any(child.is_running() for child in server)


def main(output: Path, sweep: str, report: Path, folder: Path = ROOT / ".github") -> None:
    """Take the screenshots: a sweep with its trials in MLflow, their comparison, and a report."""
    from mlflow import MlflowClient

    from llip.runs.notebook import comparison_page
    from llip.runs.tracking import run_id_of

    client, parent = MlflowClient(f"sqlite:///{output.resolve()}/mlflow.db"), run_id_of(str(output / "sweeps" / sweep))
    experiment = client.get_run(parent).info.experiment_id
    trials = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    names = [sweep, *(trial.info.run_name for trial in trials)]
    with browser() as chromium, printed_by_ui(output) as page:
        chromium.read(page, until=names, click=SHOW_CHILDREN, screenshot=folder / "sweep.png", screen=(WIDTH, TABLE))
        compared = comparison_page(page.partition("/#")[0], [experiment], [trial.info.run_id for trial in trials])
        chromium.read(compared, until=[*names[1:], "Metrics"], screenshot=folder / "mlflow.png", screen=(WIDTH, LONG))
        chromium.look(report / "report.html", (WIDTH, HEIGHT), screenshot=folder / "report.png")
    for name, height in (("sweep.png", TABLE), ("mlflow.png", LONG), ("report.png", HEIGHT)):
        with Image.open(folder / name) as image:
            shown = image.convert("RGB").crop((0, 0, WIDTH, height))
        shown.quantize(COLOURS).save(folder / name, optimize=True)
        print(folder / name)


if __name__ == "__main__":
    tyro.cli(main)
