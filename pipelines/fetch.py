"""Fetch the pictures that a list links to: a pool for `curate.py`.

    uv run pipelines/fetch.py --links s3://bucket/links --output s3://bucket/pool

The list is Parquet, CSV or JSONL with addresses and captions, or WAT files of Common Crawl; or a folder of links that
`curate.py` left, whose pictures are then for `shard.py`. Run again, it tries what failed once more; what came is not
fetched again. `_failed` in the output names the reason for every link.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from llip import storage
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from pipelines import command
from pipelines.stages.fetch.addresses import Allowed

if TYPE_CHECKING:  # imported once the options are right, so that --help and a refusal come at once
    from pipelines.stages.fetch.download import Limits
    from pipelines.stages.work import Unit


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Which pictures are fetched, and how."""

    links: str
    """A folder, file or prefix of Parquet, CSV or JSONL with addresses and captions, or of .wat.gz files."""
    output: str = "output/pool"
    """Folder of the pictures and their captions."""
    url_column: str | None = None
    """Column of the addresses; found by name (url, URL, image_url, src) where not given. They may be relative where
    there is a column `page`."""
    caption_column: str | None = None
    """Column of the captions; found by name (captions, caption, text, TEXT, alt) where not given."""
    sha256_column: str | None = None
    """Column of checksums that pictures have to have, hexadecimal; a null is not checked."""
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
    """Pictures with more are dropped."""
    user_agent: str = "llip-fetch/0.1"
    """What the program calls itself; name an address where you can be reached."""
    allow: tuple[str, ...] = ()
    """Networks besides the public internet that may be connected to, such as 10.0.0.0/8."""
    unit_rows: int = 10_000
    """Links that are fetched and written together."""
    only_list: bool = False
    """Fetch nothing: write the links down as Parquet, which curate.py takes."""

    def __post_init__(self) -> None:
        for name in ("connections", "per_host", "timeout", "max_bytes", "max_pixels", "unit_rows"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it has to be above 0")
        for name in ("retries", "backoff"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"--{name} is {value}; it has to be at least 0")
        Allowed(self.allow)

    def limits(self, workers: int) -> Limits:
        """Those of each worker."""
        from pipelines.stages.fetch.download import Limits

        given = {f.name: getattr(self, f.name) for f in fields(Limits)}
        return Limits(**given | {"per_host": max(1, self.per_host // workers)})


def fetch(settings: Fetch) -> Manifest:
    """Fetch what is not there yet; returns the manifest of the output.

    Raises ValueError, before anything is fetched, for a list that cannot be read or repeats an id, and for an output
    made from another one.
    """
    from pipelines.stages.fetch import fetching, links
    from pipelines.stages.fetch.links import Columns
    from pipelines.stages.read import files
    from pipelines.stages.work import Stage, Unit, digest, run

    output, source = storage.absolute(settings.output), storage.absolute(settings.links)
    found = files.find(source)
    kind = files.format_of(source, [f.name for f in found], links.SUFFIXES)
    if kind is None:
        raise ValueError(f"{source} holds no list of links: {', '.join(links.SUFFIXES)} files are read")
    columns = Columns(url=settings.url_column, captions=settings.caption_column, sha256=settings.sha256_column)
    config = {
        "links_digest": files.identity(found),
        "columns": asdict(columns),
        "unit_rows": settings.unit_rows,
    } | ({"only_list": True} if settings.only_list else {})
    purpose = "curated" if manifest.kind_of(source) == "curated" else "pool"
    done = manifest.read(output, purpose) if manifest.is_done(output, purpose, config) else None
    if done and (settings.only_list or not set(done.summary["failed"]) - set(fetching.FINAL)):
        print(f"{output} holds all that can be {'listed' if settings.only_list else 'fetched'} already")
        return done
    command.start_ray()
    progress = storage.join(output, "_progress")
    markers = storage.join(progress, digest(config))
    listed = output if settings.only_list else storage.join(output, "_links")
    chosen = [f for f in found if links.SUFFIXES.get(files.suffix(f.name)) == kind]
    lists = [Unit(index=i, file=f.uri, name=f.name, size=1) for i, f in enumerate(chosen)]
    entries = []
    if done is None:
        entries = run(
            Stage(name="list", markers=markers, noun="files"),
            lists,
            links.list_unit,
            sizes=[1] * len(lists),
            shared={"folder": listed, "kind": kind, "columns": columns, "row_group_size": settings.unit_rows},
        )
        if kind == "parquet":  # the rows of other lists get ids of their own
            links.refuse_repeated_ids(_listed(listed, lists), sum(entry["rows"] for entry in entries))
    units = _units(listed, lists, settings.unit_rows)
    if settings.only_list:
        result = Manifest(kind="pool", files=tuple(FileEntry(**entry) for entry in entries), config=config)
        print(f"{result.rows:,} links")
    else:
        result = replace(_attempt(settings, units, config, done, output, markers), kind=purpose)
        _say(result)
    manifest.write(output, result)
    storage.remove(progress)
    return result


def _listed(folder: str, lists: list[Unit]) -> list[tuple[str, str]]:
    """The files of links, each with the list that it comes from."""
    from pipelines.stages.fetch import links

    return [(storage.join(folder, links.links_name(unit)), unit.name) for unit in lists]


def _units(folder: str, lists: list[Unit], unit_rows: int) -> list[Unit]:
    """Units of the links as they were written down. Raises ValueError where lists differ in what they carry along."""
    from pipelines.stages.read import parquet

    listed = _listed(folder, lists)
    footers = parquet.read_footers(listed)
    columns = [footer.schema.to_arrow_schema() for footer in footers]
    if other := next((i for i, found in enumerate(columns) if not found.equals(columns[0])), None):
        raise ValueError(
            f"{lists[other].file} has other columns than {lists[0].file}: {', '.join(columns[other].names)} against"
            f" {', '.join(columns[0].names)}; all files of a list need the same"
        )
    return parquet.units(listed, footers, unit_rows)


def _attempt(
    settings: Fetch, units: list[Unit], config: dict[str, Any], done: Manifest | None, output: str, markers: str
) -> Manifest:
    from pipelines.stages.fetch import fetching
    from pipelines.stages.work import Stage, run, worker_count

    attempt = done.summary["attempts"] if done else 0
    results = run(
        Stage(name=f"fetch-{attempt}", markers=markers, noun="links"),
        units,
        fetching.fetch_unit,
        sizes=[u.size for u in units],
        shared={
            "folder": output,
            "attempt": attempt,
            "limits": settings.limits(worker_count(len(units))),
            "sha256": settings.sha256_column,
        },
    )
    new = tuple(FileEntry(**r["file"]) for r in results if r["file"]["rows"])
    failed = dict(sum((Counter(r["failed"]) for r in results), Counter[str]()).most_common())
    links = sum(u.size for u in units)
    result = Manifest(kind="pool", files=(*(done.files if done else ()), *new), config=config)
    assert links == result.rows + sum(failed.values()), f"{links} links, but {result.rows} fetched and {failed} failed"
    summary = {"links": links, "fetched": result.rows, "failed": failed, "attempts": attempt + 1}
    source = {"links": storage.absolute(settings.links)}
    return replace(result, source=source, summary=summary)


def _say(result: Manifest) -> None:
    fetched, links, failed = (result.summary[name] for name in ("fetched", "links", "failed"))
    print(f"{fetched:,} of {links:,} pictures, {result.bytes / 1e6:,.1f} MB")
    for reason, count in failed.items():
        print(f"{count:12,} {reason}")


def cli() -> None:
    """The command line."""
    command.run(Fetch, fetch, "Fetch the pictures that a list links to.")


if __name__ == "__main__":
    cli()
