"""Row groups of shards folders, local or in an object store: read at random, or in order before they are needed."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llip import storage
from llip.data import integrity, manifest
from llip.data.order import MixedOrder, SampleOrder, Samples

_COLUMNS = ["id", "image", "captions"]
SYNTHETIC = "synthetic_captions"
"""list<string>: texts that a model wrote, drawn in place of captions as often as is asked for."""
KEEP_PROBABILITY = "keep_probability"
"""list<double>, parallel to the captions: online balancing, see `KeepProbabilities`."""
TEACHER_IMAGE, TEACHER_CAPTIONS = "teacher_image", "teacher_captions"
"""fixed_size_list<halffloat>[D], and a list of such parallel to the captions: embeddings that another model made of
them, see `llip.pairs.distillation`."""
TEACHER = "teacher"
"""Key of a manifest's summary that describes the teacher."""
_CHECKSUMS_BELOW = 1 << 30
_OPEN_FILES = 256
_THREADS = 8
"""Enough to hide an object store's latency; local reads need few of them."""


class KeepProbabilities:
    """Online balancing: probabilities that captions of a row group are kept, a list for each row, each in (0, 1].

    Captions are thinned out anew at every place of every epoch, by the probabilities that curation stored (Xu et al.,
    arXiv 2309.16671, section 3.3), where curation itself would have drawn them once and for all.

    Each place is filled by rejection sampling in its row group. The place's own row is proposed first, then rows of the
    group at random. A row is taken, with the captions that are kept, once any of its captions is. So a row comes as
    often as its probability says, beside the others of its row group, and batches stay as large. Proposals are not made
    one by one: after a first rejection the row is drawn by the probabilities of the rows, and its captions are
    independent draws of which one succeeded.
    """

    def __init__(self, lists: pa.ListArray) -> None:
        with np.errstate(divide="ignore"):
            self._miss = np.log1p(-lists.values.to_numpy())
        self._bounds = lists.offsets.to_numpy()
        self.of_row: NDArray[np.float64] = -np.expm1(np.add.reduceat(self._miss, self._bounds[:-1]))
        """Probability that any caption of a row is kept."""
        self._cumulative = np.cumsum(self.of_row)

    def row(self, proposed: int, first: float, second: float) -> int:
        """The row taken at the place of `proposed`; first, second: uniform in [0, 1)."""
        if first < self.of_row[proposed]:
            return proposed
        return int(np.searchsorted(self._cumulative, second * self._cumulative[-1], side="right"))

    def captions(self, row: int, numbers: NDArray[np.float64]) -> list[int]:
        """The captions that are kept of a row that is taken; numbers: uniform in [0, 1), one for each caption."""
        miss = self._miss[self._bounds[row] : self._bounds[row + 1]]
        keep = -np.expm1(miss)
        still = -np.expm1(np.cumsum(miss[::-1])[::-1])  # that it or a later one is kept
        kept: list[int] = []
        for i in range(len(keep)):
            if numbers[i] < (keep[i] if kept else keep[i] / still[i]):
                kept.append(i)
        return kept or [len(keep) - 1]  # rounding


@dataclass(frozen=True)
class RowGroup:
    """Rows that are read together."""

    where: str
    """File and row group, for error messages."""
    first: int
    """Number of its first row, counted through all files."""
    ids: pa.StringArray
    images: pa.BinaryArray
    captions: "Texts"
    synthetic: "Texts | None"
    """None where they are not asked for."""
    keep: KeepProbabilities | None = None
    """None where captions were balanced in curation."""
    teacher: "Embeddings | None" = None
    """None where they are not asked for."""

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, row: int) -> memoryview:
        """An encoded image, not copied."""
        return memoryview(self.images[row].as_buffer())


class Texts:
    """Lists of texts, one for each row; a null is an empty list."""

    def __init__(self, lists: pa.ListArray) -> None:
        self._values, self._bounds = lists.values, lists.offsets.to_pylist()

    def count(self, row: int) -> int:
        return int(self._bounds[row + 1] - self._bounds[row])

    def text(self, row: int, index: int) -> str:
        return str(self._values[self._bounds[row] + index])


