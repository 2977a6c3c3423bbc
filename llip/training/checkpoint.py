"""Checkpoints of a run: folders of safetensors and JSON that are complete or not there, on a disk or in a bucket.

    checkpoints/latest.json                  names the newest complete one; written last
    checkpoints/step-00000800/model.safetensors, model.json     the model alone (`llip.load_model` reads it)
                              optimizer.safetensors             AdamW's moments and step counts, by parameter name
                              state.json                        step, configuration, size and SHA-256 of the others

If the weights are averaged, the model is the average, and the optimizer's file also holds the weights themselves.
Several ranks write a part of both files each (see `llip.interop.sharded_safetensors`), the same ones under
DistributedDataParallel and FSDP2, and any number of ranks reads them. Nothing else is needed to continue to the bit:
the schedule, the order of samples and the randomness of a step are functions of (seed, step).
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llip import interop, storage
from llip.config import TrainingConfig
from llip.fields import to_dict
from llip.interop import sharded_safetensors
from llip.runs.run_folder import POINTER, STATE, git_revision
from llip.training.optimizer import MovingAverage
from llip.training.parallel import World, part_of, rows_of, set_rows, single_process

logger = logging.getLogger(__name__)

MODEL, OPTIMIZER = "model", "optimizer"
"""Kinds of files that come in parts."""

Fingerprints = dict[str, dict[str, Any]]
"""Size and SHA-256 of files, by name."""


class TrainingState:
    """The state of a run: the model, AdamW's state, and the average of the weights, if there is one."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage | None = None
    ) -> None:
        self.model, self.optimizer, self.average = model, optimizer, average

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """By kind of file and name; what a shard of them is on this rank, where they are sharded."""
        parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        training = {
            f"{key}/{name}": tensor
            for name, p in self.model.named_parameters()
            for key, tensor in self.optimizer.state[p].items()
        }
        if self.average is None:
            return {MODEL: parameters, OPTIMIZER: training}
        weights = {f"parameter/{name}": tensor for name, tensor in parameters.items()}
        return {MODEL: self.average.tensors, OPTIMIZER: training | weights}

    def restore(self, folder: str, world: World) -> int:
        """Load a checkpoint that `latest` found. Returns the number of updates behind it.

        Replicated tensors are read once, a share by each rank, which hands it on. Each rank reads its part of sharded
        ones.
        """
        for parameter in self.model.parameters():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        with torch.no_grad():
            for kind, tensors in self.tensors().items():
                views = {name: _view(t, world) for name, t in tensors.items()}
                single = world.group is None or any(isinstance(t, DTensor) for t in tensors.values())
                with contextlib.nullcontext(_read) if single else _reading_together(folder, kind, world) as read:
                    found = sharded_safetensors.read_into(folder, kind, views, read)
                for name, tensor in tensors.items():
                    set_rows(tensor, views[name].rows)
                if kind == OPTIMIZER:
                    self._forget_all_but(found)
        return step_of(folder)

    def _forget_all_but(self, found: set[str]) -> None:
        """Leave out what has no state: parameters that were never updated."""
        for name, parameter in self.model.named_parameters():
            if f"step/{name}" not in found:
                del self.optimizer.state[parameter]


def snapshot(state: TrainingState, world: World) -> dict[str, dict[str, Tensor]]:
    """The rows of every tensor that this rank writes, by kind and name, copied to main memory."""
    index, count, writes = part_of(state.model.parameters(), world)
    if not writes:
        return {}
    return {
        kind: {
            name: rows.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
            if (rows := _own_rows(tensor, index, count)).numel()
        }
        for kind, tensors in state.tensors().items()
    }


def write(folder: str, content: dict[str, dict[str, Tensor]], model: nn.Module, world: World) -> Fingerprints:
    """Write this rank's part of a checkpoint. Returns what rank 0 has to know to `commit` it."""
    prints = {}
    index, count, _ = part_of(model.parameters(), world)
    for kind, tensors in content.items():
        name = sharded_safetensors.name_of(kind, index, count)
        prints[name] = _write(storage.join(folder, name), sharded_safetensors.serialise(tensors))
    if world.rank == 0:
        prints[interop.CONFIG] = _write_json(storage.join(folder, interop.CONFIG), to_dict(model.config))
    return prints


