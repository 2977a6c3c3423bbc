"""Turn a pool into training shards: check and re-encode every image, shuffle all rows once, write files of
equal row groups.

    uv run pipelines/shard.py --curated s3://bucket/curated --output s3://bucket/shards
    uv run pipelines/shard.py --pool s3://bucket/pool --output s3://bucket/shards      # without curation

The order is a pure function of (seed, ids). A run that was interrupted goes on where it stopped when it is started
again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from llip import storage
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from llip.lease import sole_writer
from pipelines import command, data_runs
from pipelines.curate import Curate, PoolRules, config_of, curate
from pipelines.stages.options import Format

if TYPE_CHECKING:  # imported once the options are right, so that --help and a refusal come at once
    import pyarrow as pa

    from pipelines.stages.encode import Encoding
    from pipelines.stages.shuffle import Curated

GROUP_ROWS = 128
"""Rows of a row group, where a pool is large enough to have many."""
GROUPS = 64
"""Row groups that a small pool is cut into, so that each of 8 lanes has several."""
FILE_BYTES = 256 << 20
"""Size of a shard, about."""
FILES = 8
"""Shards that a small pool is cut into, so that several workers can write and read."""
BINS_PER_FILE = 8


@dataclass(frozen=True, kw_only=True)
class Shard(PoolRules):
    """Source of the shards, and their form."""

    curated: str | None = None
    """Folder that curation left; where it curated links, the folder that their images were fetched to
    (output/curated)."""
    pool: str | tuple[str, ...] | None = None
    """Images with captions that are sharded as they are, less what the rules drop: a pool as curate.py takes it."""
    output: str = "output/shards"
    """Folder of the shards."""
    max_side: int = 512
    """Longest side of a stored image, pixels; larger ones are scaled down."""
    format: Format = "keep"
    """Stored as JPEG, WebP or PNG; keep: as it came."""
    quality: int = 90
    """Quality of JPEG and WebP where an image is encoded anew."""
    blur: str | None = None
    """Column with boxes that are blurred, such as DataComp's face_bboxes: lists of left, top, right, bottom as shares
    of width and height."""
    rows_per_group: int | None = None
    """Rows of a row group, what the loader reads at once: 128, and fewer for small pools."""
    rows_per_file: int | None = None
    """Rows of a shard, a multiple of `rows_per_group`: about 256 MB, and at least 8 shards."""
    seed: int = 0
    """Seed of the shuffle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool is not None and self.curated is not None:
            raise ValueError("--pool and --curated exclude each other: a curated pool is one that curate.py has left")
        given = [f.name for f in RULES if getattr(self, f.name) != getattr(PoolRules(), f.name)]
        if self.pool is None and given:
            raise ValueError(f"--{given[0].replace('_', '-')} is about --pool; curate.py has it for a curated one")
        for name in ("max_side", "max_pixels", "rows_per_group", "rows_per_file"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it has to be at least 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality is {self.quality}; it has to be in 1 to 100")
        if self.rows_per_file is not None and (self.rows_per_group is None or self.rows_per_file % self.rows_per_group):
            raise ValueError(
                f"--rows-per-file is {self.rows_per_file}; it has to be a multiple of --rows-per-group,"
                f" which is {self.rows_per_group or 'not given'}"
            )

    def as_curated(self, output: str) -> Curate:
        """Conversion of the pool to one that can be sharded, in a folder that stays until the shards are done."""
        assert self.pool is not None
        folder = storage.join(output, "progress")
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(PoolRules)}
        places: dict[str, Any] = {"output": storage.join(folder, "pool"), "matches": storage.join(folder, "matches")}
        return Curate(pool=self.pool, curation="none", **places, **given)


RULES = [f for f in fields(PoolRules) if f.name != "max_pixels"]
"""Settings that only a pool has; a curated pool too has a limit of pixels."""


def shard(settings: Shard) -> Manifest:
    """Make shards; returns the manifest of the output. Does nothing where that is done already.

    Raises ValueError where `curated` is no finished curated pool or `pool` cannot be read, where ids repeat, and for an
    output made with other settings.
    """
    from pipelines.stages.work import digest

    output = storage.absolute(settings.output)
    rules = [f.name for f in RULES]
    config = {k: v for k, v in asdict(settings).items() if k not in ("output", "curated", "pool", *rules)}
    if settings.pool is None:
        folder = storage.absolute(settings.curated or "output/curated")
        source = {"curated": folder}
        curated = manifest.read(folder, "curated")
        config["curated_digest"] = digest([asdict(f) for f in curated.files])
    else:
        made = settings.as_curated(output)
        folder, source = made.output, {"pool": ", ".join(made.pools)}
        config["pool"] = config_of(made, images=True)
    if manifest.is_done(output, "shards", config):
        print(f"{output} holds the shards already")
        _clean(output)
        return manifest.read(output, "shards")
    with sole_writer(output):
        if settings.pool is not None:
            curated = curate(made)
        result = _shard(settings, config, curated, folder, output, source)
    _clean(output)
    return result


