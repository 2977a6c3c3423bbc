"""The training pool: Parquet files of images with their captions, and the metadata that these can be matched with."""

import contextlib
import hashlib
import io
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from llip import storage
from llip.data import manifest
from llip.data.corpus.captions import describe
from llip.data.corpus.catalogue import Catalogue, catalogue
from llip.data.corpus.config import CorpusConfig
from llip.data.corpus.scenes import Scene, random_of, render, training_scene
from llip.data.corpus.sources import SOURCES
from llip.data.manifest import FileEntry, Manifest
from llip.fields import to_dict
from llip.progress import bar as progress_bar

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.binary(),
        "captions": pa.list_(pa.string()),
        "caption_types": pa.list_(pa.string()),
        "drawings": pa.list_(pa.string()),
        "style": pa.string(),
        "license": pa.string(),
    }
)
"""A pool's columns. `caption_types` are those of its captions; `drawings` are the files shown, as `style/concept`."""

SAMPLE = 4_000
"""Rows whose captions give the single words and the pairs of words."""
MIN_COUNT = 4
"""Occurrences that a word or a pair needs."""

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""Maps a function over values, in their order: `map`, or that of an executor."""
AT_ONCE = 250
"""Rows that are drawn in one go."""
WORTH_A_PROCESS = 2_000
"""Images that take longer to draw than a process takes to start."""


def encode(pixels: np.ndarray) -> bytes:
    """Lossless PNG of uint8 RGB [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def captioned(scenes: Catalogue, config: CorpusConfig, index: int) -> tuple[Scene, list[tuple[str, str]]]:
    """Image `index` of the pool and its captions with their types; nothing is rendered."""
    scene = training_scene(scenes, config, index)
    return scene, describe(scene, config, random_of(config.seed, "captions", index))


def rows(config: CorpusConfig, start: int, stop: int) -> Iterator[dict[str, object]]:
    """Rows of the pool, each a function of the configuration and its index."""
    drawings = catalogue(config)
    for index in range(start, stop):
        scene, captions = captioned(drawings, config, index)
        yield {
            "id": f"corpus-{config.seed}-{index:08d}",
            "image": encode(render(scene, config.canvas)),
            "captions": [text for text, _ in captions],
            "caption_types": [caption_type for _, caption_type in captions],
            "drawings": [p.drawing.id for p in scene.placements],
            "style": scene.source.name,
            "license": scene.source.license,
        }


@contextlib.contextmanager
def spread_over_cores(images: int) -> Iterator[Spread]:
    """Mapping by a process on each core where there are so many images to draw, else `map`."""
    processes = min(len(os.sched_getaffinity(0)), images // WORTH_A_PROCESS)
    if processes < 2:
        yield map
        return
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_end_with_the_parent)
    try:
        yield executor.map
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_the_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it does, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _rows_of(span: tuple[int, int], config: CorpusConfig) -> list[dict[str, object]]:
    return list(rows(config, *span))


def write_pool(folder: str, config: CorpusConfig, *, progress: bool = True, spread: Spread = map) -> Manifest:
    """Write the training pool, its manifest last; a finished one is left as it is. `spread` maps what draws rows.

    Raises ValueError where the folder holds a pool of other settings, or where a package is missing.
    """
    if manifest.is_done(folder, "pool", to_dict(config)):
        return manifest.read(folder, "pool")
    files: list[FileEntry] = []
    with progress_bar(total=config.rows, desc="drawing the corpus", unit="image", disable=not progress) as bar:

        def drawn() -> Iterator[dict[str, object]]:
            spans = [(start, min(start + AT_ONCE, config.rows)) for start in range(0, config.rows, AT_ONCE)]
            for part in spread(partial(_rows_of, config=config), spans):
                bar.update(len(part))
                yield from part

        row = drawn()
        while of_file := list(islice(row, config.rows_per_file)):
            files.append(_write_file(folder, f"data-{len(files):05d}.parquet", of_file))
    packages = sorted({s.package for s in SOURCES.values()})
    finished = Manifest(
        kind="pool",
        files=tuple(files),
        config=to_dict(config),
        summary={"packages": {p: version(p) for p in packages}},
    )
    manifest.write(folder, finished)
    return finished


def _write_file(folder: str, name: str, drawn: list[dict[str, object]]) -> FileEntry:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(drawn, SCHEMA), buffer, row_group_size=1000)
    content = buffer.getvalue()
    storage.write_bytes(storage.join(folder, name), content)
    return FileEntry(name=name, rows=len(drawn), bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def metadata_entries(config: CorpusConfig) -> list[str]:
    """Distinct entries, sorted: names, aliases, keywords and categories of what training sees, and frequent words.

    Words and pairs of words are counted in the captions of the first `SAMPLE` rows.
    """
    drawings = catalogue(config)
    entries: set[str] = set()
    for key in {d.concept for d in drawings.training_emoji + drawings.icons}:
        concept = drawings.concepts[key]
        entries.update((concept.name, *concept.aliases, *concept.keywords, *concept.groups, *concept.subgroups))
    counts: Counter[str] = Counter()
    for index in range(min(config.rows, SAMPLE)):
        for caption, _ in captioned(drawings, config, index)[1]:
            words = re.findall(r"[A-Za-z][A-Za-z'-]*", caption)
            counts.update(set(words) | {" ".join(pair) for pair in pairwise(words)})
    entries.update(entry for entry, count in counts.items() if count >= MIN_COUNT)
    return sorted(entries)


def write_metadata(uri: str, config: CorpusConfig) -> None:
    """Write `metadata_entries` as a JSON list."""
    storage.write_json(uri, metadata_entries(config))
