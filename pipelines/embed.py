"""Add to shards what another model makes of their images and captions: a teacher for distillation.

    uv run pipelines/embed.py --checkpoint output/runs/clip_tiny-seed0 --shards output/shards --output output/taught
    uv run pipelines/pretrain.py --shards output/taught --evaluation output/evaluation --objective.distillation 0.5

The teacher is any model with one vector an image and a caption: a run, or weights of others. Rows keep their order, so
that a student reads the same batches with and without it. A run that was interrupted goes on where it stopped when it
is started again.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from llip import storage
from llip.data import integrity, manifest
from llip.data.manifest import FileEntry, Manifest
from llip.lease import sole_writer
from pipelines import command
from pipelines.checkpoints import WeightsOptions

if TYPE_CHECKING:  # torch is imported once the options are right, so that --help and a refusal come at once
    from llip.contrastive import ContrastiveModel


@dataclass(frozen=True, kw_only=True)
class Embed(WeightsOptions):
    """Who teaches, and on what."""

    checkpoint: str
    """The teacher: a run's folder, a checkpoint, a model's folder, models:/… of MLflow, or a file of weights."""
    shards: str = "output/shards"
    """Folder of finished shards."""
    output: str = "output/taught"
    """Folder of the shards with embeddings."""
    batch_size: int = 64
    """Images at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cuda: every worker takes a GPU of its own; auto: where the cluster has any."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size is {self.batch_size}; it has to be at least 1")


def embed(settings: Embed) -> Manifest:
    """Write the shards; returns the manifest of the output. Does nothing where that is done already.

    Raises ValueError for `shards` that are not finished, are damaged or are the output itself, for a teacher that mixes
    tokens by captions, and for an output that was made with other settings or is being written.
    """
    from pipelines.stages.work import digest

    output, folder = storage.absolute(settings.output), storage.absolute(settings.shards)
    if output == folder:
        raise ValueError(f"--output {settings.output} is the folder of --shards; name another one")
    shards, weights = manifest.read(folder, "shards"), settings.weights(settings.checkpoint)
    config = {
        "shards_digest": digest([asdict(file) for file in shards.files]),
        "teacher": weights.digest(),
        "told": weights.told,
    }
    if manifest.is_done(output, "shards", config):
        print(f"{output} holds the shards already")
        return manifest.read(output, "shards")
    integrity.check_sizes(folder, shards)
    model = weights.load()
    if model.config.head.kind in ("text_query", "image_query"):
        raise ValueError(
            f"{settings.checkpoint} mixes its tokens by captions or images: it has no vector of an image that could be "
            "stored; take a teacher with one, such as a run of clip_… or siglip_…"
        )
    command.start_ray()
    with sole_writer(output):
        return _embed(settings, folder, shards, model, config, output)


def _embed(
    settings: Embed, folder: str, shards: Manifest, model: "ContrastiveModel", config: dict[str, Any], output: str
) -> Manifest:
    import ray

    from llip.data.shards import TEACHER
    from pipelines.stages import embed as stage
    from pipelines.stages.work import Stage, digest, run

    gpu = settings.device == "cuda" or (settings.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    progress = storage.join(output, "progress")
    written = run(
        Stage(name="embed", markers=storage.join(progress, digest(config))),
        list(shards.files),
        stage.embed_shard,
        sizes=[file.rows for file in shards.files],
        shared={
            "shards": folder,
            "folder": output,
            "model": ray.put(model),
            "batch_size": settings.batch_size,
            "device": "cuda" if gpu else "cpu",
        },
        gpu=gpu,
    )
    teacher = {
        "digest": config["teacher"],
        "width": model.config.embed_dim,
        "logit_scale": round(float(model.logit_scale.detach().exp()), 6),
    }
    result = Manifest(
        kind="shards",
        files=tuple(FileEntry(**entry) for entry in written),
        config=config,
        source={"shards": folder, "teacher": settings.checkpoint},
        row_group_size=shards.row_group_size,
        summary={**shards.summary, TEACHER: teacher},
    )
    assert result.rows == shards.rows, f"{result.rows} rows written of {shards.rows}"
    manifest.write(output, result)
    storage.remove(progress)
    more = result.bytes / shards.bytes - 1
    print(f"{result.rows:,} rows in {len(result.files)} shards, {more:.0%} larger by the embeddings: {output}")
    return result


def cli() -> None:
    """The command line."""
    command.run(Embed, embed, "Add a teacher's embeddings of images and captions to shards.")


if __name__ == "__main__":
    cli()
