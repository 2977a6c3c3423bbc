"""Progress of work: a bar on a terminal, and a line of the log every so often where nobody watches it move."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}{postfix}, {remaining} left"


class LogLines:
    """A file for tqdm whose lines go to the log, without what moves a cursor."""

    def write(self, text: str) -> None:
        if line := text.strip():
            logger.info("%s", line)

    def flush(self) -> None:
        """There is nothing to flush."""


def bar(*arguments: Any, **settings: Any) -> Any:
    """`tqdm` with the same arguments, drawn on a terminal, else written to the log."""
    if sys.stderr.isatty():
        return tqdm(*arguments, file=sys.stderr, **settings)
    settings = {"mininterval": SECONDS_BETWEEN_LINES, "delay": 1e-3, "bar_format": LINE} | settings
    unit = str(settings.pop("unit", "")).strip()
    return tqdm(*arguments, file=LogLines(), unit=unit, **settings)


def training_line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """Line about a logged step of training, without the time left."""
    parts = [
        f"step {step:,} of {steps:,}",
        f"loss {values['loss']:.4g}",
        f"learning rate {values['learning_rate']:.3g}",
    ]
    parts += [f"{values['samples_per_second']:,.0f} images/s", f"data wait {values['data_wait_share']:.0%}"]
    return ", ".join(parts)
