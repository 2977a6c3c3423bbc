"""What comes before training: a pool becomes shards. Each stage leaves what it finds done."""

from dataclasses import dataclass, replace
from typing import Any

from llip import storage
from llip.data import manifest


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run trains on and is evaluated with."""

    shards: str
    evaluation: str | None
    """Folder of evaluation sets; None: nothing to evaluate with."""
    data_card: dict[str, Any] | None
    """How the shards were curated; None where they came ready."""


def prepare(
    output: str, *, pool: str | None, shards: str | None, evaluation: str | None, corpus_images: int | None
) -> Prepared:
    """The user's shards, or shards of the user's pool, or shards of the built-in corpus, which has evaluation sets."""
    if shards is not None:
        manifest.read(shards, "shards")
        return Prepared(shards=shards, evaluation=evaluation, data_card=None)
    metadata = None
    if pool is None:
        pool, metadata, corpus_sets = _corpus(output, corpus_images)
        evaluation = evaluation or corpus_sets
    from pipelines.curate import Curate, curate
    from pipelines.shard import Shard, shard

    curated, shards = storage.join(output, "curated"), storage.join(output, "shards")
    curate(Curate(pool=pool, output=curated, metadata=metadata))
    shard(Shard(curated=curated, output=shards))
    card = storage.read_json(storage.join(curated, "data_card.json"))
    return Prepared(shards=shards, evaluation=evaluation, data_card=card)


def _corpus(output: str, images: int | None) -> tuple[str, str, str]:
    """Pool, metadata and evaluation sets of the built-in corpus."""
    from llip.data import corpus

    config = corpus.CorpusConfig()
    if images is not None:  # a small corpus is for a quick look: its evaluation is small too
        config = replace(config, rows=images, evaluation_images=min(config.evaluation_images, max(16, images // 8)))
    pool, sets = storage.join(output, "pool"), storage.join(output, "evaluation")
    metadata = storage.join(output, "metadata.json")
    corpus.write_pool(pool, config)
    corpus.write_evaluation(sets, config)
    if not storage.exists(metadata):
        corpus.write_metadata(metadata, config)
    return pool, metadata, sets
