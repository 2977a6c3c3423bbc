"""A browser that looks at one of the project's own pages."""

import re
import subprocess
from pathlib import Path

PROBE = (
    "<script>addEventListener('load', () => {const images = [...document.images];"
    "document.title = [document.documentElement.scrollWidth <= innerWidth,"
    "images.every(i => i.naturalWidth > 0), images.length].join(' ')})</script>"
)
"""The page tells by its title what a reader would see."""
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"


def seen(html: str, folder: Path) -> tuple[bool, bool, int]:
    """Whether a page fits its width, whether all its pictures are shown, and how many it has."""
    page = folder / "page.html"
    page.write_text(html.replace("</body>", PROBE + "</body>"))
    found = subprocess.run(
        ["chromium", *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search("<title>(true|false) (true|false) ([0-9]+)</title>", found.stdout)
    assert title is not None, "the page's script has run"
    return title[1] == "true", title[2] == "true", int(title[3])
