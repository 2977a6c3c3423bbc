"""A browser that looks at one of the project's own pages."""

import html
import re
import subprocess
from pathlib import Path

FRAME = """<!doctype html><title></title>
<iframe id="seen" style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<script>addEventListener('load', () => {{
  const page = seen.contentDocument, images = [...page.images]
  document.title = [page.documentElement.scrollWidth <= seen.contentWindow.innerWidth,
    images.every(i => i.naturalWidth > 0), images.length].join(' ')
}})</script>"""
"""The frame tells by its title what a reader would see; a window has a least width."""
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
PHONE, DESKTOP = 390, 1280


def seen(text: str, folder: Path, width: int = DESKTOP, picture: Path | None = None) -> tuple[bool, bool, int]:
    """Whether a page fits a width in pixels, whether all its images are shown, and how many it has.

    `image` gets what is seen, as PNG.
    """
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width, page=html.escape(text)))
    command = ["chromium", *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", f"--window-size={DESKTOP + 20},950"]
    found = subprocess.run(
        [*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    if picture:
        subprocess.run([*command, f"--screenshot={picture}", frame.as_uri()], capture_output=True, check=True)
    title = re.search("<title>(true|false) (true|false) ([0-9]+)</title>", found.stdout)
    assert title is not None, "the page's script has run"
    return title[1] == "true", title[2] == "true", int(title[3])
