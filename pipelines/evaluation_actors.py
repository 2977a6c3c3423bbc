"""Jobs on the images of evaluation sets, on Ray Data actors that each hold the model.

One row travels for each batch: the encoded images on the way there, small arrays on the way back.
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import Arrays, ImageTask, decoded, join, model_input
from llip.progress import bar as progress_bar


@dataclass(frozen=True, kw_only=True)
class OnActors:
    """The runner that spreads batches over up to `workers` actors; the same batches as those of one process."""

    model: ContrastiveModel
    workers: int
    batch_size: int = 64
    gpu: bool = False
    """Every actor takes a GPU of its own."""

    def __call__(self, tasks: Sequence[ImageTask]) -> Iterator[Arrays]:
        import ray

        shared = {"model": ray.put(self.model), "jobs": ray.put([task.job for task in tasks]), "gpu": self.gpu}
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False  # they count blocks; ours counts images
        batches = list(_batches(tasks, self.batch_size))
        parts: list[dict[int, Arrays]] = [{} for _ in tasks]
        wanted = [-(-task.rows.num_rows // self.batch_size) for task in tasks]
        following = 0
        with (
            ray.data.DataContext.current(context),
            progress_bar(total=sum(t.rows.num_rows for t in tasks), desc="evaluate", unit="image") as bar,
        ):
            results = ray.data.from_items(batches, override_num_blocks=len(batches)).map_batches(
                Worker,
                batch_size=1,
                fn_constructor_kwargs=shared,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self.workers),
                num_gpus=1 if self.gpu else None,
            )
            for row in results.iter_rows():
                if row["error"]:
                    raise ValueError(row["error"])
                part = _from_bytes(row["arrays"])
                parts[row["task"]][row["first_row"]] = part
                bar.update(len(next(iter(part.values()))))
                while following < len(tasks) and len(parts[following]) == wanted[following]:
                    yield join([part for _, part in sorted(parts[following].items())])
                    parts[following].clear()
                    following += 1


def _batches(tasks: Sequence[ImageTask], batch_size: int) -> Iterator[dict[str, Any]]:
    for index, task in enumerate(tasks):
        for start in range(0, task.rows.num_rows, batch_size):
            rows = _to_ipc(task.rows.slice(start, batch_size))
            yield {"task": index, "name": task.name, "first_row": start, "rows": rows}


class Worker:
    """One actor: the model on its device, and the jobs of all tasks."""

    def __init__(self, model: Any, jobs: Any, gpu: bool) -> None:
        import ray

        self.model = ray.get(model).eval().to("cuda" if gpu else "cpu")
        self.jobs = ray.get(jobs)
        self.pool = ThreadPoolExecutor(4)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Takes and gives one row. An image that cannot be read is handed over as a message: no remote traceback."""
        task, first_row = int(batch["task"][0]), int(batch["first_row"][0])
        rows = pa.ipc.open_stream(batch["rows"][0]).read_all()
        try:
            parts = [
                self.jobs[task](self.model, model_input(self.model, pixels), part)
                for part, pixels in decoded(
                    str(batch["name"][0]),
                    rows,
                    rows.num_rows,
                    self.model.config,
                    self.pool,
                    first_row,
                )
            ]
        except ValueError as error:
            return _row(task, first_row, b"", str(error))
        return _row(task, first_row, _to_bytes(join(parts)), "")


def _row(task: int, first_row: int, arrays: bytes, error: str) -> dict[str, Any]:
    return {"task": [task], "first_row": [first_row], "arrays": np.array([arrays], dtype=object), "error": [error]}


def _to_ipc(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _to_bytes(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _from_bytes(content: bytes) -> Arrays:
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)
