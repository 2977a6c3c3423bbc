"""What every entry point shares: the command line, the exit code of bad input, and a Ray session."""

import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from llip.training.stopping import StoppedError

Settings = TypeVar("Settings")


def run(settings: type[Settings], main: Callable[[Settings], object], description: str) -> None:
    """Parse the command line into `settings` and call `main`.

    What the user can mend ends with exit code 2 and one line that says how; a run that SIGTERM stopped, with 143.
    """
    try:
        main(tyro.cli(settings, description=description))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


def start_ray() -> None:
    """Join the cluster that this job was submitted to, or start one on this machine for as long as the program runs."""
    os.environ.setdefault(
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0"
    )  # else every worker of `uv run` resolves the environment again
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get(
        "RAY_ADDRESS", "local"
    )  # a bare ray.init() would try a stale cluster of another user of this machine
    ray.init(address=address, log_to_driver=True)
