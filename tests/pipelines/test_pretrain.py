"""The whole chain on a small corpus, and what happens when it is run again or tracked by a dead server."""

import io
import json
import logging
import shutil
import socket
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llip.runs.notebook import published
from llip.runs.stopping import NonFiniteError
from llip.runs.tracking import default_store, open_run, read_metrics, tracking_of
from pipelines.evaluation_cache import SCORES, scores_of
from pipelines.pretrain import Pretrain, RunResult, pretrain

IMAGES, STEPS = 192, 4
SHORT = {"steps": STEPS}

pytestmark = pytest.mark.usefixtures("undrawn")


@dataclass(frozen=True)
class Chain:
    output: str
    outcome: RunResult


@pytest.fixture(scope="module")
def chain(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The whole chain, once."""
    output = str(tmp_path_factory.mktemp("chain") / "output")
    outcome = pretrain(Pretrain(output=output, corpus_images=IMAGES, overrides=SHORT, workers=0))
    return Chain(output, outcome)


def _numbers(folder: str) -> list[tuple[float, ...]]:
    names = ("step", "loss", "gradient_norm", "logit_scale")
    return [tuple(line[name] for name in names) for line in read_metrics(folder) if "loss" in line]


def test_the_chain_leaves_every_stage_and_ends_with_metrics(chain: Chain) -> None:
    output, outcome = Path(chain.output), chain.outcome
    assert {p.name for p in output.iterdir()} >= {"pool", "evaluation", "curated", "shards", "runs", "mlflow.db"}
    assert outcome.folder == f"{output}/runs/llip_dense_tiny_k8-steps{STEPS}-seed0"
    assert outcome.checkpoint == f"{outcome.folder}/checkpoints/step-{STEPS:08d}"
    assert outcome.metrics["scenes_in_style/text_to_image_map"].chance > 0
    saved = json.loads((Path(outcome.folder) / "metrics.json").read_text())["metrics"]
    assert saved["concept/top1"]["value"] == outcome.metrics["concept/top1"].value


def test_one_mlflow_run_holds_training_and_evaluation(chain: Chain) -> None:
    tracking = tracking_of(chain.outcome.folder)
    assert tracking is not None and (tracking.uri, tracking.artifact_location) == default_store(chain.output)
    client, run_id = open_run(tracking, chain.outcome.folder)
    run = client.get_run(run_id)
    assert run.data.params["model.vision.tokens"] == "8" and run.data.params["optimizer.learning_rate"] == "0.0005"
    last = read_metrics(chain.outcome.folder)[0]
    assert run.data.metrics.keys() >= {published(n) for n in last.keys() - {"step"} | chain.outcome.metrics.keys()}
    told = {"recipe": "llip_dense_tiny_k8", "family": "llip", "K": "24", "dataset": "shards", "gpus": "none"}
    assert run.data.tags.items() >= told.items() and run.data.tags["mlflow.user"]
    note = run.data.tags["mlflow.note.content"]
    assert (
        f"- `steps: 1200 → {STEPS}`" in note and "uv run pipelines/pretrain.py" in note and "| concept | top1 |" in note
    )
    assert {d.dataset.name for d in run.inputs.dataset_inputs} >= {"shards", "concept", "scenes_in_style"}
    assert {a.path for a in client.list_artifacts(run_id)} >= {"config.json", "data_card.html", "report.html"}
    others = {r.info.run_name: r for r in client.search_runs([run.info.experiment_id])}
    notes = {name: r.data.tags["mlflow.note.content"] for name, r in others.items()}
    assert "used by [shards]" in notes["curated"] and "made by [curated]" in notes["shards"]
    assert f"used by [{run.info.run_name}]" in notes["shards"] and "what [shards]" in note
    digests = {d.dataset.name: d.dataset.digest for d in run.inputs.dataset_inputs}
    made = {d.dataset.name: d.dataset.digest for d in others["shards"].inputs.dataset_inputs}
    assert digests["shards"] == made["shards"] and set(made) == {"curated", "shards"}


def test_the_same_command_again_does_nothing(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in Path(chain.output).rglob("*.parquet")}
    weights = Path(chain.outcome.checkpoint) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = pretrain(Pretrain(output=chain.output, corpus_images=IMAGES, overrides=SHORT, workers=0))
    text = capsys.readouterr().out
    assert (
        text.startswith(f"{chain.outcome.folder}: ") and f"{STEPS} steps of 64 images at a time" in text.splitlines()[0]
    )
    assert f"{chain.outcome.folder} is trained already" in text
    assert "scenes_in_style/text_to_image_map" in text and chain.outcome.checkpoint in text
    assert f"uv run pipelines/ui.py --output {chain.output}" in text
    assert again == chain.outcome and weights.stat().st_mtime_ns == before
    assert {p: p.stat().st_mtime_ns for p in Path(chain.output).rglob("*.parquet")} == stamps


def test_missing_metrics_of_a_finished_run_are_made_again(chain: Chain) -> None:
    (Path(chain.outcome.folder) / "metrics.json").unlink()
    again = pretrain(Pretrain(output=chain.output, corpus_images=IMAGES, overrides=SHORT, workers=0))
    assert again.metrics == chain.outcome.metrics


def test_the_folder_of_a_run_is_a_recipe_that_repeats_it_to_the_bit(
    chain: Chain, tmp_path: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path)
    settings = Pretrain(recipe=chain.outcome.folder, shards=f"{chain.output}/shards", output=str(tmp_path), workers=0)
    again = pretrain(settings)
    assert again.folder.rpartition("/")[2] == chain.outcome.folder.rpartition("/")[2]
    weights = (Path(outcome.checkpoint) / "model.safetensors" for outcome in (chain.outcome, again))
    first, second = (file.read_bytes() for file in weights)
    assert first == second and _numbers(again.folder) == _numbers(chain.outcome.folder)


def test_another_objective_uses_the_same_data_beside_it(chain: Chain) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in Path(chain.output).rglob("*.parquet")}
    other = pretrain(
        Pretrain(
            output=chain.output,
            corpus_images=IMAGES,
            recipe="clip_tiny",
            overrides=SHORT | {"evaluate_every": 2},
            workers=0,
        )
    )
    assert other.folder.endswith(f"clip_tiny-steps{STEPS}-seed0")
    assert {p: p.stat().st_mtime_ns for p in Path(chain.output).rglob("*.parquet")} == stamps
    curve = [line["step"] for line in read_metrics(other.folder) if "concept/top1" in line]
    assert curve[:2] == [2, 4]
    scores = scores_of((Path(other.folder) / SCORES).read_bytes())
    for name in ("concept/top1", "scenes_in_style/text_to_image_map"):
        data, metric = name.split("/")
        assert scores[data][metric].value == pytest.approx(other.metrics[name].value), "of the last evaluation"


def test_a_name_that_is_taken_is_refused_with_what_differs(chain: Chain) -> None:
    name = chain.outcome.folder.rsplit("/", 1)[1]
    with pytest.raises(ValueError, match=r"another configuration \(seed: 0 → 1\); choose another --name"):
        pretrain(
            Pretrain(output=chain.output, corpus_images=IMAGES, overrides=SHORT | {"seed": 1}, workers=0, name=name)
        )


def test_a_dead_tracking_server_costs_a_report(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with caplog.at_level(logging.WARNING, "llip"):
        outcome = pretrain(Pretrain(output=str(tmp_path), shards=f"{chain.output}/shards", overrides=SHORT, workers=0))
    assert _numbers(outcome.folder) == _numbers(chain.outcome.folder)
    reports = [r.getMessage() for r in caplog.records if "were not delivered" in r.getMessage()]
    assert len(reports) == 1 and uri in reports[0] and "connection refused" in reports[0]


@pytest.mark.slow  # a tenth of the whole default suite: seven processes start
def test_two_ray_workers_learn_what_one_process_does(chain: Chain, tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path)
    outcome = pretrain(Pretrain(output=str(tmp_path), shards=f"{chain.output}/shards", overrides=SHORT, workers=2))
    one, two = _numbers(chain.outcome.folder), _numbers(outcome.folder)
    assert [line[0] for line in two] == [line[0] for line in one]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4)


@pytest.mark.slow
def test_what_a_restart_would_not_cure_is_raised_at_once(chain: Chain, tmp_path: Path) -> None:
    """Ray would start a worker that raises again and again."""
    settings = Pretrain(
        output=str(tmp_path),
        shards=f"{chain.output}/shards",
        overrides=SHORT | {"learning_rate": 1e30},
        workers=2,
    )
    with pytest.raises(NonFiniteError, match="was not made"):
        pretrain(settings)


def test_pools_are_trained_on_as_they_are(chain: Chain, tmp_path: Path, empty_database: Path) -> None:
    """A WebDataset tar and Parquet as Hugging Face has it, of 48 of the corpus's images each, become one."""
    (first, *_) = sorted(Path(chain.output, "pool").rglob("*.parquet"))
    rows = pq.read_table(first, columns=["image", "captions"]).slice(0, 48).to_pylist()
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "00000.tar", "w") as tar:
        for number, row in enumerate(rows):
            for suffix, content in (("webp", row["image"]), ("txt", row["captions"][0].encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    images = [{"bytes": row["image"], "path": None} for row in rows]
    table = pa.table({"image": images, "text": [row["captions"][0] for row in rows]})
    (tmp_path / "hub").mkdir()
    pq.write_table(table, tmp_path / "hub" / "train-00000-of-00001.parquet")
    pools = tuple(str(tmp_path / pool) for pool in ("tar", "hub"))
    shutil.copytree(empty_database.parent, tmp_path / "output")
    settings = Pretrain(
        pool=pools,
        curation="none",
        output=str(tmp_path / "output"),
        recipe="clip_tiny",
        overrides={"epochs": 1.5, "batch_size": 16},
        workers=0,
    )
    lines = read_metrics(pretrain(settings).folder)
    assert [line["step"] for line in lines] == [9]  # 1.5 × (48 + 48) / 16
    shards = (tmp_path / "output" / "shards").rglob("*.parquet")
    ids = [i for shard in shards for i in pq.read_table(shard, columns=["id"])["id"].to_pylist()]
    assert Counter(i.partition("/")[0] for i in ids) == {"tar": 48, "hub": 48}
