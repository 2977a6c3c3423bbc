"""`python -m llip.data.corpus --output DIR`: the corpus with its evaluation sets, metadata and contact sheet."""

import sys
from dataclasses import dataclass, field

import tyro

from llip import storage
from llip.data import corpus


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What to write, and where."""

    output: str
    """Folder or URI; pool/, evaluation/, metadata.json and contact_sheet.png go into it."""
    corpus: corpus.CorpusConfig = field(default_factory=corpus.CorpusConfig)


def main() -> None:
    settings = tyro.cli(Corpus, description="Write the built-in corpus.")
    try:
        pool = corpus.write_pool(storage.join(settings.output, "pool"), settings.corpus)
        corpus.write_evaluation(storage.join(settings.output, "evaluation"), settings.corpus)
    except ValueError as error:
        sys.exit(f"error: {error}")
    corpus.write_metadata(storage.join(settings.output, "metadata.json"), settings.corpus)
    corpus.write_contact_sheet(storage.join(settings.output, "contact_sheet.png"), settings.corpus)
    print(f"{pool.rows:,} images, {pool.bytes / 1e6:.0f} MB in {settings.output}")


if __name__ == "__main__":
    main()
