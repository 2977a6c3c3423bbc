"""Data for training: a pool becomes shards. Each stage leaves what it finds done."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

from llip import storage
from llip.data import manifest
from llip.fields import setting, to_dict
from pipelines import command
from pipelines.command import Trained

Curation = Literal["metaclip", "none"]
Folders = str | tuple[str, ...]
"""Shards of one folder, or of several that a run mixes; a pool, or several that are curated as one."""


CORPUS_TAIL_SHARE = 0.25
"""Balancing of the built-in corpus, whose shares of captions are chosen: a web pool's 6 % takes seven in eight of those
that say which places are taken, since many images share them."""


class DataOptions(TypedDict):
    """Arguments of `prepare` that every command that trains has."""

    pool: Folders | None
    shards: Folders | None
    evaluation: str | None
    corpus_images: int | None


@dataclass(frozen=True, kw_only=True)
class TrainedOnData(Trained):
    """Settings of a command that trains, and the data for it."""

    pool: str | tuple[str, ...] | None = setting(None, metavar="FOLDER")
    """Images with captions to curate and shard: a folder or an s3:// prefix, or several, which become one. Without it,
    the built-in corpus."""
    shards: str | tuple[str, ...] | None = setting(None, metavar="FOLDER")
    """Finished shards to train on, of one folder or mixed from several (--weights): nothing is curated."""
    evaluation: str | None = setting(None, metavar="FOLDER")
    """Folder of evaluation sets; those of the built-in corpus where it is trained on."""
    corpus_images: int | None = None
    """Images of the built-in corpus (16,000 where not given); with fewer, its evaluation sets shrink too."""
    gpu: bool = False
    """Each worker has a GPU although the cluster has none yet: its nodes start on demand."""

    def __post_init__(self) -> None:
        if self.pool is not None and self.shards is not None:
            raise ValueError("--pool and --shards exclude each other: shards are what a pool is made into")
        if self.corpus_images is not None and (self.pool or self.shards):
            other = "--pool" if self.pool else "--shards"
            raise ValueError(f"--corpus-images is about the built-in corpus; leave it out with {other}")

    def data(self) -> DataOptions:
        """The options as arguments of `prepare`."""
        return DataOptions(
            pool=self.pool, shards=self.shards, evaluation=self.evaluation, corpus_images=self.corpus_images
        )


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Data that a run trains on and is evaluated with."""

    shards: Folders
    evaluation: str | None
    """Folder of evaluation sets; None: nothing to evaluate with."""
    documents: dict[str, dict[str, Any] | str]
    """Documents on how the shards were curated, by file name; none where they came ready."""


def prepare(
    output: str,
    *,
    pool: Folders | None,
    shards: Folders | None,
    evaluation: str | None,
    corpus_images: int | None,
    curation: Curation = "metaclip",
) -> TrainingData:
    """The user's shards, or shards of the user's pool, or shards of the built-in corpus, which has evaluation sets.

    curation: `none` shards the user's pool as it is. Raises ValueError for `none` without a pool.
    """
    if curation == "none" and pool is None:
        raise ValueError("curation none is about a pool of your own: name it with --pool")
    evaluation = evaluation and storage.absolute(evaluation)
    if shards is not None:
        folders = tuple(map(storage.absolute, (shards,) if isinstance(shards, str) else shards))
        for folder in folders:
            manifest.read(folder, "shards")
        return TrainingData(
            shards=folders[0] if isinstance(shards, str) else folders, evaluation=evaluation, documents={}
        )
    metadata = tail_share = None
    if pool is None:
        tail_share = CORPUS_TAIL_SHARE
        pool, metadata, corpus_sets = _corpus(output, corpus_images)
        evaluation = evaluation or corpus_sets
    from pipelines import data_runs
    from pipelines.curate import Curate, curate
    from pipelines.shard import Shard, shard
    from pipelines.stages import card_page

    shards = storage.join(output, "shards")
    if curation == "none":
        shard(Shard(pool=pool, output=shards))
        data_runs.track(shards, "shards", card_page.documents(shards), output=output)
        return TrainingData(shards=shards, evaluation=evaluation, documents=card_page.documents(shards))
    curated, shards = storage.join(output, "curated"), storage.join(output, "shards")
    curate(Curate(pool=pool, output=curated, metadata=metadata, tail_share=tail_share))
    data_runs.track(curated, "curated", card_page.documents(curated), output=output)
    shard(Shard(curated=curated, output=shards))
    data_runs.track(shards, "shards", {}, output=output)
    return TrainingData(shards=shards, evaluation=evaluation, documents=card_page.documents(curated))


def _corpus(output: str, images: int | None) -> tuple[str, str, str]:
    """Pool, metadata and evaluation sets of the built-in corpus."""
    from llip.data import corpus
    from llip.evaluation.sets.corpus import write_evaluation

    config = corpus.CorpusConfig()
    if images is not None:  # a small corpus is for a quick look: its evaluation is small too
        config = replace(config, rows=images, evaluation_images=min(config.evaluation_images, max(16, images // 8)))
    pool, sets = storage.join(output, "pool"), storage.join(output, "evaluation")
    metadata = storage.join(output, "metadata.json")

    def draw() -> None:
        with corpus.spread_over_cores(config.rows) as spread:
            corpus.write_pool(pool, config, spread=spread)
            write_evaluation(sets, config, spread=spread)

    if manifest.is_done(pool, "pool", to_dict(config)):
        write_evaluation(sets, config)
    else:
        with ThreadPoolExecutor(1) as beside:
            drawn = beside.submit(draw)
            command.start_ray()  # for curation: most of its start is waiting, and only the main thread can do it
            drawn.result()
    if not storage.exists(metadata):
        corpus.write_metadata(metadata, config)
    return pool, metadata, sets