class Embeddings:
    """A teacher's embeddings of the images and captions of rows."""

    def __init__(self, images: pa.FixedSizeListArray, captions: pa.ListArray) -> None:
        self._image_ND, self._caption_ND = _matrix(images), _matrix(captions.values)
        self._bounds = captions.offsets.to_numpy()

    def image(self, row: int) -> NDArray[np.float16]:
        """The embedding of a row's image, [D]."""
        return self._image_ND[row]

    def caption(self, row: int, index: int) -> NDArray[np.float16]:
        """The embedding of one of a row's captions, [D]."""
        return self._caption_ND[self._bounds[row] + index]


def _matrix(vectors: pa.FixedSizeListArray) -> NDArray[np.float16]:
    return vectors.values.to_numpy().reshape(-1, vectors.type.list_size)[vectors.offset :][: len(vectors)]


class Shards:
    """A finished shards folder.

    Raises ValueError naming the file where one is missing, has another size than the manifest says, or is damaged.
    Checksums of whole files are compared at once where the folder is below 1 GiB; larger folders rely on those of the
    Parquet pages, which every read compares, and on `integrity.check_checksums`, which reads everything.
    """

    def __init__(self, folder: str, *, synthetic: bool = False, taught: bool = False) -> None:
        """`synthetic`, `taught`: rows are read with their synthetic captions, with a teacher's embeddings."""
        self.folder = folder
        self.manifest = manifest.read(folder, "shards")
        self.teacher: dict[str, Any] | None = self.manifest.summary.get(TEACHER) if taught else None
        """Description of the teacher; None where it is not asked for."""
        if taught and self.teacher is None:
            raise ValueError(
                f"{folder} has no embeddings of a teacher; pipelines/embed.py writes shards that have them"
            )
        optional = {
            SYNTHETIC: synthetic,
            KEEP_PROBABILITY: self.manifest.summary.get("online", False),
            TEACHER_IMAGE: taught,
            TEACHER_CAPTIONS: taught,
        }
        self._columns = [*_COLUMNS, *(name for name, wanted in optional.items() if wanted)]
        size = self.manifest.row_group_size
        if not size:
            raise ValueError(f"the manifest of {folder} has no row_group_size; shards are written with one")
        integrity.check_sizes(folder, self.manifest)
        if self.manifest.bytes < _CHECKSUMS_BELOW:
            integrity.check_checksums(folder, self.manifest)
        rows = np.array([f.rows for f in self.manifest.files], dtype=np.int64)
        groups = -(-rows // size)
        self._file = np.repeat(np.arange(len(rows)), groups)
        self._first_group = np.cumsum(groups) - groups
        self.group_rows = np.full(len(self._file), size, dtype=np.int64)
        """Rows of every row group, through all files."""
        last = (self._first_group + groups - 1)[rows > 0]
        self.group_rows[last] = (rows - (groups - 1) * size)[rows > 0]
        self._first_row = np.cumsum(self.group_rows) - self.group_rows
        self._open = lru_cache(maxsize=_OPEN_FILES)(self._open_file)

    def _open_file(self, index: int) -> tuple[pq.ParquetFile, Lock]:
        entry = self.manifest.files[index]
        uri = storage.join(self.folder, entry.name)
        fs, path = storage.filesystem(uri)
        # Arrow fetches the ranges it needs; the file system's own read-ahead would fetch more.
        source = pa.memory_map(path) if storage.is_local(uri) else fs.open(path, "rb", cache_type="none")
        file = pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)
        if missing := [c for c in self._columns if c not in file.schema_arrow.names]:
            raise ValueError(f"{uri} has no column {missing[0]!r}; it has {', '.join(file.schema_arrow.names)}")
        expected = self.group_rows[self._file == index].tolist()
        found = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        if found != expected:
            raise ValueError(f"{uri} has row groups of {found} rows where the manifest says {expected}")
        return file, Lock()

    def read(self, group: int) -> RowGroup:
        """Read one row group. Raises ValueError where its file is damaged, and OSError where the storage fails for
        longer than `storage.patient` waits."""
        index = int(self._file[group])
        inside = group - int(self._first_group[index])
        where = f"{storage.join(self.folder, self.manifest.files[index].name)}, row group {inside}"
        table = storage.patient(lambda: self._table(index, inside, where), where)
        # A copy: buffers that Parquet's reader grew are larger than what they hold, and a loader holds many row groups.
        found = {name: table.column(name).combine_chunks() for name in self._columns}
        return RowGroup(
            where,
            int(self._first_row[group]),
            found["id"],
            found["image"],
            Texts(found["captions"]),
            Texts(found[SYNTHETIC]) if SYNTHETIC in found else None,
            KeepProbabilities(found[KEEP_PROBABILITY]) if KEEP_PROBABILITY in found else None,
            Embeddings(found[TEACHER_IMAGE], found[TEACHER_CAPTIONS]) if TEACHER_IMAGE in found else None,
        )

    def _table(self, index: int, inside: int, where: str) -> pa.Table:
        """The columns of a row group; what is not readable is read once more from a file that is opened again."""
        for again in (True, False):
            try:
                file, lock = self._open(index)
                with lock:
                    return file.read_row_group(inside, columns=self._columns, use_threads=False)
            except (*storage.FAILURES, pa.ArrowException) as error:
                self._open.cache_clear()
                if storage.is_transient(error):
                    raise
                if not again:
                    raise ValueError(f"{where} cannot be read: {error}") from error
        raise AssertionError

    def close(self) -> None:
        """Close the files."""
        self._open.cache_clear()


