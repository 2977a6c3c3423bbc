"""The built-in corpus: real drawings and names from ordinary packages, as pictures with captions of one thing each."""

from llip.data.corpus.config import CorpusConfig, KindMix
from llip.data.corpus.contact_sheet import write_contact_sheet
from llip.data.corpus.metadata import metadata_entries, write_metadata
from llip.data.corpus.pool import write_pool
from llip.data.corpus.sources import license_table

__all__ = [
    "CorpusConfig",
    "KindMix",
    "license_table",
    "metadata_entries",
    "write_contact_sheet",
    "write_metadata",
    "write_pool",
]