def _shard(
    settings: Shard, config: dict[str, Any], curated: Manifest, folder: str, output: str, source: dict[str, Any]
) -> Manifest:
    from pipelines import schema
    from pipelines.stages import shuffle
    from pipelines.stages.work import Stage, digest, run

    files = [
        shuffle.Curated(index=i, file=storage.join(folder, f.name), rows=f.rows)
        for i, f in enumerate(f for f in curated.files if f.rows)
    ]
    columns = _columns(files[0], settings.blur)
    command.start_ray()
    progress = storage.join(output, "progress", digest(config))
    bits = max(0, (BINS_PER_FILE * max(FILES, curated.bytes // FILE_BYTES) - 1).bit_length())
    scattered = run(
        Stage(name="encode", markers=progress),
        files,
        shuffle.scatter_partition,
        sizes=[f.rows for f in files],
        shared={
            "folder": output,
            "encoding": _encoding(settings),
            "blur": settings.blur,
            "seed": settings.seed,
            "bits": bits,
        },
    )
    kept = sum(sum(r["rows"]) for r in scattered)
    dropped = dict(sum((Counter(r["dropped"]) for r in scattered), Counter[str]()))
    assert curated.rows == kept + sum(dropped.values()), f"{curated.rows} rows, but {kept} kept and {dropped} dropped"
    if not kept:
        raise ValueError(f"no image of {folder} is left: {dropped}")
    group = settings.rows_per_group or max(1, min(GROUP_ROWS, kept // GROUPS))
    sizes = _file_sizes(kept, group, settings.rows_per_file, sum(r["image_bytes"] for r in scattered))
    written = run(
        Stage(name="shuffle", markers=progress),
        shuffle.plan(output, scattered, sizes),
        shuffle.gather_shard,
        sizes=sizes,
        shared={"folder": output, "columns": columns, "row_group_size": group},
    )
    summary: dict[str, Any] = {"rows": {"in": curated.rows, "kept": kept, "dropped": dropped}}
    if settings.pool is not None:
        summary = _summary_of_pool(folder, output, kept, dropped, sum(r["captions_dropped"] for r in scattered))
    if schema.KEEP_PROBABILITY in columns.names:
        summary["online"] = True
    entries = tuple(FileEntry(**entry) for entry in written)
    result = Manifest(
        kind="shards",
        files=entries,
        config=config,
        source=source,
        row_group_size=group,
        summary=summary,
    )
    manifest.write(output, result)
    print(
        f"{kept:,} of {summary['rows']['in']:,} images in {len(entries)} shards of"
        f" {result.bytes / 1e6 / len(entries):.1f} MB, {group} rows a row group"
    )
    return result


def _summary_of_pool(
    folder: str, output: str, kept: int, dropped: dict[str, int], captions_dropped: int
) -> dict[str, Any]:
    """Rows and captions of a pool, each with a reason where it is not kept; what says so is left with the shards."""
    from pipelines.stages import card, card_page

    for name in (card.NAME, card_page.NAME):
        storage.write_bytes(storage.join(output, name), storage.read_bytes(storage.join(folder, name)))
    made = storage.read_json(storage.join(folder, card.NAME))
    rows, captions = made["rows"], made["captions"]
    everything = dict(Counter(rows["dropped"]) + Counter(dropped))
    assert rows["in"] == kept + sum(everything.values()), f"{rows['in']} rows, but {kept} kept and {everything} dropped"
    return {
        "rows": {"in": rows["in"], "kept": kept, "dropped": everything},
        "captions": {
            "in": captions["in"],
            "kept": captions["kept"] - captions_dropped,
            "dropped": dict(Counter(captions["dropped"]) + Counter({"its image was dropped": captions_dropped})),
        },
        "not_read": made["not_read"],
    }


def _encoding(settings: Shard) -> Encoding:
    from pipelines.stages.encode import Encoding

    return Encoding(
        max_side=settings.max_side, format=settings.format, quality=settings.quality, max_pixels=settings.max_pixels
    )


def _file_sizes(rows: int, group: int, rows_per_file: int | None, total_bytes: int) -> list[int]:
    """Rows of each shard: whole row groups, spread so that shards differ by one at most; only the very last group
    may be short."""
    groups = -(-rows // group)
    if rows_per_file is None:
        files = min(groups, max(FILES, -(-total_bytes // FILE_BYTES)))
    else:
        files = -(-rows // rows_per_file)
    counts = [groups // files + (i < groups % files) for i in range(files)]
    sizes = [n * group for n in counts]
    sizes[-1] -= groups * group - rows
    return sizes


def _columns(file: Curated, blur: str | None) -> pa.Schema:
    """The columns of a curated file. Raises ValueError for a file without images, and for a column of boxes that holds
    no lists of lists of numbers."""
    import pyarrow.parquet as pq

    from pipelines import schema

    with storage.opened(file.file) as handle:
        columns = pq.read_schema(handle).remove_metadata()
    if schema.IMAGE not in columns.names:
        folder = file.file.rpartition("/")[0]
        raise ValueError(f"{folder} holds curated links; pipelines/fetch.py --links {folder} fetches their images")
    if blur and (blur not in columns.names or not _is_boxes(columns.field(blur).type)):
        found = columns.field(blur).type if blur in columns.names else f"not among {', '.join(columns.names)}"
        raise ValueError(f"--blur {blur}: {file.file} needs it as lists of four numbers; it is {found}")
    return columns


def _is_boxes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return (
        pa.types.is_list(kind)
        and pa.types.is_list(kind.value_type)
        and pa.types.is_floating(kind.value_type.value_type)
    )


def _clean(output: str) -> None:
    """Remove what only an unfinished run needs."""
    for name in ("progress", "spill"):
        storage.remove(storage.join(output, name))


def shard_and_track(settings: Shard) -> None:
    """`shard`, and its settings as a run of MLflow, where there is one."""
    shard(settings)
    data_runs.track(storage.absolute(settings.output), "shards", {})


def cli() -> None:
    """The command line."""
    command.run(Shard, shard_and_track, "Turn a curated pool, or any pool as it is, into training shards.")


if __name__ == "__main__":
    cli()
