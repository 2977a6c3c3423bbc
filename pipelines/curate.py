"""Curate a pool of images with captions: filter, match with metadata, balance.

    uv run pipelines/curate.py --pool s3://bucket/pool --output s3://bucket/curated

Leaves Parquet files, `data_card.json` and, last, `manifest.json`. The matches are kept beside the output, so that another `--t` or `--seed`
(with another `--output`) does not match again. A run that was interrupted goes on where it stopped when it is started again.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llip import storage
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from pipelines import command, schema
from pipelines.stages import balance, card, filter, matching, metadata, read, select
from pipelines.stages.match import EntryMatcher, Semantics
from pipelines.stages.read import Pool
from pipelines.stages.work import Stage, run

TAIL_SHARE = 0.06
"""Share of the matches in the tail that the authors of the method tune t for."""


@dataclass(frozen=True, kw_only=True)
class Curate:
    """What a curated pool is made from."""

    pool: str
    """Images with captions: a folder or prefix of Parquet files, WebDataset tars, a CSV or JSONL of paths, or images beside .txt files."""
    output: str = "output/curated"
    """Folder of the curated pool."""
    metadata: str | None = None
    """Entries: a JSON list, a text file with one a line, or a one-column Parquet file. Built from the pool's captions where not given."""
    metadata_min_count: int | None = None
    """Texts that a word or pair of words has to occur in to become an entry of built metadata (2)."""
    semantics: Semantics = "v1"
    """v1: an entry matches between spaces · v2: also inside running text of scripts without spaces."""
    t: int | None = None
    """Texts of an entry that are kept on average: more common entries are thinned out to it."""
    tail_share: float | None = None
    """Choose t so that at most this share of all matches falls on entries rarer than t (0.06)."""
    seed: int = 0
    """Of the draw that thins out."""
    min_words: int = 0
    """Drop captions with fewer words."""
    min_characters: int = 0
    """Drop captions with fewer characters."""
    min_side: int = 0
    """Drop images whose shorter side has fewer pixels."""
    max_aspect: float | None = None
    """Drop images whose longer side is more than this many times the shorter."""
    where: tuple[str, ...] = ()
    """Keep rows whose columns satisfy these, for instance 'nsfw < 0.5'."""
    matches: str | None = None
    """Folder where matches are kept; `matches` beside the output where not given."""
    unit_rows: int = 10_000
    """Rows that are read, matched and written together."""

    def __post_init__(self) -> None:
        if self.t is not None and self.tail_share is not None:
            raise ValueError("--t and --tail-share exclude each other: the tail share chooses t")
        if self.metadata is not None and self.metadata_min_count is not None:
            raise ValueError("--metadata-min-count is about built metadata; leave it out where --metadata is given")
        for name in ("t", "metadata_min_count", "unit_rows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it has to be at least 1")
        if self.tail_share is not None and not 0 <= self.tail_share < 1:
            raise ValueError(f"--tail-share is {self.tail_share}; it has to be in [0, 1)")


