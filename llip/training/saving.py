"""Saving beside training: a rank copies its part, a thread writes it, and the ranks agree when all have."""

import contextlib
import logging
from concurrent.futures import Future, ThreadPoolExecutor

from llip import storage
from llip.config import TrainingConfig
from llip.training import checkpoint
from llip.training.checkpoint import Fingerprints, TrainingState
from llip.training.parallel import World

logger = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run, one at a time. Every rank makes the same calls.

    A checkpoint that cannot be written costs a warning, since the one before it is intact; the last one has to be.
    """

    def __init__(self, run_folder: str, state: TrainingState, config: TrainingConfig, world: World) -> None:
        self._folder, self._state, self._config, self._world = run_folder, state, config, world
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[Fingerprints] | None = None
        self._step = 0

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    @property
    def under_way(self) -> bool:
        """Whether a checkpoint was begun that is not finished: the same on every rank."""
        return self._written is not None

    @property
    def writing(self) -> bool:
        """Whether this rank's part of it is not written yet."""
        return self._written is not None and not self._written.done()

    def begin(self, step: int) -> None:
        """Copy the state after `step` updates and begin to write it; wait first for the checkpoint before."""
        self.finish()
        self._step = step
        content = checkpoint.snapshot(self._state, self._world)
        folder = checkpoint.folder_of(self._folder, step)
        self._written = self._thread.submit(checkpoint.write, folder, content, self._state.model, self._world)

    def finish(self, *, required: bool = False) -> None:
        """Wait for the parts of all ranks, then make the checkpoint the newest one.

        Raises OSError where that fails and it is `required`.
        """
        if self._written is None:
            return
        error = self._written.exception()
        parts = self._world.gather(f"rank {self._world.rank}: {error}" if error else self._written.result())
        self._written = None
        failures = [part for part in parts if isinstance(part, str)]
        if not failures and self._world.rank == 0:
            failures = self._commit({name: file for part in parts for name, file in part.items()})
        if failures and self._world.rank == 0:
            with contextlib.suppress(Exception):  # where it could not be written, it may not be removed either
                storage.remove(checkpoint.folder_of(self._folder, self._step))
        if failures and required:
            raise OSError(f"the checkpoint of step {self._step} was not written ({failures[0]})") from error
        if failures:
            logger.warning(
                "the checkpoint of step %d was not written (%s); the one before it is intact", self._step, failures[0]
            )

    def _commit(self, files: Fingerprints) -> list[str]:
        try:
            checkpoint.commit(self._folder, self._step, files, self._config)
        except Exception as error:  # whatever a file system raises
            return [str(error)]
        return []
