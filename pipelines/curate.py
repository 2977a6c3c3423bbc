"""Curate a pool of images with captions: filter, match with metadata, balance.

    uv run pipelines/curate.py --pool s3://bucket/pool --output s3://bucket/curated

Leaves Parquet files, `data_card.json`, `data_card.html` and, last, `manifest.json`. The matches are kept beside the
output, so that another `--t` or `--seed` (with another `--output`) does not match again. A run that was interrupted
goes on where it stopped when it is started again. The card is a run of MLflow where there is a
store: MLFLOW_TRACKING_URI, or one beside the output.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from llip import storage
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from llip.lease import sole_writer
from pipelines import command, data_runs
from pipelines.stages.options import PRESETS, Dedup, Semantics, Thresholds

if TYPE_CHECKING:  # imported once the options are right, so that --help and a refusal come at once
    from pipelines.stages.filter.rules import ImageRules
    from pipelines.stages.match.by_language import Lists
    from pipelines.stages.match.matching import Matched, TextRules
    from pipelines.stages.read import Pool
    from pipelines.stages.select import Draw

Preset = Literal["none", "datacomp_basic"]
TAIL_SHARE = 0.06
"""Share of the matches in the tail that the authors of the method tune t for."""


Curation = Literal["metaclip", "none"]


@dataclass(frozen=True, kw_only=True)
class PoolRules:
    """Reading of a pool, and the rules that drop rows and captions before anything is balanced."""

    caption_column: str | None = None
    """Column, or field of JSON, that holds the captions, where it is not called captions, caption or text."""
    weights: tuple[float, ...] = ()
    """Use of each pool's rows, relative to the others': with 2 1 all rows of the first pool and half of
    the second are matched (all pools weigh the same)."""
    preset: Preset = "none"
    """Defaults of the five rules below. datacomp_basic, DataComp's basic filter: 3 words, 6 characters, English, 200
    pixels, an aspect ratio up to 3."""
    min_words: int | None = None
    """Drop captions with fewer words."""
    min_characters: int | None = None
    """Drop captions with fewer characters."""
    languages: tuple[str, ...] | None = None
    """Keep captions in these languages, by their codes: en, de, zh, …"""
    min_side: int | None = None
    """Drop images whose shorter side has fewer pixels."""
    max_aspect: float | None = None
    """Drop images whose longer side is more than this many times the shorter."""
    max_pixels: int = 100_000_000
    """Drop images with more pixels without decoding them: a small file can unpack to more than the memory."""
    dedup: Dedup = field(default_factory=Dedup)
    """Duplicates of images."""
    where: tuple[str, ...] = ()
    """Keep rows whose columns satisfy these, for instance 'nsfw < 0.5'."""
    partition_rows: int = 100_000
    """Rows that are read, matched and written together; fewer where their images are large."""

    def __post_init__(self) -> None:
        if any(weight <= 0 for weight in self.weights):
            raise ValueError(f"--weights are {self.weights}; each has to be above 0")
        for name in ("max_pixels", "partition_rows"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it has to be at least 1")
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(f"--max-aspect is {self.max_aspect}; it has to be at least 1")
        if bad := [code for code in self.languages or () if not re.fullmatch("[a-z]{2,3}", code)]:
            raise ValueError(f"--languages has {bad[0]!r}; a language is its code of two or three letters, such as en")

    def thresholds(self) -> Thresholds:
        """The preset's, with what is given in their place."""
        given = {rule.name: getattr(self, rule.name) for rule in fields(Thresholds)}
        return replace(PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Curate(PoolRules):
    """Sources of a curated pool, and its rules."""

    pool: str | tuple[str, ...]
    """Images with captions: a folder or prefix of Parquet files, WebDataset tars, a CSV, TSV, JSONL or JSON of paths,
    or images beside .txt files; links, with `url` and no `image`, are curated by their captions alone. Several are
    curated as one: a column `pool` keeps the last part of each URI, or NAME in NAME=URI, and ids begin with it."""
    output: str = "output/curated"
    """Folder of the curated pool."""
    curation: Curation = "metaclip"
    """metaclip: captions are matched with entries and balanced · none: the rules alone drop rows and captions."""
    metadata: str | None = None
    """Entries: a JSON list (or an object whose keys they are), a text file with one a line, or a one-column Parquet
    file. Built from the pool's captions where not given. A folder of such files, named en.json, ja.txt, …, has entries
    for each language, and other.json those for all others: a caption meets its own, and t is chosen for each."""
    language_column: str | None = None
    """Column of the language of a row's captions, where entries are by language; identified from each caption where
    not given."""
    metadata_min_count: int | None = None
    """Texts that a word or pair of words has to occur in to become an entry of built metadata (2)."""
    semantics: Semantics = "v1"
    """v1: an entry matches between spaces · v2: also inside running text of scripts without spaces."""
    t: int | None = None
    """Texts of an entry that are kept on average: more common entries are thinned out to it."""
    tail_share: float | None = None
    """Choose t so that at most this share of all matches falls on entries rarer than t (0.06)."""
    seed: int = 0
    """Seed of the draw that thins out."""
    online: bool = False
    """Keep every caption that matches, with its probability: the loader thins out, anew in each epoch."""
    matches: str | None = None
    """Folder where matches are kept; `matches` beside the output where not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights and len(self.weights) != len(self.pools):
            raise ValueError(f"--weights has {len(self.weights)} numbers for {len(self.pools)} pools; give each one")
        if self.t is not None and self.tail_share is not None:
            raise ValueError("--t and --tail-share exclude each other: the tail share chooses t")
        if self.metadata is not None and self.metadata_min_count is not None:
            raise ValueError("--metadata-min-count is about built metadata; leave it out where --metadata is given")
        for name in ("t", "metadata_min_count"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it has to be at least 1")
        if self.tail_share is not None and not 0 <= self.tail_share < 1:
            raise ValueError(f"--tail-share is {self.tail_share}; it has to be in [0, 1)")
        given = [f.name for f in fields(Curate) if f.name in BALANCING and getattr(self, f.name) != f.default]
        if self.curation == "none" and given:
            raise ValueError(f"--{given[0].replace('_', '-')} is about balancing; --curation none balances nothing")

    @property
    def pools(self) -> tuple[str, ...]:
        return (self.pool,) if isinstance(self.pool, str) else self.pool

    def shares(self) -> tuple[tuple[str, float], ...]:
        """Share of the rows of each pool that is used; nothing where all are."""
        from pipelines.stages import read

        if len(set(self.weights)) < 2:
            return ()
        return tuple((read.pool_name(p), w / max(self.weights)) for p, w in zip(self.pools, self.weights, strict=True))


BALANCING = ("metadata", "language_column", "metadata_min_count", "semantics", "t", "tail_share", "seed", "online")
"""Settings of the matching and the balancing."""


def curate(settings: Curate) -> Manifest:
    """Curate; returns the manifest of the output. Does nothing where that is done already.

    Raises ValueError for a pool, metadata or condition that can't be used, and for an output made with other settings.
    """
    from pipelines.stages import read
    from pipelines.stages.filter import rules
    from pipelines.stages.match import by_language, matching

    output = storage.absolute(settings.output)
    pool = read.open_pools(
        settings.pools, partition_rows=settings.partition_rows, caption_column=settings.caption_column
    )
    lists = by_language.load(storage.absolute(settings.metadata)) if settings.metadata else None
    config = _config(settings, pool, lists)
    if manifest.is_done(output, "curated", config):
        print(f"{output} is curated already")
        storage.remove(storage.join(output, "progress"))
        return manifest.read(output, "curated")

    thresholds = settings.thresholds()
    text_rules = matching.TextRules(
        min_words=thresholds.min_words,
        min_characters=thresholds.min_characters,
        languages=thresholds.languages,
        where=tuple(rules.parse_condition(text, pool.extras) for text in settings.where),
        shares=settings.shares(),
        with_entries=_languages(settings, pool, lists),
        language_column=settings.language_column,
    )
    image_rules = rules.ImageRules(
        min_side=thresholds.min_side, max_aspect=thresholds.max_aspect, max_pixels=settings.max_pixels
    )
    if not pool.has_images:
        _refuse_rules_of_images(settings, pool, thresholds)
    if not settings.dedup.active:  # which may leave one of them
        read.refuse_repeated_ids(pool)
    command.start_ray()
    with sole_writer(output):
        return _curate(settings, pool, lists, config, text_rules, image_rules)


def _curate(
    settings: Curate,
    pool: Pool,
    lists: Lists | None,
    config: dict[str, Any],
    text_rules: TextRules,
    image_rules: ImageRules,
) -> Manifest:
    from pipelines.stages import balance
    from pipelines.stages.dedup import duplicates
    from pipelines.stages.match import metadata
    from pipelines.stages.match.matching import matches_of
    from pipelines.stages.select import Draw

    output = storage.absolute(settings.output)
    balanced = settings.curation == "metaclip"
    matched = matches_of(
        pool,
        lists,
        balanced=balanced,
        min_count=settings.metadata_min_count or metadata.MIN_COUNT,
        semantics=settings.semantics,
        text_rules=text_rules,
        partition_rows=settings.partition_rows,
        folder=storage.absolute(settings.matches or storage.beside(output, "matches")),
    )
    if settings.dedup.active:
        matched = duplicates.without_duplicates(pool, matched, settings.dedup, image_rules)
    share = TAIL_SHARE if settings.tail_share is None else settings.tail_share
    if not balanced:
        t = {"": 1}
    elif settings.t is None:
        t = balance.thresholds(matched.counts, matched.languages, share)
    else:
        t = dict.fromkeys(matched.languages, settings.t)
    draw = Draw(seed=settings.seed, image_rules=image_rules, online=settings.online, everything=not balanced)
    result = _select(pool, config, matched, draw, t, output)
    _say(result)
    return result


def _refuse_rules_of_images(settings: Curate, pool: Pool, thresholds: Thresholds) -> None:
    """Raise ValueError for what cannot be judged by links."""
    asked = {
        "--min-side": thresholds.min_side > 0,
        "--max-aspect": thresholds.max_aspect < float("inf"),
        "--dedup": settings.dedup.active,
    }
    if names := [name for name, is_asked in asked.items() if is_asked]:
        raise ValueError(
            f"{pool.uri} holds links, and {' and '.join(names)} ask for images: fetch these first, or leave it out"
            " (--min-side 0 and --max-aspect inf end a preset's) and use columns, as in --where 'width >= 200'"
        )


def _languages(settings: Curate, pool: Pool, lists: Lists | None) -> tuple[str, ...]:
    """Languages that have entries of their own. Raises ValueError for a column of languages that nothing needs, or that
    is not there."""
    codes = tuple(code for code in lists or () if code)
    if (column := settings.language_column) is not None:
        if not codes:
            raise ValueError("--language-column is about entries by language: --metadata has to be a folder of them")
        if column not in pool.extras.names:
            raise ValueError(f"--language-column: the pool has no column {column!r}; it carries {pool.extras.names}")
    return codes


def config_of(settings: Curate, *, images: bool) -> dict[str, Any]:
    """Configuration of a curated pool: its settings, and the identity of its sources. Raises ValueError as
    `curate` does, and for links where `images` are needed."""
    from pipelines.stages import read
    from pipelines.stages.match import by_language

    pool = read.open_pools(
        settings.pools, partition_rows=settings.partition_rows, caption_column=settings.caption_column
    )
    if images and not pool.has_images:
        raise ValueError(f"{pool.uri} holds links; pipelines/fetch.py fetches their images")
    return _config(settings, pool, by_language.load(storage.absolute(settings.metadata)) if settings.metadata else None)


def _config(settings: Curate, pool: Pool, lists: Lists | None) -> dict[str, Any]:
    """Configuration that the result depends on."""
    from pipelines.stages.work import digest

    places = ("pool", "output", "metadata", "matches")
    values = {k: [*v] if isinstance(v, tuple) else v for k, v in asdict(settings).items() if k not in places}
    values["dedup"] = asdict(settings.dedup) | {"evaluation": [source.digest() for source in settings.dedup.sets()]}
    return values | {"pool_digest": pool.digest, "metadata_digest": digest(lists) if lists else None}


def _select(
    pool: Pool, config: dict[str, Any], matched: Matched, draw: Draw, t: dict[str, int], output: str
) -> Manifest:
    import ray

    from pipelines.stages import balance, card, card_page, select
    from pipelines.stages.match import matching
    from pipelines.stages.work import Stage, counts, digest, run

    progress = storage.join(output, "progress")
    markers = storage.join(progress, digest(config))
    results = run(
        Stage(name="balance", markers=markers, noun=pool.noun),
        pool.partitions,
        select.select_partition,
        sizes=[partition.size for partition in pool.partitions],
        shared={
            "folder": output,
            "kept_folder": markers,
            "matches": matched.folder,
            "dropped": matched.dropped,
            "pool_format": pool.format,
            "columns": pool.columns,
            "draw": draw,
            "log_misses": ray.put(balance.log_misses(matched.counts, balance.by_entry(t, matched.languages))),
        },
    )
    entries_of = partial(matching.matched_entries, folder=matched.folder, kept=markers)
    kept_counts = counts.total(pool.partitions, entries_of, len(matched.entries))
    data_card = card.make(
        results,
        rows=matched.rows,
        entries=matched.entries,
        counts=matched.counts,
        kept_counts=kept_counts,
        thresholds=t,
        languages=matched.languages,
        unread=Counter(pool.unread) + Counter(matched.unread),
    )
    if not data_card["rows"]["kept"]:
        reasons = {name: data_card[name]["dropped"] for name in ("rows", "captions")}
        raise ValueError(f"nothing of {pool.uri} is left; dropped: {reasons}")
    storage.write_json(storage.join(output, card.NAME), data_card)
    page = card_page.make(pool.uri, data_card, card_page.samples(output, results))
    storage.write_bytes(storage.join(output, card_page.NAME), page.encode())
    result = Manifest(
        kind="curated",
        files=tuple(FileEntry(**r["file"]) for r in results),
        config=config,
        source={"pool": pool.uri},
        summary=card.summary(data_card),
    )
    manifest.write(output, result)
    storage.remove(progress)
    return result


def curate_and_track(settings: Curate) -> None:
    """`curate`, and its settings and its data card as a run of MLflow, where there is one."""
    from pipelines.stages import card_page

    curate(settings)
    output = storage.absolute(settings.output)
    data_runs.track(output, "curated", card_page.documents(output))


def _say(result: Manifest) -> None:
    rows, captions = result.summary["rows"], result.summary["captions"]
    balancing = ""
    if "t" in result.summary:
        share = result.summary["tail_share"]
        balancing = f" (t = {result.summary['t']:,}, {share:.1%} of the matches in the tail)"
    kept = f"kept {rows['kept']:,} of {rows['in']:,} images and {captions['kept']:,} of {captions['in']:,} captions"
    print(kept + balancing)
    if unread := result.summary["not_read"]:
        print(f"found and not read: {', '.join(f'{n:,} {kind}' for kind, n in unread.items())}")


def cli() -> None:
    """The command line."""
    command.run(
        Curate, curate_and_track, "Curate a pool of images with captions: filter, match with metadata, balance."
    )


if __name__ == "__main__":
    cli()