def curate(settings: Curate) -> Manifest:
    """Curate; returns the manifest of the output. Does nothing where that is done already.

    Raises ValueError for a pool, metadata or condition that can't be used, and for an output made with other settings.
    """
    output = storage.absolute(settings.output)
    pool = read.open_pool(storage.absolute(settings.pool), unit_rows=settings.unit_rows)
    entries = metadata.load(storage.absolute(settings.metadata)) if settings.metadata else None
    config = _config(settings, pool, entries)
    if manifest.is_done(output, "curated", config):
        print(f"{output} is curated already")
        storage.remove(storage.join(output, "progress"))
        return manifest.read(output, "curated")

    text_rules = matching.TextRules(
        min_words=settings.min_words,
        min_characters=settings.min_characters,
        where=tuple(filter.parse_condition(text, pool.extras) for text in settings.where),
    )
    command.start_ray()
    matched = _matched(settings, pool, entries, text_rules)
    t = settings.t or balance.threshold(
        matched.counts, TAIL_SHARE if settings.tail_share is None else settings.tail_share
    )
    return _select(settings, pool, config, matched, t)


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The materialised matches of a pool."""

    folder: str
    entries: list[str]
    counts: np.ndarray
    """int64 [E]: texts of the pool that match each entry."""


def _config(settings: Curate, pool: Pool, entries: list[str] | None) -> dict[str, Any]:
    """What the result depends on."""
    values = {k: v for k, v in asdict(settings).items() if k not in ("output", "matches")}
    sources = {"pool": pool.uri, "pool_digest": pool.digest, "metadata_digest": _digest(entries)}
    return json.loads(json.dumps(values | sources))


def _matched(settings: Curate, pool: Pool, entries: list[str] | None, text_rules: matching.TextRules) -> Matched:
    """Matches of the pool: those that lie there already, or else made now."""
    import ray

    min_count = settings.metadata_min_count or metadata.MIN_COUNT
    config = {
        "pool_digest": pool.digest,
        "metadata": _digest(entries) if entries else f"built, min_count {min_count}",
        "semantics": settings.semantics,
        "text_rules": repr(text_rules),
        "unit_rows": settings.unit_rows,
    }
    beside = storage.join(storage.absolute(settings.output).rstrip("/").rpartition("/")[0], "matches")
    folder = storage.join(storage.absolute(settings.matches) if settings.matches else beside, _digest(config))
    if manifest.is_done(folder, "matches", config):
        print(f"{folder} holds the matches already")
        return Matched(
            folder=folder,
            entries=metadata.load(storage.join(folder, "metadata.json")),
            counts=matching.read_counts(folder),
        )

    progress = storage.join(folder, "progress")
    rows = [unit.rows for unit in pool.units]
    if entries is None:
        words = run(
            Stage(name="metadata", markers=progress),
            pool.units,
            metadata.count_unit,
            sizes=rows,
            shared={"pool_format": pool.format, "folder": folder},
        )
        entries = metadata.build(pool.units, folder=folder, words=sum(r["words"] for r in words), min_count=min_count)
    storage.write_json(storage.join(folder, "metadata.json"), entries)
    columns = sorted({c.column for c in text_rules.where} | ({schema.KINDS} & set(pool.extras.names)))
    files = run(
        Stage(name="match", markers=progress),
        pool.units,
        matching.match_unit,
        sizes=rows,
        shared={
            "folder": folder,
            "pool_format": pool.format,
            "columns": columns,
            "text_rules": text_rules,
            "matcher": ray.put(EntryMatcher(entries, settings.semantics)),
        },
    )
    counts = matching.count(pool.units, folder, len(entries))
    matching.write_counts(folder, counts)
    manifest.write(folder, Manifest(kind="matches", files=tuple(FileEntry(**f) for f in files), config=config))
    storage.remove(progress)
    metadata.remove_counts(folder)
    return Matched(folder=folder, entries=entries, counts=counts)


def _select(settings: Curate, pool: Pool, config: dict[str, Any], matched: Matched, t: int) -> Manifest:
    import ray

    output = storage.absolute(settings.output)
    draw = select.Draw(
        t=t, seed=settings.seed, min_side=settings.min_side, max_aspect=settings.max_aspect or float("inf")
    )
    results = run(
        Stage(name="balance", markers=storage.join(output, "progress", _digest(config))),
        pool.units,
        select.select_unit,
        sizes=[unit.rows for unit in pool.units],
        shared={
            "folder": output,
            "matches": matched.folder,
            "pool_format": pool.format,
            "extras": pool.extras,
            "draw": draw,
            "counts": ray.put(matched.counts),
        },
    )
    data_card = card.make(
        results, rows=sum(u.rows for u in pool.units), entries=matched.entries, counts=matched.counts, t=t
    )
    if not data_card["rows"]["kept"]:
        raise ValueError(
            f"no row of {pool.uri} is left: {data_card['rows']['dropped']}, captions {data_card['captions']['dropped']}"
        )
    storage.write_json(storage.join(output, card.NAME), data_card)
    files = tuple(FileEntry(**r["file"]) for r in results)
    summary = {name: data_card[name] for name in ("rows", "captions")} | {
        "t": t,
        "tail_share": data_card["matching"]["tail_share"],
    }
    result = Manifest(kind="curated", files=files, config=config, summary=summary)
    manifest.write(output, result)
    storage.remove(storage.join(output, "progress"))
    print(
        f"{output}: {data_card['rows']['kept']} of {data_card['rows']['in']} images, {data_card['captions']['kept']} of {data_card['captions']['in']} captions, t = {t}"
    )
    return result


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    command.run(Curate, curate, "Curate a pool of images with captions: filter, match with metadata, balance.")
