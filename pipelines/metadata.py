"""Build metadata: the list of entries that curation matches captions with.

    uv run pipelines/metadata.py --corpus s3://bucket/wikipedia --wordnet /usr/share/wordnet --titles titles.tsv
    uv run pipelines/curate.py --pool s3://bucket/pool --metadata output/metadata/metadata.json

Leaves `metadata.json` and, last, `manifest.json`. A pure function of what it reads.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llip import storage
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from llip.lease import sole_writer
from pipelines import command
from pipelines.stages.options import MIN_PMI, MOST_ENTRIES

if TYPE_CHECKING:  # imported once the options are right, so that --help and a refusal come at once
    from pipelines.stages.read import Pool


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Sources of the entries, in the order in which they fill the list."""

    wordnet: str | None = None
    """Folder of WordNet's database files (data.noun, data.verb, data.adj, data.adv): the lemmas of all synsets.
    Debian's package wordnet-base puts them into /usr/share/wordnet."""
    corpus: str | None = None
    """Texts whose words and pairs of words are counted: .txt files with a text a line, or a pool with captions."""
    titles: str | None = None
    """Titles: a text file with one a line, or a title, a tab and its page views."""
    min_count: int = 100
    """Occurrences of a word or pair in the corpus."""
    min_pmi: float = MIN_PMI
    """Pointwise mutual information of a pair, bits: how much more frequent it is than its words are together by
    chance."""
    min_views: int = 70
    """Page views of a title, where the file has any."""
    limit: int = MOST_ENTRIES
    """Entries at most."""
    output: str = "output/metadata"
    """Folder of the list."""
    partition_rows: int = 10_000
    """Rows of a pool that are read and counted together."""

    def __post_init__(self) -> None:
        if not (self.wordnet or self.corpus or self.titles):
            raise ValueError("nothing to build from: give --corpus, --wordnet or --titles")
        for name in ("min_count", "limit", "partition_rows"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it has to be at least 1")


def build(settings: Metadata) -> Manifest:
    """Build the list; returns the manifest of the output. Does nothing where that is done already.

    Raises ValueError for a source that can't be used, and for an output made with other settings.
    """
    from pipelines.stages.match import metadata
    from pipelines.stages.read import files

    output = storage.absolute(settings.output)
    corpus = (
        metadata.open_corpus(storage.absolute(settings.corpus), settings.partition_rows) if settings.corpus else None
    )
    listed = {name: files.identity(files.find(storage.absolute(uri))) for name, uri in _listed(settings).items()}
    values = {k: v for k, v in asdict(settings).items() if k not in ("output", "corpus", *listed)}
    config = values | {"corpus_digest": corpus.digest if corpus else None} | listed
    if manifest.is_done(output, "metadata", config):
        print(f"{output} holds the metadata already")
        return manifest.read(output, "metadata")
    if corpus:
        command.start_ray()
    with sole_writer(output):
        return _build(settings, corpus, config, output)


def _build(settings: Metadata, corpus: Pool | None, config: dict[str, Any], output: str) -> Manifest:
    from pipelines.stages.match import metadata, wordnet
    from pipelines.stages.work import digest

    sources: dict[str, list[str]] = {}
    if settings.wordnet:
        sources["wordnet"] = wordnet.lemmas(storage.absolute(settings.wordnet))
    if corpus:
        progress = storage.join(output, "progress", digest(config))
        sources["corpus"] = metadata.of_corpus(
            corpus, folder=progress, markers=progress, min_count=settings.min_count, min_pmi=settings.min_pmi
        )
    if settings.titles:
        sources["titles"] = metadata.titles(storage.absolute(settings.titles), settings.min_views)
    entries = list(dict.fromkeys(entry for source in sources.values() for entry in source))[: settings.limit]
    if not entries:
        raise ValueError("nothing is left to make entries of: lower --min-count or --min-views")
    content = json.dumps(entries, indent=0, ensure_ascii=False).encode()
    storage.write_bytes(uri := storage.join(output, metadata.NAME), content)
    summary = {name: len(source) for name, source in sources.items()}
    sha256 = hashlib.sha256(content).hexdigest()
    entry = FileEntry(name=metadata.NAME, rows=len(entries), bytes=len(content), sha256=sha256)
    result = Manifest(kind="metadata", files=(entry,), config=config, summary=summary)
    manifest.write(output, result)
    storage.remove(storage.join(output, "progress"))
    print(f"{len(entries):,} entries of {', '.join(f'{name} {n:,}' for name, n in summary.items())}: {uri}")
    return result


def _listed(settings: Metadata) -> dict[str, str]:
    """Sources that are lists, by option."""
    given = {"wordnet": settings.wordnet, "titles": settings.titles}
    return {name: uri for name, uri in given.items() if uri}


def cli() -> None:
    """The command line."""
    command.run(Metadata, build, "Build the list of entries that curation matches captions with.")


if __name__ == "__main__":
    cli()
