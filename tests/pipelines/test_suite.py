"""Suites of tasks: the tables of papers from a folder of tars, and the worst group of a set."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.evaluation_samples import picture, write_winogavil
from sklearn.metrics import f1_score

from llip import create_model
from llip.evaluation import zero_shot
from llip.evaluation.metrics import Metric
from llip.evaluation.sets import find_sets
from llip.evaluation.suites import SHIFTS, SUITES, Results, task_of
from llip.interop import save_model
from pipelines.evaluation_cache import read_items
from pipelines.suite import SuiteOfTasks, suite


def test_there_are_as_many_tasks_as_the_papers_say() -> None:
    llip, datacomp = SUITES["llip"], SUITES["datacomp"]
    assert (len(llip.tasks), len(datacomp.tasks)) == (22, 38)
    assert all(set(tasks) <= datacomp.tasks.keys() for tasks in datacomp.groups.values())
    assert [len(tasks) for tasks in datacomp.groups.values()] == [1, 6, 13, 3]
    assert "imagenet1k" not in llip.tasks
    assert datacomp.tasks["iwildcam"] == ("macro_f1",) and datacomp.tasks["winogavil"] == ("jaccard_of_10_and_more",)
    assert datacomp.tasks["pets"] == llip.tasks["pets"] == ("mean_per_class",)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("wds_vtab-cifar100_test", "cifar100"),
        ("wds_imagenet1k", "imagenet1k"),
        ("vtab-pets", "pets"),
        ("wds_imagenet-a_test", "imagenet-a"),
        ("wds_wilds-fmow_test", "fmow"),
        ("wds_mscoco_captions", "mscoco_2014_5k_test_image_text_retrieval"),
        ("wds_geode_test", "geode"),
        ("wds_wilds-iwildcam_test", "iwildcam"),
        ("retrieval-flickr_1k_test_image_text_retrieval", "flickr30k"),
    ],
)
def test_a_task_is_found_by_the_name_of_its_folder(name: str, task: str) -> None:
    assert task_of(name) == task


def test_scores_and_means_are_those_of_the_tasks_own_metrics() -> None:
    metrics = {f"wds_{task}/top1": Metric(0.1 * i, 0.01) for i, task in enumerate(("imagenet1k", *SHIFTS))}
    metrics |= {"wds_vtab-pets/top1": Metric(0.9, 0.1), "wds_vtab-pets/mean_per_class": Metric(0.8, 0.1)}
    metrics |= {"wds_flickr30k/text_to_image_r1": Metric(0.4, 0), "wds_flickr30k/image_to_text_r1": Metric(0.6, 0)}
    metrics |= {"wds_wilds-fmow/top1": Metric(0.9, 0.1), "wds_wilds-iwildcam/top1": Metric(0.9, 0.1)}
    metrics |= {"winogavil/jaccard": Metric(0.9, 0.2), "winogavil/jaccard_of_10_and_more": Metric(0.3, 0.1)}
    found = Results.of(SUITES["datacomp"], metrics)
    assert found.scores["pets"].value == 0.8 and found.scores["flickr30k"].value == 0.5
    value, count = found.mean(SHIFTS)
    assert value == pytest.approx(0.35) and count == 6
    assert found.mean(("imagenet1k", "svhn")) == (0.0, 1) and found.mean(("svhn",)) == (None, 0)
    assert found.missing["svhn"] == "no such set"
    assert found.missing["iwildcam"] == "wds_wilds-iwildcam gave no macro_f1"
    assert found.scores["winogavil"].value == 0.3
    assert found.mean(("flickr30k", "winogavil")) == (0.4, 2)
    assert found.missing["fmow"] == "wds_wilds-fmow gave no worst_group_top1"
    text = found.markdown({"imagenetv2": 0.15, "objectnet": 0.7})
    assert "| ImageNet distribution shifts | 0.350 | 6 of 6 |" in text and "| all | 0.370 | 10 of 38 |" in text
    assert "| imagenetv2 | 0.200 | 0.150 | +0.050 |" in text and "| mean | | | -0.025 |" in text
    assert "effective robustness" not in found.markdown({})
    with pytest.raises(ValueError, match="wds_pets and vtab-pets are both sets of the task pets"):
        Results.of(SUITES["llip"], {"wds_pets/top1": Metric(0, 0), "vtab-pets/top1": Metric(0, 0)})


def write_tars(folder: Path, classes: int, groups: Mapping[int, int] | None = None, rows: int = 8) -> None:
    """A classification set as CLIP_benchmark's exporter writes it; metadata as DataComp's."""
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for row in range(rows):
            members = {"cls": str(row % classes).encode(), "png": picture(row)}
            if groups is not None:
                with io.BytesIO() as buffer:
                    np.save(buffer, np.array([groups[row % len(groups)], 7]))
                    members["npy"] = buffer.getvalue()
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"s{row:07d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("".join(f"thing {c}\n" for c in range(classes)))


def test_a_folder_of_tars_becomes_the_tables_of_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_model(create_model("siglip_tiny"), str(tmp_path / "model"))
    for name in ("wds_vtab-pets_test", "wds_imagenetv2_test"):
        write_tars(tmp_path / "sets" / name, classes=3)
    write_tars(tmp_path / "sets" / "wds_geode_test", classes=6, groups={0: 4, 1: 9})
    settings: dict[str, Any] = {
        "checkpoint": str(tmp_path / "model"),
        "evaluation": str(tmp_path / "sets"),
        "device": "cpu",
    }
    found = suite(SuiteOfTasks(**settings, expected=("imagenetv2=0.5",)))
    assert found["llip"].scores.keys() == {"pets"}
    assert found["datacomp"].scores.keys() == {"pets", "imagenetv2", "geode"}
    out = capsys.readouterr().out
    assert "missing: food101 (no such set)" in out and "| imagenetv2 |" in out and "| all |" in out
    assert (tmp_path / "model" / "suite.md").read_text().strip() in out
    with pytest.raises(ValueError, match=r"--expected svhn: no set of such a task is evaluated; there are pets, "):
        suite(SuiteOfTasks(**settings | {"output": str(tmp_path / "out")}, expected=("svhn=0.5",)))
    assert not (tmp_path / "out").exists(), "nothing is evaluated first"
    with pytest.raises(ValueError, match="--expected imagenetv2=58: a task and an accuracy"):
        SuiteOfTasks(**settings, expected=("imagenetv2=58",))


def test_iwildcam_and_winogavil_count_by_their_own_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_model(create_model("siglip_tiny"), str(tmp_path / "model"))
    write_tars(tmp_path / "sets" / "wds_wilds-iwildcam_test", classes=4, rows=12)
    write_winogavil(tmp_path / "sets" / "winogavil")
    job = SuiteOfTasks(checkpoint=str(tmp_path / "model"), evaluation=str(tmp_path / "sets"), device="cpu")
    found = suite(job)["datacomp"]
    items = {
        "iwildcam": read_items(job.checkpoint, "wds_wilds-iwildcam_test")["macro_f1"],
        "winogavil": read_items(job.checkpoint, "winogavil")["jaccard_of_10_and_more"],
    }
    label, predicted = items["iwildcam"].stratum_I, items["iwildcam"].predicted_I
    assert found.scores["iwildcam"].value == pytest.approx(f1_score(label, predicted, average="macro", labels=range(4)))
    assert found.scores["winogavil"].value == items["winogavil"].score_I.mean() and len(items["winogavil"].score_I) == 2
    assert found.mean(("iwildcam", "winogavil"))[1] == 2 and "gave no" not in capsys.readouterr().out
    again = suite(job)["datacomp"]
    assert {n: m.value for n, m in again.scores.items()} == {n: m.value for n, m in found.scores.items()}


def test_metadata_of_tars_are_groups_and_the_worst_counts(tmp_path: Path) -> None:
    write_tars(tmp_path / "geode", classes=6, groups={0: 4, 1: 9, 2: 4}, rows=9)
    (source,) = find_sets(str(tmp_path))
    data = source.read()
    assert data.table["group"].to_pylist() == [4, 9, 4] * 3
    above = np.array([0, 1, 5, 0, 7, 0, 0, 0, 3])  # classes that score above the true one
    label = data.table["label"].to_numpy()
    found = zero_shot.accuracies(above, np.ones(9, int), label, 6, group_N=data.table["group"].to_numpy())
    assert found["top1"].value == pytest.approx(5 / 9)
    assert found["worst_group_top1"].value == pytest.approx(min(4 / 6, 1 / 3))
    assert found["worst_group_top5"].value == pytest.approx(min(5 / 6, 2 / 3))
    weights = np.array([[1, 0, 1, 1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0, 0, 1, 0]], float)
    assert found["worst_group_top1"].means(weights).tolist() == pytest.approx([4 / 6, 1 / 3]), "a group not drawn"


def test_metadata_that_are_none_are_named(tmp_path: Path) -> None:
    write_tars(tmp_path / "geode", classes=6, groups={0: 1})
    with tarfile.open(tmp_path / "geode" / "test" / "0.tar", "w") as tar:
        for suffix, content in {"cls": b"0", "png": picture(0), "npy": b"no array"}.items():
            member = tarfile.TarInfo(f"s0.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (source,) = find_sets(str(tmp_path))
    with pytest.raises(ValueError, match=r"0.tar, sample s0: its .npy member cannot be read"):
        source.read()
