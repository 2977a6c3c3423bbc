"""A browser that looks at MLflow's comparison page, for the test beside it and for images.

    uv run python tests/helpers/tracking_page.py --store sqlite:///output/mlflow.db --output comparison.png

needs `chromium` and `chromedriver` (Debian: chromium, chromium-driver).
"""

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import tyro

from llip.training.notebook import comparison_page
from pipelines.ui import serving

CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

CLOSE_ASSISTANT = 'button[data-component-id="mlflow.assistant.chat_panel.close"]'
"""MLflow opens a chat beside every page."""


@contextmanager
def serve(store: str, *options: str) -> Iterator[str]:
    """URL of an MLflow server on 127.0.0.1 that shows the store, for as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log, serving(store, "127.0.0.1", port, log, *options) as (url, _):
        yield url


def look(page: str, *, until: Sequence[str], picture: Path, size: tuple[int, int] = (1200, 2200)) -> str:
    """Open a page, wait until it shows all the given texts, take its image, and return its text."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            browser.get(page)

            def text() -> str:
                return str(browser.find_element(By.TAG_NAME, "body").get_attribute("innerText"))

            WebDriverWait(browser, 90).until(lambda _: all(t in text() for t in until), f"no {until} in {page}")
            for close in browser.find_elements(By.CSS_SELECTOR, CLOSE_ASSISTANT):
                close.click()
            time.sleep(2)  # plots are drawn after the texts
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(browser.get_screenshot_as_png())
            return text()
        finally:
            browser.quit()


def main(
    store: str,
    output: Path,
    experiment: str = "llip",
    runs: Annotated[tuple[str, ...], tyro.conf.arg(help="Names of the runs; the newest three where not given.")] = (),
) -> None:
    """Take a picture of the page that compares runs."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise SystemExit(f"error: {store} has no experiment {experiment!r}")
    known = client.search_runs([found.experiment_id])
    chosen = [r for r in known if r.info.run_name in runs] if runs else known[:3]
    with serve(store) as url:
        page = comparison_page(url, [found.experiment_id], [r.info.run_id for r in chosen])
        look(page, until=[r.info.run_name for r in chosen], picture=output)
    print(output)


if __name__ == "__main__":
    tyro.cli(main)
