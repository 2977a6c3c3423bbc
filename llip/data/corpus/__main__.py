"""`python -m llip.data.corpus --output DIR`: the corpus with its evaluation sets, metadata and contact sheet."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from llip import storage
from llip.data import corpus
from llip.data.corpus.config import CorpusConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to write, and where."""

    output: str
    """Folder or URI; pool/, evaluation/, metadata.json and contact_sheet.png go into it."""
    corpus: Annotated[CorpusConfig, tyro.conf.arg(name="")] = field(default_factory=CorpusConfig)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write everything. What the user can mend ends with exit code 2."""
    try:
        settings = tyro.cli(Settings, description="Write the built-in corpus.", args=arguments)
        pool = corpus.write_pool(storage.join(settings.output, "pool"), settings.corpus)
        corpus.write_evaluation(storage.join(settings.output, "evaluation"), settings.corpus)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    corpus.write_metadata(storage.join(settings.output, "metadata.json"), settings.corpus)
    corpus.write_contact_sheet(storage.join(settings.output, "contact_sheet.png"), settings.corpus)
    print(f"{pool.rows:,} images, {pool.bytes / 1e6:.0f} MB in {settings.output}")


if __name__ == "__main__":
    main()