def commit(run_folder: str, step: int, files: Fingerprints, config: TrainingConfig) -> None:
    """Make a checkpoint whose parts are written the newest one, then remove those that the policy does not keep."""
    state = {
        "step": step,
        "samples": step * config.data.batch_size,
        "config": to_dict(config),
        "git_revision": git_revision(),
        "torch": torch.__version__,
        "files": files,
    }
    folder = folder_of(run_folder, step)
    pointer = {"step": step, "folder": folder.rsplit("/", 1)[1]}
    _write_json(storage.join(folder, STATE), state)
    _write_json(storage.join(run_folder, POINTER), pointer)
    for old in _folders(run_folder)[config.keep_checkpoints :]:
        storage.remove(old)


def save(run_folder: str, step: int, state: TrainingState, config: TrainingConfig) -> str:
    """Write a checkpoint of one process and wait for it. Returns its URI."""
    folder, world = folder_of(run_folder, step), single_process()
    files = write(folder, snapshot(state, world), state.model, world)
    commit(run_folder, step, files, config)
    return folder


class AsyncCheckpointer:
    """Writes the checkpoints of a run beside its training, one at a time. Every rank makes the same calls.

    A rank copies its part, a thread writes it, and once all ranks have written theirs, rank 0's thread commits the
    checkpoint. One that cannot be written costs a warning, since the one before it is intact; a failed final checkpoint
    raises.
    """

    def __init__(
        self,
        run_folder: str,
        state: TrainingState,
        config: TrainingConfig,
        world: World,
        *,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """`before` is called by the thread before it writes: what a checkpoint relies on is written earlier."""
        self._folder, self._state, self._config, self._world = run_folder, state, config, world
        self._before = before
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[Fingerprints] | None = None
        self._committed: Future[str] | None = None
        self._step = 0

    def __enter__(self) -> "AsyncCheckpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    @property
    def under_way(self) -> bool:
        """Whether a checkpoint was begun whose parts are not all known to be written: the same on every rank."""
        return self._written is not None

    @property
    def writing(self) -> bool:
        """Whether this rank's part of it is not written yet."""
        return self._written is not None and not self._written.done()

    def begin(self, step: int) -> None:
        """Copy the state after `step` updates and begin to write it; wait first for the checkpoint before."""
        self.finish()
        self._step = step
        content = snapshot(self._state, self._world)
        self._written = self._thread.submit(self._write, folder_of(self._folder, step), content)

    def finish(self, *, required: bool = False) -> None:
        """Wait for the parts of all ranks, and begin to make the checkpoint the newest one.

        With `required` this too is waited for, and its failure raises OSError on every rank.
        """
        if self._written is not None:
            error = self._written.exception()
            parts = self._world.gather(f"rank {self._world.rank}: {error}" if error else self._written.result())
            self._written = None
            if self._world.rank == 0:
                self._committed = self._thread.submit(self._commit, self._step, parts)
        if required:
            failure = self._world.gather(self._committed.result() if self._committed else "")[0]
            if failure:
                raise OSError(failure)

    def _write(self, folder: str, content: dict[str, dict[str, Tensor]]) -> Fingerprints:
        self._before()
        return write(folder, content, self._state.model, self._world)

    def _commit(self, step: int, parts: list[Fingerprints | str]) -> str:
        """Returns why the checkpoint was not written, or nothing."""
        failure = next((part for part in parts if isinstance(part, str)), "")
        if not failure:
            try:
                commit(
                    self._folder,
                    step,
                    {n: f for part in parts if isinstance(part, dict) for n, f in part.items()},
                    self._config,
                )
                return ""
            except Exception as error:  # whatever a file system raises
                failure = str(error)
        with contextlib.suppress(Exception):  # where it could not be written, it may not be removed either
            storage.remove(folder_of(self._folder, step))
        failure = f"the checkpoint of step {step} was not written ({failure})"
        logger.warning("%s; the one before it is intact", failure)
        return failure


def latest(run_folder: str, world: World | None = None) -> str | None:
    """URI of the newest checkpoint whose files are as they were written, or None. Warns of those passed over.

    The ranks of `world` share the reading, and all of them get the answer.
    """
    world = world or single_process()
    for folder in world.gather(_folders(run_folder))[0]:  # a file system may show ranks different listings
        faults = [fault for fault in world.gather(_fault(folder, world)) if fault]
        if not faults:
            return folder
        if world.rank == 0:
            logger.warning("checkpoint %s is not usable (%s); trying the one before it", folder, faults[0])
    return None


def remove_after(run_folder: str, step: int) -> None:
    """Remove what is left of checkpoints of more than `step` updates, none of which `latest` found usable."""
    for folder in _folders(run_folder):
        if step_of(folder) > step:
            storage.remove(folder)


def folder_of(run_folder: str, step: int) -> str:
    return storage.join(run_folder, "checkpoints", f"step-{step:08d}")


def step_of(folder: str) -> int:
    """Number of updates behind a checkpoint folder."""
    return int(folder.rsplit("step-", 1)[1])


def model_digest(folder: str) -> str:
    """SHA-256 of the model of a checkpoint, from what it notes of its files."""
    files = storage.read_json(storage.join(folder, STATE))["files"]
    sums = [files[name]["sha256"] for name in sharded_safetensors.files(files, MODEL)]
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _own_rows(tensor: Tensor, index: int, count: int) -> Tensor:
    if isinstance(tensor, DTensor):
        return rows_of(tensor)
    if tensor.ndim == 0:
        return tensor if index == 0 else tensor.new_empty(0)
    return tensor[sharded_safetensors.rows_of(len(tensor), index, count)]


def _view(tensor: Tensor, world: World) -> sharded_safetensors.ShardView:
    index, count, _ = part_of([tensor], world)
    first = sharded_safetensors.rows_of(len(tensor), index, count).start if isinstance(tensor, DTensor) else 0
    return sharded_safetensors.ShardView(rows_of(tensor), first, len(tensor) if tensor.ndim else 1)


def _folders(run_folder: str) -> list[str]:
    """Checkpoint folders, newest first, complete or not."""
    found = storage.listing(storage.join(run_folder, "checkpoints"))
    return sorted({m[1] for uri in found if (m := re.match(r"(.*/step-\d{8})/", uri))}, reverse=True)


def _read(uri: str) -> bytes:
    return storage.patient(lambda: storage.read_bytes(uri), uri)


@contextlib.contextmanager
def _reading_together(folder: str, kind: str, world: World) -> Iterator[Callable[[str], bytes]]:
    """A function that reads the files of a kind. All ranks have to read them in the same order.

    Each file comes from the storage once, to one rank, which hands it on. Ranks begin to read theirs at once.
    """
    parts = sharded_safetensors.uris(folder, kind)
    with ThreadPoolExecutor(1, thread_name_prefix="restore") as pool:
        own = {uri: pool.submit(_read, uri) for uri in parts[world.rank :: world.size]}

        def read(uri: str) -> bytes:
            content = own.pop(uri).result() if uri in own else None
            return world.hand_on(content, parts.index(uri) % world.size)

        yield read


def _fault(folder: str, world: World) -> str | None:
    """The fault found in this rank's share of the files of a checkpoint, or None."""
    if not storage.exists(storage.join(folder, STATE)):
        return f"{STATE} is missing: saving it was interrupted"
    try:
        files: Fingerprints = storage.read_json(storage.join(folder, STATE))["files"]
    except (ValueError, KeyError):
        return f"{STATE} cannot be read"
    for name in sorted(files)[world.rank :: world.size]:
        uri = storage.join(folder, name)
        if not storage.exists(uri):
            return f"{name} is missing"
        if _fingerprint(uri) != files[name]:
            return f"{name} is not what was written"
    return None


def _write(uri: str, pieces: Sequence[memoryview]) -> dict[str, Any]:
    def write() -> dict[str, Any]:
        digest = hashlib.sha256()
        storage.write_pieces(uri, pieces, digest.update)
        return {"bytes": sum(map(len, pieces)), "sha256": digest.hexdigest()}

    return storage.patient(write, uri)


def _fingerprint(uri: str) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with storage.opened(uri) as file:
        while block := file.read(storage.BLOCK):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _write_json(uri: str, value: Any) -> dict[str, Any]:
    return _write(uri, [memoryview(storage.to_json(value))])
