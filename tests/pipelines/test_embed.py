"""A teacher's embeddings beside the rows of shards: what is stored, what the loader reads, what a student learns."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.shard_folders import row, write_shards
from helpers.short_runs import train_noted
from torch.nn.functional import normalize

import llip
from llip import recipes
from llip.config import DataConfig, ObjectiveConfig
from llip.data import integrity, manifest
from llip.data.loader import Batch, LaneLoader
from llip.data.tokenizer import tokenize
from llip.interop import save_model
from llip.runs.tracking import read_metrics
from pipelines.embed import Embed, embed

ROWS = 60
CONFIG = DataConfig(batch_size=16, captions_per_image=2, threads=2)


def first_batch(shards: str, **options: Any) -> Batch:
    with (
        LaneLoader(shards, CONFIG, image_size=16, context_length=16, seed=5, **options) as loader,
        closing(loader.iter_from(0)) as batches,
    ):
        return next(batches)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plain") / "shards"
    return write_shards(folder, [row(i) for i in range(ROWS)], files=2, row_group_size=8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(3)
    folder = str(tmp_path_factory.mktemp("teacher"))
    save_model(llip.create_model("clip_tiny"), folder)
    return folder


@pytest.fixture(scope="module")
def taught(plain: str, teacher: str, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> str:
    folder = str(tmp_path_factory.mktemp("taught"))
    embed(Embed(checkpoint=teacher, shards=plain, output=folder))
    return folder


def test_rows_keep_their_groups_and_gain_what_the_teacher_makes_of_them(plain: str, teacher: str, taught: str) -> None:
    model, preprocess, tokens = llip.load(teacher)
    before, after = manifest.read(plain, "shards"), manifest.read(taught, "shards")
    integrity.check_checksums(taught, after)
    assert after.summary["teacher"]["logit_scale"] == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    for old, new in zip(before.files, after.files, strict=True):
        files = [pq.ParquetFile(Path(folder, file.name)) for folder, file in ((plain, old), (taught, new))]
        assert files[0].num_row_groups == files[1].num_row_groups
        tables = [file.read() for file in files]
        assert tables[0].equals(tables[1].select(tables[0].column_names))
        for found in tables[1].slice(0, 3).to_pylist():
            image = model.encode_image(preprocess(found["image"])[None]).vector_BD  # type: ignore[union-attr]
            texts = model.encode_text(tokens(found["captions"])).vector_BD  # type: ignore[union-attr]
            for expected, stored in ((image[0], found["teacher_image"]), (texts, found["teacher_captions"])):
                difference = normalize(expected, dim=-1) - torch.tensor(np.array(stored, dtype=np.float32))
                assert difference.abs().max() < 1e-3


def test_a_batch_has_the_embeddings_of_its_images_and_of_the_captions_that_were_drawn(plain: str, taught: str) -> None:
    batch, without = first_batch(taught, taught=True), first_batch(plain)
    assert torch.equal(batch.token_ids, without.token_ids) and torch.equal(batch.images, without.images)
    assert without.taught is None and batch.taught is not None
    stored = {r["id"]: r for file in Path(taught).glob("*.parquet") for r in pq.read_table(file).to_pylist()}
    images, captions = batch.taught
    for place, name in enumerate(batch.sample_ids):
        assert np.array_equal(images[place].numpy(), np.array(stored[name]["teacher_image"], np.float16))
        for c in range(CONFIG.captions_per_image):
            words = tokenize(stored[name]["captions"], 16)
            drawn = batch.token_ids[c * CONFIG.batch_size + place]
            index = next(i for i, ids in enumerate(words) if ids[: len(drawn)].tolist() == drawn[: len(ids)].tolist())
            expected = np.array(stored[name]["teacher_captions"][index], np.float16)
            assert np.array_equal(captions[c * CONFIG.batch_size + place].numpy(), expected)


def test_a_student_comes_to_score_like_its_teacher(teacher: str, taught: str, tmp_path: Path) -> None:
    recipe = recipes.recipe("clip_tiny")
    config = replace(
        recipe,
        objective=ObjectiveConfig(loss="softmax", distillation=1.0),
        data=replace(CONFIG, batch_size=16),
        steps=30,
        precision="fp32",
        log_every=1,
        optimizer=replace(recipe.optimizer, warmup_share=0.1, learning_rate=1e-3),
    )
    train_noted(config, taught, str(tmp_path))
    losses = [line["loss"] for line in read_metrics(str(tmp_path)) if "loss" in line]
    assert len(losses) == config.steps and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


def test_done_is_done_and_others_are_refused(plain: str, teacher: str, taught: str, tmp_path: Path) -> None:
    written = Path(taught, "manifest.json").stat().st_mtime_ns
    embed(Embed(checkpoint=teacher, shards=plain, output=taught))
    assert Path(taught, "manifest.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="is the folder of --shards"):
        embed(Embed(checkpoint=teacher, shards=plain, output=plain))
    save_model(llip.create_model("llip_tiny_k8"), str(tmp_path / "llip"))
    with pytest.raises(ValueError, match="mixes its tokens by captions"):
        embed(Embed(checkpoint=str(tmp_path / "llip"), shards=plain, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"no embeddings of a teacher; pipelines/embed.py"):
        first_batch(plain, taught=True)


@pytest.mark.usefixtures("in_process")
def test_sets_of_different_teachers_are_refused(plain: str, taught: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    save_model(llip.create_model("siglip_tiny"), str(tmp_path / "other"))
    embed(Embed(checkpoint=str(tmp_path / "other"), shards=plain, output=str(tmp_path / "out")))
    with pytest.raises(ValueError, match="embeddings of different teachers"):
        LaneLoader((taught, str(tmp_path / "out")), CONFIG, image_size=16, context_length=16, seed=5, taught=True)


def test_a_share_that_contradicts_itself() -> None:
    with pytest.raises(ValueError, match=r"objective.distillation is 1.5"):
        ObjectiveConfig(distillation=1.5)
    with pytest.raises(ValueError, match=r"objective.teacher_scale is 3"):
        ObjectiveConfig(teacher_scale=3.0)
    with pytest.raises(ValueError, match=r"data.synthetic_share is 0.5; it has to be 0 where"):
        recipe = recipes.recipe("clip_tiny")
        replace(recipe, objective=ObjectiveConfig(distillation=0.5), data=replace(CONFIG, synthetic_share=0.5))
