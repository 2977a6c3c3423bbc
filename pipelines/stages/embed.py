"""Shards with the embeddings that a model makes of their images and captions, for distillation."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from llip import storage
from llip.contrastive import ContrastiveModel
from llip.data import integrity
from llip.data.manifest import FileEntry
from llip.data.shards import TEACHER_CAPTIONS, TEACHER_IMAGE
from llip.evaluation.encode import decoded, encode_texts, model_input
from llip.model.features import Pooled
from pipelines import schema
from pipelines.stages import write
from pipelines.stages.columns import whole

OWN = (TEACHER_IMAGE, TEACHER_CAPTIONS)


@torch.inference_mode()
def embed_shard(
    shard: FileEntry, *, shards: str, folder: str, model: ContrastiveModel, batch_size: int, device: str
) -> dict[str, Any]:
    """Write a shard again, with the same rows in the same row groups. Returns its file entry.

    Embeddings have unit length and are stored in fp16. They replace those of an earlier teacher. Raises ValueError for
    a file that is not the one of the manifest, and for an image that cannot be decoded, naming its row.
    """
    integrity.check_checksum(shards, shard)
    model = model.eval().to(device)
    vector = pa.list_(pa.float16(), model.config.embed_dim)
    with storage.opened(storage.join(shards, shard.name)) as handle, ThreadPoolExecutor(4) as pool:
        file = pq.ParquetFile(handle)
        kept = [field for field in file.schema_arrow.remove_metadata() if field.name not in OWN]
        columns = pa.schema([*kept, pa.field(TEACHER_IMAGE, vector), pa.field(TEACHER_CAPTIONS, pa.list_(vector))])
        with write.parquet_file(folder, shard.name, columns) as target:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=[field.name for field in kept])
                where = f"{storage.join(shards, shard.name)}, row group {group}"
                images = np.concatenate(list(_image_vectors(where, rows, model, batch_size, pool)))
                captions = whole(rows[schema.CAPTIONS])
                of_captions = _unit(model, encode_texts(model, captions.flatten().to_pylist()))
                lists = pa.ListArray.from_arrays(
                    pa.array(np.cumsum([0, *captions.value_lengths().to_pylist()]), pa.int32()),
                    _vectors(of_captions, vector),
                )
                target.write(
                    rows.append_column(TEACHER_IMAGE, _vectors(images, vector)).append_column(columns[-1], lists)
                )
    return asdict(target.entry)


def _image_vectors(
    where: str, rows: pa.Table, model: ContrastiveModel, batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[np.ndarray]:
    for _, pixels in decoded(where, rows, batch_size, model.config, pool):
        yield _unit(model, model.encode_image(model_input(model, pixels)))


def _unit(model: ContrastiveModel, features: Any) -> np.ndarray:
    """Vectors of unit length, fp16. Raises ValueError for a model that gives none, or one that is not finite."""
    assert isinstance(features, Pooled)
    vectors = torch.nn.functional.normalize(features.vector_BD.float(), dim=-1)
    if not torch.isfinite(vectors).all():
        raise ValueError("the model gives embeddings that are not finite: its weights are broken")
    return vectors.half().cpu().numpy()


def _vectors(values: np.ndarray, kind: pa.FixedSizeListType) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind)
