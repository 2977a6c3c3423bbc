"""Write the built-in corpus: images with captions, its evaluation sets, its metadata and a contact sheet.

uv run pipelines/corpus.py --output corpus
"""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from llip import storage
from llip.data import corpus
from llip.data.corpus.config import CorpusConfig
from llip.lease import sole_writer
from pipelines import command


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Corpus to write, and its folder."""

    output: str
    """Folder or URI; pool/, evaluation/, metadata.json and contact_sheet.png go into it."""
    corpus: Annotated[CorpusConfig, tyro.conf.arg(name="")] = field(default_factory=CorpusConfig)


def write_corpus(settings: Corpus) -> None:
    """Write everything. Raises ValueError for an output that holds another corpus."""
    from llip.evaluation.sets.corpus import write_evaluation

    with sole_writer(settings.output), corpus.spread_over_cores(settings.corpus.rows) as spread:
        pool = corpus.write_pool(storage.join(settings.output, "pool"), settings.corpus, spread=spread)
        write_evaluation(storage.join(settings.output, "evaluation"), settings.corpus, spread=spread)
        corpus.write_metadata(storage.join(settings.output, "metadata.json"), settings.corpus)
        corpus.write_contact_sheet(storage.join(settings.output, "contact_sheet.png"), settings.corpus)
    print(f"{pool.rows:,} images, {pool.bytes / 1e6:.0f} MB in {settings.output}")


def cli() -> None:
    """The command line."""
    command.run(Corpus, write_corpus, "Write the built-in corpus.")


if __name__ == "__main__":
    cli()
