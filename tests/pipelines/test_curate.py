"""Curation of small pools against its definition; partitioning, resuming and bad input."""

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.plain_reference import keep, spaced
from helpers.small_pools import WORDS, picture, pool_rows, read_all, write_parquet
from mlflow import MlflowClient

from llip import storage
from llip.data import manifest
from pipelines.curate import Curate, curate, curate_and_track
from pipelines.stages import card, card_page
from pipelines.stages.match import metadata


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return pool_rows(200)


@pytest.fixture
def settings(tmp_path: Path, rows: list[dict[str, Any]]) -> Curate:
    (tmp_path / "entries.json").write_text(json.dumps(WORDS))
    pool = write_parquet(tmp_path / "pool", rows)
    return Curate(pool=pool, output=str(tmp_path / "out/curated"), metadata=str(tmp_path / "entries.json"), t=20)


def expected(rows: list[dict[str, Any]], t: int, seed: int = 0) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows that stay and texts by entry, from the definition."""
    found = {
        (r["id"], i): [w for w in WORDS if f" {w} " in spaced(c)] for r in rows for i, c in enumerate(r["captions"])
    }
    counts = Counter(w for words in found.values() for w in words)
    kept = []
    for row in rows:
        stays = []
        for i in range(len(row["captions"])):
            drop = Fraction(1)
            for word in found[row["id"], i]:
                drop *= 1 - Fraction(t, max(counts[word], t))
            if keep(1 - drop, seed, row["id"], i):
                stays.append(i)
        if stays:
            kept.append(row | {name: [row[name][i] for i in stays] for name in ("captions", "caption_types")})
    return kept, counts


class TestCurate:
    @pytest.mark.usefixtures("ray_session")
    def test_keeps_exactly_what_the_definition_keeps(self, settings: Curate, rows: list[dict[str, Any]]) -> None:
        result = curate(settings)
        kept, counts = expected(rows, t=20)
        assert read_all(settings.output) == kept
        card = storage.read_json(f"{settings.output}/data_card.json")
        captions = sum(len(r["captions"]) for r in rows)
        assert card["rows"]["in"] == 200 and card["captions"]["in"] == captions
        assert card["rows"]["kept"] == len(kept) == result.rows
        assert card["captions"]["kept"] == sum(len(r["captions"]) for r in kept)
        for name in ("rows", "captions"):
            assert card[name]["kept"] + sum(card[name]["dropped"].values()) == card[name]["in"]
        assert card["matching"]["head"] == dict(counts) and card["matching"]["matches"] == counts.total()
        assert card["matching"]["tail_share"] == pytest.approx(
            sum(n for n in counts.values() if n < 20) / counts.total()
        )

    @pytest.mark.usefixtures("ray_session")
    def test_partitioning_does_not_change_the_kept_set(
        self, settings: Curate, rows: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        whole, pieces = (
            replace(settings, seed=3),
            replace(settings, seed=3, partition_rows=30, output=str(tmp_path / "other")),
        )
        pieces = replace(pieces, pool=write_parquet(tmp_path / "shuffled", rows[::-1], files=5, row_group_size=8))
        curate(whole)
        curate(pieces)
        by_id = [{r["id"]: r for r in read_all(s.output)} for s in (whole, pieces)]
        assert by_id[0] == by_id[1] == {r["id"]: r for r in expected(rows, t=20, seed=3)[0]}

    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_another_t_does_not_match_again(
        self, settings: Curate, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        curate(settings)
        capsys.readouterr()
        curate(replace(settings, t=5, output=str(tmp_path / "out/other")))
        printed = capsys.readouterr()
        assert "holds the matches already" in printed.out and "match:" not in printed.err
        assert read_all(tmp_path / "out/other") == expected(rows, t=5)[0]

    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_a_second_run_does_nothing(self, settings: Curate, capsys: pytest.CaptureFixture[str]) -> None:
        first = curate(settings)
        before = {p: p.stat().st_mtime_ns for p in Path(settings.output).rglob("*")}
        assert curate(settings) == first
        assert {p: p.stat().st_mtime_ns for p in Path(settings.output).rglob("*")} == before
        assert "curated already" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"other settings.*t: 20 → 21"):
            curate(replace(settings, t=21))

    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_the_card_is_one_run_of_mlflow(
        self, settings: Curate, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
        for _ in range(2):
            curate_and_track(replace(settings, output=f"{settings.output}-tracked"))
        client = MlflowClient(mlflow_store)
        experiment = client.get_experiment_by_name("llip")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'curated-tracked'")
        assert run.info.status == "FINISHED"
        kept = str(len(read_all(f"{settings.output}-tracked")))
        assert (run.data.params["t"], run.data.params["summary.rows.kept"]) == ("20", kept)
        assert {a.path for a in client.list_artifacts(run.info.run_id)} == {card.NAME, card_page.NAME}

    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_every_reason_for_a_drop_is_counted(self, tmp_path: Path) -> None:
        good = {"image": picture(1), "captions": ["a small cat"], "caption_types": ["k"], "nsfw": 0.0}
        changes: list[dict[str, Any]] = [
            {},
            {
                "captions": ["a small cat", "", "  \t", "cat", "a b cd", "no entry here"],
                "caption_types": list("abcdef"),
            },
            {"captions": []} | {"caption_types": []},
            {"captions": None},
            {"caption_types": ["one", "two"]},
            {"nsfw": 0.9},
            {"nsfw": None},
            {"image": b"junk"},
            {"image": None},
            {"image": picture(1, size=(9, 9))},
            {"image": picture(1, size=(64, 16))},
            {"captions": ["nothing that matches"]},
        ]
        rows = [{"id": str(i)} | good | change for i, change in enumerate(changes)]
        (tmp_path / "entries.txt").write_text("cat\na small\ncd\n")
        settings = Curate(
            pool=write_parquet(tmp_path / "pool", rows),
            output=str(tmp_path / "curated"),
            metadata=str(tmp_path / "entries.txt"),
            t=100,
            where=("nsfw < 0.5",),
            min_words=2,
            min_characters=7,
            min_side=10,
            max_aspect=3.0,
        )
        curate(settings)
        card = storage.read_json(f"{settings.output}/data_card.json")
        assert card["matching"]["head"] == {"cat": 6, "a small": 6}  # of the captions that the text rules leave
        assert [(r["id"], r["captions"], r["caption_types"]) for r in read_all(settings.output)] == [
            ("0", ["a small cat"], ["k"]),
            ("1", ["a small cat"], ["a"]),
        ]
        assert card["rows"]["dropped"] == {
            "no captions": 2,
            "caption types are not parallel to captions": 1,
            "excluded by a column": 2,
            "unreadable image": 2,
            "shorter side below the minimum": 1,
            "aspect ratio above the maximum": 1,
            "no caption kept": 1,
        }
        assert card["captions"]["dropped"] == {
            "empty": 2,
            "too few words": 1,
            "too few characters": 1,
            "matches no entry": 2,
            "its image was dropped": 7,
        }

    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_metadata_is_built_from_the_captions(self, settings: Curate) -> None:
        result = curate(replace(settings, metadata=None, t=None, metadata_min_count=5))
        card = storage.read_json(f"{settings.output}/data_card.json")
        assert {"a", "and", "cat", "dog"} <= set(card["matching"]["head"])
        assert result.summary["tail_share"] <= 0.06 and result.summary["t"] == card["matching"]["t"]

    @pytest.mark.usefixtures("ray_session")
    def test_a_bucket(self, settings: Curate, rows: list[dict[str, Any]], s3_bucket: str, tmp_path: Path) -> None:
        assert isinstance(settings.pool, str) and settings.metadata is not None
        for file in [*storage.listing(settings.pool), settings.metadata]:
            storage.write_bytes(f"{s3_bucket}/in/{Path(file).parent.name}/{Path(file).name}", Path(file).read_bytes())
        output = f"{s3_bucket}/out/curated"
        entries = f"{s3_bucket}/in/{tmp_path.name}/entries.json"
        result = curate(replace(settings, pool=f"{s3_bucket}/in/pool", metadata=entries, output=output))
        assert manifest.read(output, "curated") == result
        for entry in result.files:
            (tmp_path / "copy").mkdir(exist_ok=True)
            (tmp_path / "copy" / entry.name).write_bytes(storage.read_bytes(f"{output}/{entry.name}"))
        assert read_all(tmp_path / "copy") == expected(rows, t=20)[0]
        assert not [uri for uri in storage.listing(f"{s3_bucket}/out") if "/progress/" in uri]

    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_nothing_left_is_an_error(self, settings: Curate) -> None:
        with pytest.raises(ValueError, match=r"nothing of .*pool is left; dropped: .*'shorter side below the minimum'"):
            curate(replace(settings, min_side=1000))

    @pytest.mark.usefixtures("in_process", "undrawn")
    def test_metadata_that_matches_nothing_is_an_error(self, settings: Curate, tmp_path: Path) -> None:
        (tmp_path / "entries.json").write_text('["zebra"]')
        with pytest.raises(ValueError, match="matches any metadata entry"):
            curate(replace(settings, t=None))

    @pytest.mark.usefixtures("ray_session")
    def test_a_mistake_found_by_a_task_is_told_in_one_line(self, settings: Curate, rows: list[dict[str, Any]]) -> None:
        assert isinstance(settings.pool, str)
        write_parquet(Path(settings.pool), [*rows[:-1], rows[-1] | {"id": None}])
        file = Path(settings.pool, "part-1.parquet")
        pq.write_table(pq.read_table(file), file, write_statistics=False)  # they would tell before any task
        with pytest.raises(ValueError, match=r"^[^\n]*part-1.parquet: column 'id' is null in row 99[^\n]*$"):
            curate(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": 5, "tail_share": 0.1}, "exclude each other"),
        ({"t": 0}, "--t is 0"),
        ({"tail_share": 1.0}, "--tail-share is 1.0"),
        ({"metadata": "x.json", "metadata_min_count": 3}, "--metadata-min-count is about built metadata"),
        ({"max_aspect": 0.5}, "--max-aspect is 0.5"),
    ],
)
def test_contradicting_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curate(pool="pool", **changes)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("score < 1", "the pool has no column 'score'; it carries caption_types, nsfw"),
        ("nsfw", "has none of"),
        ("nsfw < low", "nothing to compare with double"),
        ('nsfw < "low"', "nothing to compare with double"),
    ],
)
def test_conditions_are_checked_before_work(settings: Curate, where: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curate(replace(settings, where=(where,)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.json", "7", "m.json cannot be read as metadata: it holds a int"),
        ("m.json", "[", "m.json cannot be read as metadata"),
        ("m.json", "[]", "m.json holds no entries"),
        ("m.json", '["a", 3]', "m.json: entry 1 is 3"),
        ("m.txt", "a\nb\na\n", "m.txt: entry 2 repeats entry 0: 'a'"),
        ("m.parquet", "junk", "m.parquet cannot be read as metadata"),
    ],
)
def test_unusable_metadata_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        metadata.load(str(tmp_path / name))


def test_metadata_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"/no/such.json does not exist; --metadata names"):
        metadata.load("/no/such.json")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(settings: Curate, tmp_path: Path) -> None:
    rows = pool_rows(6000)
    pool = write_parquet(tmp_path / "large", rows, files=10, row_group_size=100)
    whole = replace(settings, pool=pool, t=300, partition_rows=100)
    output, command = Path(whole.output), [sys.executable, "-m", "pipelines.curate", "--pool", pool, "--t", "300"]
    command += ["--output", whole.output, "--metadata", str(whole.metadata), "--partition-rows", "100"]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 240
    while len(finished := list(output.glob("progress/*/balance/*.json"))) < 10:
        assert process.poll() is None and time.monotonic() < deadline, "the run ends before it can be killed"
        time.sleep(0.02)
    process.kill()  # Ray's own processes end when their driver is gone
    process.wait()
    assert not (output / "manifest.json").exists()
    before = {path.stem: path.stat().st_mtime_ns for path in finished}
    files = {stem: (output / f"curated-{stem}.parquet").stat().st_mtime_ns for stem in before}
    subprocess.run(command, check=True)
    assert {stem: (output / f"curated-{stem}.parquet").stat().st_mtime_ns for stem in before} == files
    assert read_all(output) == expected(rows, t=300)[0]
