"""The training pool: Parquet files of images with their captions."""

import hashlib
import io
from collections.abc import Iterator
from importlib.metadata import version

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
        "kinds": pa.list_(pa.string()),
        "drawings": pa.list_(pa.string()),
        "style": pa.string(),
        "license": pa.string(),
    }
)
"""A pool's columns. `kinds` says what each caption speaks of; `drawings` are the files shown, as `style/concept`."""


def encode(pixels: np.ndarray) -> bytes:
    """Lossless PNG of uint8 RGB [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def captioned(scenes: Catalogue, config: CorpusConfig, index: int) -> tuple[Scene, list[tuple[str, str]]]:
    """Image `index` of the pool and its captions with their kinds; nothing is rendered."""
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
            "kinds": [kind for _, kind in captions],
            "drawings": [p.drawing.id for p in scene.placements],
            "style": scene.source.name,
            "license": scene.source.license,
        }


def write_pool(folder: str, config: CorpusConfig, *, progress: bool = True) -> Manifest:
    """Write the training pool, its manifest last; a finished one is left as it is.

    Raises ValueError where the folder holds a pool of other settings, or where a package is missing.
    """
    if manifest.is_done(folder, "pool", to_dict(config)):
        return manifest.read(folder, "pool")
    files: list[FileEntry] = []
    with progress_bar(total=config.rows, desc="drawing the corpus", unit="image", disable=not progress) as bar:
        for start in range(0, config.rows, config.rows_per_file):
            drawn = []
            for row in rows(config, start, min(start + config.rows_per_file, config.rows)):
                drawn.append(row)
                bar.update()
            files.append(_write_file(folder, f"data-{len(files):05d}.parquet", drawn))
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
