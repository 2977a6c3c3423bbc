"""One headless Chromium that looks at pages: the project's own, as files, and MLflow's.

Needs `chromium` and `chromedriver` (Debian: chromium, chromium-driver).
"""

import base64
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PHONE, DESKTOP = (390, 844), (1280, 900)
"""Width and height of a screen in CSS pixels."""
CLOSE_ASSISTANT = 'button[data-component-id="mlflow.assistant.chat_panel.close"]'
"""MLflow opens a chat beside every page."""
SHOW_CHILDREN = 'button[data-component-id*="runnamecellrenderer"]'
"""Beside the name of a run with children, in the table of runs."""

LOOK = """
const root = document.scrollingElement, images = [...document.images]
const channels = colour => colour.match(/[\\d.]+/g).map(Number)
const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0)
const ground = element => {
  for (; element; element = element.parentElement) {
    const found = channels(getComputedStyle(element).backgroundColor)
    if (found.length < 4 || found[3] > 0) return found
  }
  return [255, 255, 255]
}
const contrast = element => {
  const [a, b] = [channels(getComputedStyle(element).color), ground(element)].map(light)
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
}
const worded = [...document.body.querySelectorAll('*')].filter(element => !element.closest('svg') &&
  [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()))
const faint = worded.filter(element => contrast(element) < 4.5).map(element => element.outerHTML.slice(0, 80))
const overlaps = [], figures = [...document.querySelectorAll('svg')]
for (const svg of figures) {
  const labels = [...svg.querySelectorAll('g[id^="text_"]')].map(g => [g, g.getBoundingClientRect()])
  labels.forEach(([one, a], i) => labels.slice(i + 1).forEach(([other, b]) => {
    const width = Math.min(a.right, b.right) - Math.max(a.left, b.left)
    const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)
    if (width > 1 && height > 1) overlaps.push(`figure ${figures.indexOf(svg)}: ${one.id}, ${other.id}`)
  }))
}
const shown = document.querySelectorAll(`${arguments[0] || 'body'}`)[0]
return {width: root.scrollWidth, height: root.scrollHeight, text: document.body.innerText,
  images: images.length, broken: images.filter(i => i.naturalWidth === 0).length, faint, overlaps,
  ground: light(ground(document.body)), headline: shown ? shown.getBoundingClientRect().bottom : -1}
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a reader sees of a page."""

    width: int
    """What the page takes, in CSS pixels; more than the screen has makes it scroll sideways."""
    height: int
    text: str
    images: int
    broken: int
    """Images of which nothing is shown."""
    faint: list[str]
    """Elements whose text stands out from its ground by less than 4.5 to 1 (WCAG 2.1, 1.4.3)."""
    overlaps: list[str]
    """Labels of figures that cover each other."""
    ground: float
    """Luminance behind the text, 0: black."""
    headline: float
    """Where the headline ends, from the top of the page."""
    requests: list[str]
    """What the page has asked a network for."""


class Browser:
    """A headless Chromium. `browser()` starts and ends it."""

    def __init__(self, driver: "webdriver.Chrome") -> None:
        self._driver = driver

    def look(
        self,
        page: Path,
        screen: tuple[int, int] = DESKTOP,
        *,
        dark: bool = False,
        headline: str = "body",
        screenshot: Path | None = None,
    ) -> Seen:
        """Open a page of a file on a screen. `headline` is the selector of what has to be seen first, `screenshot` gets
        the whole page as PNG."""
        self._screen(screen, "dark" if dark else "light")
        self._driver.get_log("performance")
        self._driver.get(page.as_uri())
        found = self._driver.execute_script(LOOK, headline)
        messages = [json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        if screenshot:
            self._screenshot(screenshot, screen[0], found["height"])
        return Seen(**found, requests=[url for url in asked if not url.startswith(("data:", page.as_uri()))])

    def read(
        self,
        url: str,
        *,
        until: Sequence[str],
        screenshot: Path,
        click: str | None = None,
        screen: tuple[int, int] = (1200, 2200),
    ) -> str:
        """Open a page of a server, wait until it shows the given texts, take its screenshot, and return its text.

        `click` is the selector of what is clicked as soon as it is there.
        """
        self._screen(screen, "light")
        self._driver.get("about:blank")
        self._driver.get(url)

        wait = WebDriverWait(self._driver, 90)

        def text() -> str:
            return str(self._driver.find_element(By.TAG_NAME, "body").get_attribute("innerText"))

        if click:
            wait.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, click))[0].click()
        wait.until(lambda _: all(t in text() for t in until), f"no {until} in {url}")
        for close in self._driver.find_elements(By.CSS_SELECTOR, CLOSE_ASSISTANT):
            close.click()
        time.sleep(2)  # plots are drawn after the texts
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        screenshot.write_bytes(self._driver.get_screenshot_as_png())
        return text()

    def _screen(self, screen: tuple[int, int], scheme: str) -> None:
        metrics = {"width": screen[0], "height": screen[1], "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def _screenshot(self, file: Path, width: int, height: int) -> None:
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        found: dict[str, Any] = self._driver.execute_cdp_cmd("Page.captureScreenshot", options)
        file.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium for as long as the block lasts."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            yield Browser(driver)
        finally:
            driver.quit()


needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