class ShardSets:
    """Row groups and rows numbered through all folders, in the order in which these are given."""

    def __init__(self, folders: Sequence[str], *, synthetic: bool = False, taught: bool = False) -> None:
        """Raises ValueError where `taught` and the folders have embeddings of different teachers."""
        self._sets = [Shards(folder, synthetic=synthetic, taught=taught) for folder in folders]
        self.teacher = self._sets[0].teacher
        for shards in self._sets[1:]:
            if shards.teacher != self.teacher:
                both = f"{self._sets[0].folder} and {shards.folder}"
                raise ValueError(f"{both} have embeddings of different teachers: {self.teacher} and {shards.teacher}")
        self.group_rows = [shards.group_rows for shards in self._sets]
        """Rows of every row group of each folder."""
        self.row_group_size = max(shards.manifest.row_group_size or 0 for shards in self._sets)
        self._first_group = np.cumsum([0, *map(len, self.group_rows)])
        self._first_row = np.cumsum([0, *(rows.sum() for rows in self.group_rows)])

    def read(self, group: int) -> RowGroup:
        """Read one row group. Raises ValueError where its file is damaged."""
        index = int(np.searchsorted(self._first_group, group, side="right")) - 1
        found = self._sets[index].read(group - int(self._first_group[index]))
        return replace(found, first=found.first + int(self._first_row[index]))

    def close(self) -> None:
        """Close the files."""
        for shards in self._sets:
            shards.close()


class ReadAhead:
    """Hands out the samples of step after step with their row groups, which it began to read `steps` steps earlier.

    A row group is read once while consecutive steps need it, and let go after the last of them.
    """

    def __init__(
        self,
        shards: ShardSets,
        order: SampleOrder | MixedOrder,
        lanes: NDArray[np.int64],
        step: int,
        *,
        steps: int,
    ) -> None:
        self._shards = shards
        self._order = order
        self._lanes = lanes
        self._next = step
        self._requested = step
        self._steps = steps
        self._queue: list[Samples] = []
        self._reads: dict[int, Future[RowGroup]] = {}
        self._last_step: dict[int, int] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")

    def advance(self) -> tuple[Samples, dict[int, Future[RowGroup]]]:
        """The samples of the next step, and the row groups they lie in."""
        while self._requested <= self._next + self._steps:
            self._request(self._requested)
            self._requested += 1
        samples = self._queue.pop(0)
        groups = {g: self._reads[g] for g in np.unique(samples.group).tolist()}
        for g in groups:
            if self._last_step[g] == self._next:
                del self._reads[g], self._last_step[g]
        self._next += 1
        return samples, groups

    def _request(self, step: int) -> None:
        samples = self._order.samples(step, self._lanes)
        self._queue.append(samples)
        for g in np.unique(samples.group).tolist():
            if g not in self._reads:
                self._reads[g] = self._pool.submit(self._shards.read, g)
            self._last_step[g] = step

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)
