"""Which version of this program runs."""

import os
import subprocess
from functools import cache
from pathlib import Path


@cache
def git_revision() -> str:
    """Commit of this checkout, `+changes` where files differ from it; elsewhere GIT_REVISION (an image sets it)."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_REVISION", "unknown")
