"""Curation when things break: damaged files, workers that die, an object store that fails at times."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from helpers.faulty_store import failing
from helpers.s3 import s3_environment
from helpers.small_pools import WORDS, pool_rows, write_parquet

from llip import storage
from llip.data import manifest
from pipelines import logs
from pipelines.curate import Curate, cli, curate
from pipelines.stages import read
from pipelines.stages.work import Stage, run


def test_a_truncated_parquet_file_is_refused_before_any_work(tmp_path: Path) -> None:
    uri = write_parquet(tmp_path / "pool", pool_rows(60))
    file = tmp_path / "pool/part-1.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file} cannot be read as Parquet"):
        read.open_pools([uri], partition_rows=10)


@pytest.mark.usefixtures("in_process", "undrawn")
def test_after_a_damaged_file_is_restored_only_what_was_not_finished_is_done(tmp_path: Path) -> None:
    rows = [row | {"image": row["image"] + os.urandom(2000)} for row in pool_rows(400)]
    (tmp_path / "entries.json").write_text(json.dumps(WORDS))
    settings = Curate(
        pool=write_parquet(tmp_path / "pool", rows, files=8),
        output=str(tmp_path / "out/curated"),
        metadata=str(tmp_path / "entries.json"),
        t=100,
    )
    file = tmp_path / "pool/part-7.parquet"
    content = file.read_bytes()
    group = pq.read_metadata(file).row_group(0)
    captions = next(group.column(i) for i in range(group.num_columns) if "captions" in group.column(i).path_in_schema)
    at = captions.dictionary_page_offset + 40
    file.write_bytes(content[:at] + bytes(200) + content[at + 200 :])
    with pytest.raises(ValueError, match=rf"^{file} cannot be read as Parquet \([^\n]*$"):
        curate(settings)
    assert not Path(settings.output, manifest.NAME).exists()
    file.write_bytes(content)
    markers = [p.stem for p in (tmp_path / "out/matches").rglob("progress/match/*.json")]
    finished = [next((tmp_path / "out/matches").rglob(f"matches-{stem}.arrows")) for stem in markers]
    before = {path: path.stat().st_mtime_ns for path in finished}
    result = curate(settings)
    assert before and {path: path.stat().st_mtime_ns for path in finished} == before
    assert curate(replace(settings, output=str(tmp_path / "whole/curated"))).files == result.files


@pytest.mark.usefixtures("ray_session")
def test_the_partition_of_a_worker_that_dies_is_done_by_another(tmp_path: Path) -> None:
    """The first task has ten of forty partitions; its worker dies in the sixth, after four results."""
    results = run(
        Stage(name="dying", markers=str(tmp_path / "markers")),
        range(40),
        dying(),
        sizes=[1] * 40,
        shared={"folder": str(tmp_path)},
    )
    assert results == [{"square": i * i} for i in range(40)]
    calls = [len((tmp_path / f"calls-{i}").read_text()) for i in range(40)]
    assert calls == [2 if i == 5 else 1 for i in range(40)]


def dying() -> Callable[..., dict[str, Any]]:
    def square(partition: int, *, folder: str) -> dict[str, Any]:
        calls = Path(folder, f"calls-{partition}")
        with calls.open("a") as file:
            file.write("x")
        if partition == 5 and len(calls.read_text()) == 1:
            os._exit(1)
        return {"square": partition * partition}

    return square


@pytest.mark.slow
@pytest.mark.usefixtures("in_process", "undrawn")
def test_an_object_store_that_fails_at_times_and_one_that_fails_for_good(
    tmp_path: Path, s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At times: the command under Ray. For good: the command in this process, where an outage is not a minute."""
    monkeypatch.setattr(storage, "DELAYS", (0.1, 0.2))
    monkeypatch.setattr(logs, "configure", lambda level: None)
    (tmp_path / "entries.json").write_text(json.dumps(WORDS))
    local = write_parquet(tmp_path / "pool", pool_rows(240), files=6)
    for file in storage.listing(local):
        storage.write_bytes(f"{s3_bucket}/pool/{Path(file).name}", Path(file).read_bytes())
    options = ["--pool", f"{s3_bucket}/pool", "--metadata", str(tmp_path / "entries.json"), "--t", "50"]

    def arguments(name: str) -> list[str]:
        return [*options, "--partition-rows", "40", "--output", f"{s3_bucket}/{name}/curated"]

    def curated_here(endpoint: str, name: str) -> object:
        """Exit code of the command."""
        for variable, value in s3_environment(endpoint).items():
            monkeypatch.setenv(variable, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        monkeypatch.setattr(sys, "argv", ["curate.py", *arguments(name)])
        try:
            cli()
        except SystemExit as end:
            return end.code
        return 0

    assert curated_here(s3_server, "whole") == 0
    whole = manifest.read(f"{s3_bucket}/whole/curated", "curated")
    with failing(s3_server) as (endpoint, faults):
        faults.fault = lambda method, path, number: None if number % 7 else "500"
        command = [sys.executable, "-m", "pipelines.curate", *arguments("shaky")]
        environment = os.environ | s3_environment(endpoint)
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
        assert faults.failed > 5
        assert manifest.read(f"{s3_bucket}/shaky/curated", "curated").files == whole.files

        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 2)
        faults.fault = lambda method, path, _: (
            "500" if method == "GET" and path.endswith("pool/part-5.parquet") else None
        )
        capsys.readouterr()
        assert curated_here(endpoint, "broken") == 2
        assert "part-5.parquet" in capsys.readouterr().err.splitlines()[-1]
        assert not storage.exists(f"{s3_bucket}/broken/curated/{manifest.NAME}")
        faults.fault = lambda method, path, number: None
        assert curated_here(endpoint, "broken") == 0
        assert manifest.read(f"{s3_bucket}/broken/curated", "curated").files == whole.files
