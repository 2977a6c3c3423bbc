"""Links that are curated by their captions before an image is fetched."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.misbehaving_server import Site, serving
from helpers.small_pools import pool_rows, read_all, write_parquet

from llip import storage
from pipelines.curate import Curate, curate
from pipelines.fetch import Fetch, fetch
from pipelines.shard import Shard, shard
from pipelines.stages import read

ROWS = 60


@pytest.fixture
def site() -> Iterator[Site]:
    rows = pool_rows(ROWS)
    pages: dict[str, Any] = {f"/{row['id']}": (lambda h, data=row["image"]: h.answer(200, data)) for row in rows}
    pages["/row-0"] = lambda h: h.answer(410)
    with serving(pages) as site:
        yield site


def write_links(folder: Path, site: Site | None, **columns: list[Any]) -> str:
    table = pa.Table.from_pylist(pool_rows(ROWS)).drop_columns("image")
    address = site.address if site else "http://example.com"
    urls = pa.array([f"{address}/{name}" for name in table["id"].to_pylist()])
    folder.mkdir()
    table = table.append_column("url", urls)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, folder / "part.parquet", row_group_size=25)
    return str(folder)


@pytest.mark.usefixtures("in_process", "undrawn")
@pytest.mark.parametrize("online", [False, True])
def test_curating_before_fetching_keeps_what_curating_after_it_keeps(tmp_path: Path, site: Site, online: bool) -> None:
    links = Curate(pool=write_links(tmp_path / "links", site), output=str(tmp_path / "curated"), online=online, t=9)
    pictured = replace(
        links,
        pool=write_parquet(tmp_path / "pool", pool_rows(ROWS)),
        output=str(tmp_path / "imaged"),
        matches=str(tmp_path / "matches-2"),
    )
    curate(links)
    curate(pictured)
    expected = {row["id"]: row for row in read_all(pictured.output)}
    found = read_all(links.output)
    assert "image" not in found[0] and 0 < len(found) <= ROWS
    cards = [storage.read_json(f"{folder}/data_card.json") for folder in (links.output, pictured.output)]
    of_pictures = [(card.pop("shorter_side_pixels"), card.pop("image_bytes_below")) for card in cards]
    assert of_pictures[0] == ({}, {}) and all(of_pictures[1]) and cards[0] == cards[1]
    assert site.address in Path(links.output, "data_card.html").read_text(), "samples are shown by their addresses"

    with pytest.raises(ValueError, match=r"curated holds curated links; pipelines/fetch.py --links"):
        shard(Shard(curated=links.output, output=str(tmp_path / "shards")))
    settings = Fetch(links=links.output, output=str(tmp_path / "fetched"), allow=("127.0.0.1/32",), backoff=0.01)
    fetched = fetch(settings)
    assert fetched.kind == "curated" and fetched.summary["failed"] == {"HTTP 410": int("row-0" in expected)}
    assert fetch(settings).summary["attempts"] == 2, "what failed is tried again"
    expected.pop("row-0")
    shard(Shard(curated=settings.output, output=str(tmp_path / "shards")))
    sharded = {row.pop("url"): row for row in read_all(tmp_path / "shards")}
    assert {row["id"]: row for row in sharded.values()} == expected
    assert all(url.endswith("/" + row["id"]) for url, row in sharded.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_side": 100}, "--min-side ask"),
        ({"preset": "datacomp_basic"}, "--min-side and --max-aspect ask"),
        ({"dedup": "duplicates"}, "--dedup ask"),
    ],
)
def test_rules_about_pictures_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    settings = Curate(pool=write_links(tmp_path / "links", None), output=str(tmp_path / "curated"))
    if "dedup" in changes:
        changes = {"dedup": replace(settings.dedup, duplicates=True)}
    with pytest.raises(ValueError, match=rf"links holds links, and {message} for images"):
        curate(replace(settings, **changes))


def test_links_beside_pictures_are_refused(tmp_path: Path) -> None:
    pools = write_links(tmp_path / "links", None), write_parquet(tmp_path / "pool", pool_rows(4))
    with pytest.raises(ValueError, match=r"--pool: .*links has links, others have images"):
        read.open_pools(pools, partition_rows=10)


@pytest.mark.usefixtures("in_process", "undrawn")
def test_a_list_of_another_format_becomes_a_pool_of_links(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("src,alt\nhttp://a/1,a cat\nhttp://a/2,a dog\nhttp://a/3,cat\n")
    settings = Fetch(links=str(tmp_path / "list.csv"), output=str(tmp_path / "links"), only_list=True)
    result = fetch(settings)
    assert (result.kind, result.rows) == ("pool", 3) and fetch(settings) == result
    (tmp_path / "entries.json").write_text('["cat"]')
    curate(Curate(pool=settings.output, output=str(tmp_path / "curated"), metadata=str(tmp_path / "entries.json")))
    assert {r["url"]: r["captions"] for r in read_all(tmp_path / "curated")} == {
        "http://a/1": ["a cat"],
        "http://a/3": ["cat"],
    }
    with pytest.raises(ValueError, match=r"links was made with other settings \(only_list"):
        fetch(replace(settings, only_list=False))
