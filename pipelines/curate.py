"""Curate a pool of images with captions: filter, match with metadata, balance.

    uv run pipelines/curate.py --pool s3://bucket/pool --output s3://bucket/curated

Leaves Parquet files, `data_card.json` and, last, `manifest.json`. The matches are kept beside the output, so that
another `--t` or `--seed` (with another `--output`) does not match again. A run that was interrupted goes on where it
stopped when it is started again.
"""

from dataclasses import asdict, dataclass
from typing import Any

from llip import storage
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from pipelines import command
from pipelines.stages import balance, card, filter, metadata, read, select
from pipelines.stages.match import Semantics
from pipelines.stages.matched import Matched, matches_of
from pipelines.stages.matching import TextRules
from pipelines.stages.read import Pool
from pipelines.stages.select import Draw
from pipelines.stages.work import Stage, digest, run

TAIL_SHARE = 0.06
"""Share of the matches in the tail that the authors of the method tune t for."""


@dataclass(frozen=True, kw_only=True)
class Curate:
    """What a curated pool is made from."""

    pool: str
    """Images with captions: a folder or prefix of Parquet files, WebDataset tars, a CSV or JSONL of paths, or images
    beside .txt files."""
    output: str = "output/curated"
    """Folder of the curated pool."""
    metadata: str | None = None
    """Entries: a JSON list, a text file with one a line, or a one-column Parquet file. Built from the pool's
    captions where not given."""
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
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(f"--max-aspect is {self.max_aspect}; it has to be at least 1")
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

    text_rules = TextRules(
        min_words=settings.min_words,
        min_characters=settings.min_characters,
        where=tuple(filter.parse_condition(text, pool.extras) for text in settings.where),
    )
    command.start_ray()
    matched = matches_of(
        pool,
        entries,
        min_count=settings.metadata_min_count or metadata.MIN_COUNT,
        semantics=settings.semantics,
        text_rules=text_rules,
        unit_rows=settings.unit_rows,
        folder=storage.absolute(settings.matches or storage.beside(output, "matches")),
    )
    share = TAIL_SHARE if settings.tail_share is None else settings.tail_share
    draw = Draw(
        t=settings.t or balance.threshold(matched.counts, share),
        seed=settings.seed,
        min_side=settings.min_side,
        max_aspect=settings.max_aspect or float("inf"),
    )
    result = _select(pool, config, matched, draw, output)
    _say(result)
    return result


def _config(settings: Curate, pool: Pool, entries: list[str] | None) -> dict[str, Any]:
    """What the result depends on."""
    values = {k: v for k, v in asdict(settings).items() if k not in ("output", "matches")} | {
        "where": [*settings.where]
    }
    metadata_digest = digest(entries) if entries else None
    return values | {"pool": pool.uri, "pool_digest": pool.digest, "metadata_digest": metadata_digest}


def _select(pool: Pool, config: dict[str, Any], matched: Matched, draw: Draw, output: str) -> Manifest:
    import ray

    progress = storage.join(output, "progress")
    results = run(
        Stage(name="balance", markers=storage.join(progress, digest(config)), noun=pool.noun),
        pool.units,
        select.select_unit,
        sizes=[unit.size for unit in pool.units],
        shared={
            "folder": output,
            "matches": matched.folder,
            "pool_format": pool.format,
            "extras": pool.extras,
            "draw": draw,
            "counts": ray.put(matched.counts),
        },
    )
    data_card = card.make(results, rows=matched.rows, entries=matched.entries, counts=matched.counts, t=draw.t)
    if not data_card["rows"]["kept"]:
        reasons = {name: data_card[name]["dropped"] for name in ("rows", "captions")}
        raise ValueError(f"nothing of {pool.uri} is left; dropped: {reasons}")
    storage.write_json(storage.join(output, card.NAME), data_card)
    result = Manifest(
        kind="curated",
        files=tuple(FileEntry(**r["file"]) for r in results),
        config=config,
        summary=card.summary(data_card),
    )
    manifest.write(output, result)
    storage.remove(progress)
    return result


def _say(result: Manifest) -> None:
    rows, captions = result.summary["rows"], result.summary["captions"]
    print(
        f"kept {rows['kept']:,} of {rows['in']:,} images and {captions['kept']:,} of {captions['in']:,} captions"
        f" (t = {result.summary['t']:,}, {result.summary['tail_share']:.1%} of the matches in the tail)"
    )


if __name__ == "__main__":
    command.run(Curate, curate, "Curate a pool of images with captions: filter, match with metadata, balance.")
