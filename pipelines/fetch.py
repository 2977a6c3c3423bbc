"""Fetch the images that a list links to: a pool for `curate.py`.

    uv run pipelines/fetch.py --links s3://bucket/links --output s3://bucket/pool

The list is Parquet, CSV, TSV, JSONL or JSON with addresses and captions, or WAT files of Common Crawl; or a folder of
links that `curate.py` left, whose images are then for `shard.py`. Run again, it tries what failed once more; what
came is not fetched again. `_failed` in the output names the reason for every link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from llip import storage
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from llip.lease import sole_writer
from pipelines import command
from pipelines.stages.fetch.addresses import Allowed

if TYPE_CHECKING:  # imported once the options are right, so that --help and a refusal come at once
    from pipelines.stages.fetch.download import Limits
    from pipelines.stages.fetch.links import Columns
    from pipelines.stages.work import Partition


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Images to fetch, and limits of the requests."""

    links: str
    """A folder, file or prefix of Parquet, CSV, TSV, JSONL or JSON with addresses and captions, or of .wat.gz files."""
    output: str = "output/pool"
    """Folder of the images and their captions."""
    url_column: str | None = None
    """Column of the addresses; found by name (url, URL, image_url, src, coco_url) where not given. They may be
    relative where there is a column `page`."""
    caption_column: str | None = None
    """Column of the captions; found by name (captions, caption, text, TEXT, alt, raw_caption) where not given."""
    sha256_column: str | None = None
    """Column of checksums that images have to have, hexadecimal; a null is not checked."""
    connections: int = 128
    """Requests at a time, of each worker."""
    per_host: int = 4
    """Requests to one host at a time, of all workers together; each worker may make one."""
    timeout: float = 20.0
    """Seconds for a request and its answer."""
    retries: int = 2
    """Times that a request is repeated at once, where the failure may be a passing one."""
    backoff: float = 1.0
    """Seconds before the first of these, about; each further one waits twice as long."""
    max_bytes: int = 32 << 20
    """Larger files are not fetched."""
    max_pixels: int = 100_000_000
    """Images with more are dropped."""
    user_agent: str = "llip-fetch/0.1"
    """Name of the program to servers; name an address where you can be reached."""
    allow: tuple[str, ...] = ()
    """Networks besides the public internet that may be connected to, such as 10.0.0.0/8."""
    partition_rows: int = 10_000
    """Links that are fetched and written together."""
    only_list: bool = False
    """Fetch nothing: write the links down as Parquet, which curate.py takes."""

    def __post_init__(self) -> None:
        for name in ("connections", "per_host", "timeout", "max_bytes", "max_pixels", "partition_rows"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it has to be above 0")
        for name in ("retries", "backoff"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"--{name} is {value}; it has to be at least 0")
        Allowed(self.allow)

    def columns(self) -> Columns:
        """Meaning of the list's columns."""
        from pipelines.stages.fetch.links import Columns

        return Columns(url=self.url_column, captions=self.caption_column, sha256=self.sha256_column)

    def limits(self, workers: int) -> Limits:
        """Limits of each worker."""
        from pipelines.stages.fetch.download import Limits

        given = {f.name: getattr(self, f.name) for f in fields(Limits)}
        return Limits(**given | {"per_host": max(1, self.per_host // workers)})


def fetch(settings: Fetch) -> Manifest:
    """Fetch what is not there yet; returns the manifest of the output.

    Raises ValueError, before anything is fetched, for a list that cannot be read or repeats an id, and for an output
    made from another one or being written.
    """
    from pipelines.stages.fetch import fetching, links
    from pipelines.stages.read import fields, files
    from pipelines.stages.work import Partition

    output, source = storage.absolute(settings.output), storage.absolute(settings.links)
    unread = Counter[str]()
    found = files.find(source, unread)
    kind, chosen = files.of_format(source, found, links.SUFFIXES, weak=(".json",))
    config = {
        "links_digest": files.identity(found),
        "columns": asdict(settings.columns()),
        "partition_rows": settings.partition_rows,
    } | ({"only_list": True} if settings.only_list else {})
    purpose = "curated" if manifest.kind_of(source) == "curated" else "pool"

    def done() -> Manifest | None:
        return manifest.read(output, purpose) if manifest.is_done(output, purpose, config) else None

    if (before := done()) and (settings.only_list or not set(before.summary["failed"]) - set(fetching.FINAL)):
        print(f"{output} holds all that can be {'listed' if settings.only_list else 'fetched'} already")
        return before
    if purpose == "pool":  # beside curated links lies what curation says of them
        unread.update(f"files {fields.ending(f.name)}" for f in found if f not in chosen)
    lists = [Partition(index=i, file=f.uri, name=f.name, size=1) for i, f in enumerate(chosen)]
    command.start_ray()
    with sole_writer(output):
        result = _fetch(settings, lists, kind, config, done(), unread, curated=purpose == "curated")
        result = replace(result, kind=purpose, config=config, source={"links": source})
        manifest.write(output, result)
        storage.remove(storage.join(output, "_progress"))
    _say(result)
    return result


def _fetch(
    settings: Fetch,
    lists: list[Partition],
    kind: str,
    config: dict[str, Any],
    done: Manifest | None,
    unread: Counter[str],
    *,
    curated: bool,
) -> Manifest:
    from pipelines.stages.fetch import links
    from pipelines.stages.work import Stage, digest, run

    output = storage.absolute(settings.output)
    markers = storage.join(output, "_progress", digest(config))
    listed = output if settings.only_list else storage.join(output, "_links")
    entries: list[FileEntry] = []
    if done is None:
        results = run(
            Stage(name="list", markers=markers, noun="files"),
            lists,
            links.list_partition,
            sizes=[1] * len(lists),
            shared={
                "folder": listed,
                "kind": kind,
                "columns": settings.columns(),
                "row_group_size": settings.partition_rows,
                "curated": curated,
            },
        )
        entries = [FileEntry(**result["file"]) for result in results]
        not_read = dict(sum((Counter(result["unread"]) for result in results), unread).most_common())
        rows = sum(entry.rows for entry in entries)
        if not rows:
            raise ValueError(f"{storage.absolute(settings.links)} holds no links{_in_words(not_read)}")
        if kind == "parquet":  # the rows of other lists get ids of their own
            links.refuse_repeated_ids(_listed(listed, lists), rows)
    else:
        not_read = done.summary["not_read"]
    partitions = _partitions(listed, lists, settings.partition_rows)
    if settings.only_list:
        summary = {"links": rows, "not_read": not_read}
        return Manifest(kind="pool", files=tuple(e for e in entries if e.rows), config=config, summary=summary)
    result = _attempt(settings, partitions, config, done, output, markers)
    return replace(result, summary=result.summary | {"not_read": not_read})


def _listed(folder: str, lists: list[Partition]) -> list[tuple[str, str]]:
    """The files of links, each with the list that it comes from."""
    from pipelines.stages.fetch import links

    return [(storage.join(folder, links.links_name(partition)), partition.name) for partition in lists]


def _partitions(folder: str, lists: list[Partition], partition_rows: int) -> list[Partition]:
    """Partitions of the links as they were written down. Raises ValueError where lists have columns of one name and of
    types that are none together."""
    from pipelines.stages.read import parquet

    listed = _listed(folder, lists)
    footers = parquet.read_footers(listed)
    parquet.unified(
        {partition.file: f.schema.to_arrow_schema() for partition, f in zip(lists, footers, strict=True) if f.num_rows}
    )
    return parquet.partitions(listed, footers, partition_rows)


def _attempt(
    settings: Fetch,
    partitions: list[Partition],
    config: dict[str, Any],
    done: Manifest | None,
    output: str,
    markers: str,
) -> Manifest:
    from pipelines.stages.fetch import fetching
    from pipelines.stages.work import Stage, run, worker_count

    attempt = done.summary["attempts"] if done else 0
    results = run(
        Stage(name=f"fetch-{attempt}", markers=markers, noun="links"),
        partitions,
        fetching.fetch_partition,
        sizes=[p.size for p in partitions],
        shared={
            "folder": output,
            "attempt": attempt,
            "limits": settings.limits(worker_count(len(partitions))),
            "sha256": settings.sha256_column,
        },
    )
    new = tuple(FileEntry(**r["file"]) for r in results if r["file"]["rows"])
    failed = dict(sum((Counter(r["failed"]) for r in results), Counter[str]()).most_common())
    links = sum(p.size for p in partitions)
    result = Manifest(kind="pool", files=(*(done.files if done else ()), *new), config=config)
    assert links == result.rows + sum(failed.values()), f"{links} links, but {result.rows} fetched and {failed} failed"
    return replace(result, summary={"links": links, "fetched": result.rows, "failed": failed, "attempts": attempt + 1})


def _say(result: Manifest) -> None:
    summary = result.summary
    if "fetched" in summary:
        print(f"{summary['fetched']:,} of {summary['links']:,} images, {result.bytes / 1e6:,.1f} MB")
    else:
        print(f"{summary['links']:,} links")
    for reason, count in summary.get("failed", {}).items():
        print(f"{count:12,} {reason}")
    if summary["not_read"]:
        print(_in_words(summary["not_read"]).removeprefix("; "))


def _in_words(not_read: Mapping[str, int]) -> str:
    found = ", ".join(f"{count:,} {kind}" for kind, count in not_read.items())
    return f"; found and not read: {found}" if found else ""


def cli() -> None:
    """The command line."""
    command.run(Fetch, fetch, "Fetch the images that a list links to.")


if __name__ == "__main__":
    cli()
