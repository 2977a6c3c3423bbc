"""The log of a command: times, levels, third parties that speak only when something is wrong."""

import logging
import os
import sys
from typing import Literal

from tqdm import tqdm

Level = Literal["debug", "info", "warning", "error"]
DEFAULT: Level = "info"
OURS = ("llip", "pipelines", "tune", "cluster")
TALKATIVE = dict.fromkeys(("ray.train", "ray.tune", "ray.data", "alembic"), logging.WARNING) | {
    "ray.tune.analysis": logging.ERROR,  # it misses the logs that are not written
}
"""Loggers of others with a level of their own."""
QUIET = {"RAY_COLOR_PREFIX": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
"""Variables that make Ray write for a file, not for a terminal, and keep Tune from logs that nobody reads."""


class _Stderr(logging.Handler):
    """Lines above the bars that are drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def configure(level: Level) -> None:
    """Log to stderr from this level on; of third parties warnings, and everything at `debug`."""
    for name, value in QUIET.items():
        if name != "RAY_COLOR_PREFIX" or not sys.stderr.isatty():
            os.environ.setdefault(name, value)
    root = logging.getLogger()
    if not any(isinstance(handler, _Stderr) for handler in root.handlers):
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    for name, least in TALKATIVE.items():
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else least)
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
